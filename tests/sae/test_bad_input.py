"""Damaged, contradictory and hostile files of every format: an error that says so, and
never a crash or a hang.
"""

import contextlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.files.torch_file import read_torch
from sae_attr.sae.formats import FORMATS, load_sae, parse_hub, read_config
from sae_attr.sae.formats.locate import hub_files
from sae_attr.sae.formats.schema import KINDS
from tests.sae._formulas import Case
from tests.sae._layouts import LAYOUTS
from tests.sae._torchfiles import save_torch

# One layout per reader and container is enough here; the others share their code.
NAMES = (
    "saelens_abstopk", "saelens_matryoshka_checkpoint", "gemma_scope_2_transcoder", "gemma_scope_2_crosscoder",
    "openai_tied_identity", "sparsify_groupmax", "dictionary_learning_new", "dictionary_learning_backup", "llama_scope",
    "llamascopium_topk", "llamascopium_jumprelu", "goodfire", "qresearch", "qwen_scope", "connor_rob", "ckkissane",
    "batchtopk_mixed", "circuit_tracer", "gemma_scope_embedding",
)  # fmt: skip


def weights_of(case: Case) -> Path:
    files = [case.path] if case.path.is_file() else sorted(case.path.rglob("*"))
    return next(f for f in files if f.suffix in (".safetensors", ".pt", ".pth", ".npz"))


def configs_of(case: Case) -> list[Path]:
    folder = case.path if case.path.is_dir() else case.path.parent
    return [f for f in folder.rglob("*.json") if f.name != "lm_config.json"]


def attempt(case: Case, must_fail: bool = True) -> None:
    """Loading ends in a ValueError with words in it, or (where damage may be harmless)
    in an SAE.
    """
    message = None
    try:
        load_sae(case.path, **case.options)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    assert message is None or len(message) > 20
    assert message or not must_fail, f"{case.path} loaded"


