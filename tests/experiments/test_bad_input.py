"""What is wrong with an input is said in one message, with exit status 1, before
anything lies in the workdir.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from experiments import _common, attribute
from sae_attr.store import lock_workdir
from tests.experiments._demo import config, copied, flag_list, run, shell

MODEL, SAE = "model/model.safetensors", "random_sae/sae_weights.safetensors"


def refused(
    config: ConfigDict,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    match: str,
    status: int = 1,
) -> str:
    """Runs as the command line does; the message, which must be all there is."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        _common.guarded(lambda _: attribute.start(config, epath.Path(workdir)))([])
    assert stop.value.code == status
    said = capsys.readouterr().err
    message = said[said.index("error: ") :]  # progress bars may stand before it
    assert re.search(match, message, re.S), message
    assert "Traceback" not in said
    return message


def change(file: Path, **values: Any) -> None:
    """Changes keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(file: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def cut(file: Path, keep: int = 1000) -> None:
    file.write_bytes(file.read_bytes()[:keep])


def poisoned(folder: Path) -> None:
    """The SAE becomes a .pt that creates a file where it is unpickled."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {folder / 'owned'}",)

    (folder / SAE).unlink()
    (folder / "random_sae/cfg.json").unlink()
    with zipfile.ZipFile(folder / "random_sae/ae.pt", "w") as archive:
        archive.writestr(
            "archive/data.pkl", pickle.dumps({"encoder.weight": Bomb()}, protocol=2)
        )


def narrower(folder: Path) -> None:
    """An SAE of width 32 for a model of width 64."""
    change_tensors(
        folder / SAE,
        lambda t: t.update(
            W_enc=t["W_enc"][:32].copy(),
            W_dec=t["W_dec"][:, :32].copy(),
            b_dec=t["b_dec"][:32].copy(),
        ),
    )
    change(folder / "random_sae/cfg.json", d_in=32)