@pytest.mark.parametrize("name", NAMES)
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    file = weights_of(case)
    whole = file.read_bytes()
    for cut in (0, 1, 4, 8, 60, 300, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:cut])
        attempt(case)
    file.write_bytes(whole)
    for config in configs_of(case):
        text = config.read_text()
        config.write_text(text[: len(text) // 2])
        attempt(case)
        config.write_text(text)


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes(tmp_path: Path, name: str) -> None:
    case, rng = LAYOUTS[name](tmp_path), np.random.default_rng(0)
    file = weights_of(case)
    whole = bytearray(file.read_bytes())
    head = rng.integers(0, 900, 20)
    for at in [
        *head,
        *rng.integers(0, len(whole), 10),
        *rng.integers(len(whole) - 300, len(whole), 6),
    ]:
        damaged = whole.copy()
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        attempt(case, must_fail=False)


def tensors_of(file: Path) -> dict[str, Any]:
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return dict(archive)
    content = load_file(file) if file.suffix == ".safetensors" else read_torch(file)
    return {
        k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in content.items()
    }


def write(file: Path, content: dict[str, Any]) -> None:
    if file.suffix == ".npz":
        np.savez(file, **content)
    elif file.suffix == ".safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, file)
    else:
        save_torch(file, content)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n != "dictionary_learning_backup"]
)
def test_tensors_that_are_not_as_they_should_be(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    file = weights_of(case)
    whole = tensors_of(file)
    nested = whole.get("sae", whole)
    big = [
        k
        for k, v in nested.items()
        if isinstance(v, np.ndarray) and v.ndim >= 2 and not k.startswith("activation_")
    ]
    matrix = big[0]
    bias = next(k for k, v in nested.items() if "b" in k and np.ndim(v) == 1)

    def damaged(**changes: Any) -> None:
        new = {k: v for k, v in {**nested, **changes}.items() if v is not None}
        write(file, whole | {"sae": new} if "sae" in whole else new)
        attempt(case)

    damaged(**{matrix: None})
    damaged(**{bias: None})
    damaged(surplus=np.ones(3, np.float32))
    damaged(**{matrix: nested[matrix].reshape(-1)})
    damaged(**{matrix: nested[matrix].astype(np.int32)})
    damaged(**{matrix: np.full_like(nested[matrix], np.nan)})
    damaged(**{bias: np.full_like(nested[bias], np.inf)})
    damaged(**{bias: nested[bias][:-1]})
    damaged(**{bias: nested[matrix], matrix: nested[bias]})


JUNK = (None, "x", -1, 0.5, True, [], {}, [1], 10**12, float("nan"))
KEYS = (
    "d_in", "d_sae", "k", "d_model", "expansion_factor", "act_size", "architecture", "activation", "act_fn", "trainer",
    "metadata", "norm_activation", "normalize_activations", "dataset_average_activation_norm", "num_latents", "width",
    "jump_relu_threshold", "hook_name", "hook_point_in", "activation_fn_kwargs", "dict_class",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_configs_full_of_junk(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    for config in configs_of(case):
        raw = json.loads(config.read_text())
        for key in [key for key in KEYS if key in raw]:
            for junk in JUNK:
                config.write_text(json.dumps(raw | {key: junk}))
                with contextlib.suppress(
                    ValueError
                ):  # some junk is harmless; nothing but this error may come of it
                    read_config(case.path, **case.options)
        for junk in ("[]", "1", "[" * 100_000, '"' + "\x00", ""):
            config.write_text(junk)
            attempt(case)
        config.write_text(json.dumps(raw))


NESTED = ("metadata", "trainer", "buffer")
ODD = (
    "many words\x1b[31m\x00",
    [["x"]],
    {"in": [1]},
    float("nan"),
    float("inf"),
    -1,
    -1e300,
    10**30,
    "9" * 5000,
)


def settings_in(
    raw: dict[str, Any], above: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    """Where every setting of a config lies that the schema knows."""
    places = [(*above, key) for key in raw if key in KINDS]
    for key in NESTED:
        places += (
            settings_in(raw[key], (*above, key))
            if isinstance(raw.get(key), dict)
            else []
        )
    return places


def replaced(raw: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *below = place
    return raw | {key: replaced(raw[key], tuple(below), value) if below else value}


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_of_another_kind_is_one_line_with_file_and_key(
    tmp_path: Path, name: str
) -> None:
    case = LAYOUTS[name](tmp_path)
    for config in configs_of(case):
        raw = json.loads(config.read_text())
        for place in settings_in(raw):
            for odd in [odd for odd in ODD if not KINDS[place[-1]].fits(odd)]:
                config.write_text(json.dumps(replaced(raw, place, odd)))
                with pytest.raises(
                    ValueError, match=rf"{config.name}: .*{place[-1]} is .*should be"
                ) as error:
                    read_config(case.path, **case.options)
                assert str(error.value).isprintable()
                assert len(str(error.value)) < 500
        config.write_text(json.dumps(raw))
    read_config(case.path, **case.options)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_of_a_config_is_of_its_kind(tmp_path: Path, name: str) -> None:
    """Names are text or absent, counts are whole numbers or absent, whatever was
    written for them.
    """
    case = LAYOUTS[name](tmp_path)
    cfg = read_config(case.path, **case.options)
    assert all(
        isinstance(text, str | None)
        for text in (cfg.site, cfg.site_out, cfg.model_name)
    )
    assert all(
        isinstance(number, int | None)
        for number in (cfg.layer, cfg.context_size, cfg.head_index, cfg.k)
    )
    assert all(
        isinstance(answer, bool | None)
        for answer in (cfg.prepend_bos, cfg.exclude_special)
    )


def test_no_message_repeats_what_would_move_the_cursor_or_fill_the_screen(
    tmp_path: Path,
) -> None:
    case = LAYOUTS["saelens_abstopk"](tmp_path)
    file = weights_of(case)
    write(file, tensors_of(file) | {"\x1b[31mred\x07": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"\+ \\x1b\[31mred\\x07 \(unexpected\)"):
        load_sae(case.path)
    write(
        file, tensors_of(file) | {f"n{i}": np.ones(1, np.float32) for i in range(3000)}
    )
    with pytest.raises(ValueError, match=r"and 29\d\d more") as error:
        load_sae(case.path)
    assert len(str(error.value)) < 2000


def test_a_config_that_was_not_fetched(tmp_path: Path) -> None:
    case = LAYOUTS["saelens_abstopk"](tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for file in (tmp_path / "cfg.json", weights_of(case)):
        whole = file.read_bytes()
        file.write_text(pointer)
        with pytest.raises(
            ValueError, match=rf"{file.name} is a Git LFS pointer, .*git lfs pull"
        ):
            load_sae(case.path)
        file.write_bytes(whole)


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


@pytest.mark.parametrize(
    "file",
    [
        "ae.pt",
        "model_final.pt",
        "sae_weights.pt",
        "cc_weights.pt",
        "layer3.sae.pt",
        "x-l19.pth",
        "7.pt",
    ],
)
def test_a_pickle_that_runs_code_is_refused_under_every_name(
    tmp_path: Path, file: str
) -> None:
    flag = tmp_path / "ran"
    data = pickle.dumps({"encoder.weight": Evil(flag)}, protocol=2)
    with zipfile.ZipFile(tmp_path / file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path / file, tmp_path):
        with pytest.raises(ValueError, match="refused"):
            load_sae(path)
    assert not flag.exists()


def test_names_that_leave_the_folder_are_only_names(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "sae"
    folder.mkdir()
    save_torch(
        folder / "ae.pt",
        {
            "../../outside": np.ones(3, np.float32),
            "/etc/passwd": np.ones((3, 3), np.float32),
        },
    )
    with zipfile.ZipFile(folder / "ae.pt", "a") as archive:
        archive.writestr("archive/data/../../../outside", b"x")
    save_file({"../outside": np.ones(3, np.float32)}, folder / "params.safetensors")
    for path in (folder, folder / "ae.pt", folder / "params.safetensors"):
        with pytest.raises(ValueError, match=r"sae"):
            load_sae(path)
    assert not outside.exists()
    assert sorted(f.name for f in folder.iterdir()) == ["ae.pt", "params.safetensors"]


@pytest.mark.parametrize(
    "url",
    [
        "hf://a/b/../../etc",
        "hf://a/b/c/..",
        "hf://../b/c",
        "hf://a/..",
        "hf://a/b/./c",
        r"hf://a/b\..\c",
        "hf://",
        "hf://a",
    ],
)
def test_hub_addresses_that_leave_the_repository(url: str) -> None:
    with pytest.raises(ValueError, match="write hf://owner/repo/folder@revision"):
        parse_hub(url)


def test_the_hub_is_asked_for_files_by_name() -> None:
    for inside in (
        "",
        "a/b",
        "a/params.npz",
        "crosscoder/l/params_layer_0.safetensors",
        "layer3.sae.pt",
    ):
        names = hub_files("owner/repo", inside, FORMATS)
        assert not any(
            set(name) & set("*?[]") or name.startswith(("/", "..")) for name in names
        )
    assert "crosscoder/l/params_layer_3.safetensors" in hub_files(
        "o/r", "crosscoder/l/params_layer_0.safetensors", FORMATS
    )
    assert "x/y_cfg.json" in hub_files("o/r", "x/y.pt", FORMATS)
    assert "checkpoints/final.safetensors" in hub_files("o/r", "", FORMATS)
    assert "Llama-SAE-l19.pth" in hub_files("Goodfire/Llama-SAE-l19", "", FORMATS)


def test_two_formats_in_one_folder(tmp_path: Path) -> None:
    LAYOUTS["saelens_abstopk"](tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    LAYOUTS["gemma_scope_2_transcoder"](other)
    shutil.copyfile(other / "params.safetensors", tmp_path / "params.safetensors")
    with pytest.raises(ValueError, match=r"several formats \(gemma_scope_2, saelens"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, fmt="saelens").cfg.gate == "abs_topk"
    assert load_sae(tmp_path / "params.safetensors").cfg.source == "gemma_scope_2"


def test_a_format_that_the_file_is_not(tmp_path: Path) -> None:
    case = LAYOUTS["goodfire"](tmp_path)
    for fmt in (
        "openai",
        "dictionary_learning",
        "crosscoder",
        "ckkissane",
        "qwen_scope",
        "connor_rob",
        "llamascopium",
        "saelens",
        "sparsify",
        "llama_scope",
        "gemma_scope",
        "gemma_scope_2",
        "qresearch",
    ):
        with pytest.raises(ValueError, match="Llama-3"):
            load_sae(case.path, fmt=fmt)