def first_line(
    folder: Path, line: str | Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Puts a line before the pairs: as it stands, or made from their first record."""
    text = (folder / "pairs.jsonl").read_text()
    if callable(line):
        line = json.dumps(line(json.loads(text.splitlines()[0]) | {"id": "new"}))
    (folder / "pairs.jsonl").write_text(line + "\n" + text)


def rename(tensors: dict[str, np.ndarray], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def spoil(tensors: dict[str, np.ndarray], name: str) -> None:
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan


EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model cut short": (lambda f: cut(f / MODEL), r"model\.safetensors is truncated or corrupt"),
    "model is no safetensors": (lambda f: (f / MODEL).write_bytes(b"<html>404</html>" * 9), r"model\.safetensors is tr"),
    "sae cut short": (lambda f: cut(f / SAE), r"sae_weights\.safetensors is truncated or corrupt"),
    "weights of another name": (
        lambda f: change_tensors(f / MODEL, lambda t: rename(t, NORM, "model.other.weight")),
        r"\n- norm\.weight \(missing\)\n\+ other\.weight \(unexpected\)",
    ),
    "sae tensors of another name": (
        lambda f: change_tensors(f / SAE, lambda t: rename(t, "W_enc", "encoder")),
        r"\n *[-−] W_enc \(missing\)\n *\+ encoder \(unexpected\)",
    ),
    "sae of another width": (narrower, r"32.*64|64.*32"),
    "unknown model": (lambda f: change(f / "model/config.json", model_type="rwkv"), r"model_type 'rwkv' is not impl"),
    "unknown activation": (lambda f: change(f / "model/config.json", hidden_act="erf2"), r"activation 'erf2' is not"),
    "unknown sae": (lambda f: change(f / "random_sae/cfg.json", architecture="wavelet"), r"architecture 'wavelet' is unknown"),
    "NaN in the model": (lambda f: change_tensors(f / MODEL, lambda t: spoil(t, EMBED)), r"embed.*holds NaN or inf"),
    "NaN in the sae": (lambda f: change_tensors(f / SAE, lambda t: spoil(t, "W_enc")), r"enc_dn holds NaN or infinity"),
    "no json": (lambda f: first_line(f, "{'prompt'"), r"pairs\.jsonl:1 is not JSON"),
    "no positive": (lambda f: first_line(f, '{"prompt": "the"}'), r"pairs\.jsonl:1: 'positive' is missing"),
    "empty completion": (lambda f: first_line(f, lambda r: r | {"positive": ""}), r"pairs\.jsonl:1: 'positive' .*empty"),
    "too long": (lambda f: first_line(f, lambda r: r | {"negative": " fool" * 600}),
                 r"pairs\.jsonl:1: negative completion 0 has 607 tokens .* context is 512"),
    "messages without a template": (
        lambda f: first_line(f, lambda r: r | {"prompt": [{"role": "user", "content": "the"}]}),
        r"pairs\.jsonl:1: .*no chat template",
    ),
    "an id twice": (lambda f: first_line(f, lambda r: r | {"id": "demo-001"}), r"'demo-001' stands on line 1 too"),
    "poisoned pickle": (poisoned, r"ae\.pt wants to run \w+\.system; refused"),
    "empty corpus": (lambda f: (f / "corpus.json").write_text("[]"), r"corpus\.json has no text"),
    "no tokenizer": (lambda f: (f / "model/tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "no pairs": (lambda f: (f / "pairs.jsonl").unlink(), r"pairs\.jsonl"),
    "no sae": (lambda f: (f / SAE).unlink(), r"holds no .* SAE"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_input_is_named_and_nothing_is_written(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = copied(miniature, tmp_path / "miniature")
    breaks, match = BROKEN[name]
    breaks(folder)
    refused(config(folder), tmp_path / "w", capsys, match)
    assert not (tmp_path / "w").exists()
    assert not (folder / "owned").exists()


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "preset": (
        {"preset": "best"},
        r"preset 'best' is unknown; choose one of faithful, recommended",
    ),
    "gating": ({"gating": "left"}, r"gating 'left' is unknown; choose one of both"),
    "tokens": ({"tokens": "some"}, r"tokens 'some' is unknown; choose one of prompt"),
    "loss": ({"loss": "hinge"}, r"loss 'hinge' is unknown"),
    "dtype": (
        {"dtype": "float3"},
        r"dtype 'float3' is unknown; choose one of float32, bfloat16, float64",
    ),
    "resid_dtype": ({"resid_dtype": "int8"}, r"resid_dtype 'int8' is unknown"),
    "float64 without x64": ({"dtype": "float64"}, r"JAX_ENABLE_X64"),
    "exclude": ({"exclude": ("commas",)}, r"exclude 'commas' is unknown"),
    "top": ({"top": 0}, r"top is 0; it must be at least 1"),
    "ablate": ({"ablate": -1}, r"ablate is -1"),
    "ablate_rows": ({"ablate_rows": 0}, r"ablate_rows is 0"),
    "context": ({"context": 8}, r"pairs\.jsonl:1: .* context is 8"),
    "site beyond the model": (
        {"site": "layer9.resid_post"},
        r"layer9\.resid_post.*4 layers|layer9.*(0\.\.3|layers)",
    ),
    "site of no kind": ({"site": "layer1.soup"}, r"'?soup'?"),
    "mesh": ({"mesh": "data=7"}, r"asks for 7 devices .* 4 are present"),
    "mesh axis": ({"mesh": "rows=2"}, r"mesh 'rows=2': 'rows=2' is not understood"),
    "no such model": ({"lm": "/nowhere/model"}, r"/nowhere/model"),
    "no such corpus": ({"corpus": "/nowhere/texts.json"}, r"/nowhere/texts\.json"),
    "aligned model": ({"lm_aligned": "/nowhere/aligned"}, r"/nowhere/aligned"),
    "sae option": ({"sae_options": {"k": 4}}, r"option k= means nothing"),
    "missing keys": (
        {"lm": None, "corpus": None},
        r"lacks lm, corpus; add --config\.lm=PATH --config\.corpus=PATH",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_impossible_choice_is_named_and_nothing_is_written(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    changes, match = UNKNOWN[name]
    refused(config(miniature, **changes), tmp_path / "w", capsys, match)
    assert not (tmp_path / "w").exists()


def test_a_second_model_of_another_architecture_is_refused(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(miniature / "model", tmp_path / "other")
    change(other / "config.json", rms_norm_eps=1e-3)
    refused(
        config(miniature, lm_aligned=str(other)),
        tmp_path / "w",
        capsys,
        r"other and .* have different configs",
    )
    assert not (tmp_path / "w").exists()


def test_a_workdir_of_another_config_names_the_fields(
    done: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(done, tmp_path / "w")
    before = {
        p: p.read_bytes()
        for p in workdir.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    message = refused(
        config(miniature, top=29, batch_size=7),
        workdir,
        capsys,
        r"another config .*\n  top: 30 → 29\n",
    )
    assert "batch_size" not in message  # how fast, not what
    assert {p: p.read_bytes() for p in before} == before
    run(config(miniature, top=29), workdir, allow_change=True)
    assert json.loads((workdir / "config.json").read_text())["top"] == 29
    refused(config(miniature), workdir, capsys, r"top: 29 → 30")


def test_two_runs_at_once_in_one_workdir(
    done: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(done, tmp_path / "w")
    with lock_workdir(workdir):
        message = rf"is in use by process {os.getpid()} "
        # It is free later: a scheduler may start the run again.
        refused(config(miniature), workdir, capsys, message, status=75)
    run(config(miniature), workdir)  # and afterwards it is free


# ---- the command itself


def test_the_command_ends_with_one_message(miniature: Path, tmp_path: Path) -> None:
    flags = flag_list(config(miniature, preset="best"), tmp_path / "w")
    ended = shell(flags)
    assert ended.returncode == 1
    assert [
        line for line in ended.stderr.splitlines() if line.startswith("error: ")
    ] == ["error: preset 'best' is unknown; choose one of faithful, recommended"]
    assert "Traceback" not in ended.stderr
    assert not ended.stdout
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ("--config.colour=red", r"error: the config has no key 'colour'"),
        ("--config=configs/nowhere.py", r"error: .*configs/nowhere\.py"),
    ],
)
def test_the_command_explains_its_config_flags(
    tmp_path: Path, extra: str, match: str
) -> None:
    first = () if extra.startswith("--config=") else ("--config=configs/attribute.py",)
    ended = shell([*first, extra, f"--workdir={tmp_path / 'w'}"])
    assert ended.returncode == 1
    assert re.search(match, ended.stderr, re.S), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bug_keeps_its_traceback() -> None:
    def broken(argv: list[str]) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        _common.guarded(broken)([])
