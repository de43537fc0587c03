"""The steer entrypoint: what it writes, that it continues, and what it says of inputs that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import steer as configs_steer
from experiments import steer
from sae_attr.steering import sweep
from tests.miniatures import write_lines, write_llama, write_tokenizer

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = [
    {"id": "a", "prompt": "once upon"},
    {"prompt": "hi", "positive": "there"},
    {"id": 7, "prompt_ids": [0, 5, 6]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("steer")
    write_tokenizer(write_llama(made / "model", vocab=110))
    np.savez(made / "vectors.npz", v=np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32))
    write_lines(made / "prompts.jsonl", *PROMPTS)
    return made


def config(folder: Path, **changes: Any) -> ConfigDict:
    made = configs_steer.get_config()
    inputs = {"lm": folder / "model", "vectors": folder / "vectors.npz", "prompts": folder / "prompts.jsonl"}
    made.update({name: str(path) for name, path in inputs.items()})
    made.update({"site": "layer1.resid_post", "latents": (7, 2), "max_new": 6, "samples": 2, "batch_size": 8})
    made.update(changes)
    return made


def run(made: ConfigDict, workdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    steer.start(made, epath.Path(workdir))
    lines = (workdir / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((workdir / "result.json").read_text()), [json.loads(line) for line in lines]


def test_completions_beside_unsteered_ones_and_a_run_that_was_stopped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, rows = run(config(folder), tmp_path / "whole")
    assert len(rows) == 3 * 2 * (1 + 2 * 2) == result["completions"] == result["cost"]["rows"]
    assert [(r["latent"], r["strength"]) for r in rows[::6]] == [(-1, 0), (7, -1), (7, 1), (2, -1), (2, 1)]
    assert {r["prompt"] for r in rows} == {"a", "line-2", "7"}
    assert rows[4]["prompt_ids"] == [0, 5, 6]
    assert result["unit"]["over"] == "prompts"
    assert result["unit"]["value"] > 0
    shown = capsys.readouterr().out
    assert shown.count("unsteered  ") == 6
    assert repr(rows[-1]["text"]) in shown

    def stopped(*args: Any, **kwargs: Any) -> Any:
        yield next(iter(sweep(*args, **kwargs)))
        raise KeyboardInterrupt

    monkeypatch.setattr(steer, "sweep", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder), tmp_path / "part")
    asked: list[int] = []
    monkeypatch.setattr(
        steer, "sweep", lambda params, left, *a, **k: asked.append(len(left)) or sweep(params, left, *a, **k)
    )
    run(config(folder), tmp_path / "part")
    assert asked == [30 - 8]
    for name in ("completions.jsonl", "result.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run(config(folder), tmp_path / "part")
    assert asked == [30 - 8]  # nothing is made twice
    with pytest.raises(ValueError, match="strengths"):
        run(config(folder, strengths=(3.0,)), tmp_path / "part")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm": None}, "the config must have lm"),
        ({"vectors": None}, "of sae and vectors exactly one"),
        ({"site": None}, "add --config.site=layer2.resid_post"),
        ({"site": "layer5.resid_post"}, "lies outside the model"),
        ({"site": "layer1.mlp_hidden"}, r"vectors of width 16, but layer1.mlp_hidden has 24"),
        ({"latents": (9,)}, r"latents is \(9,\); name some of 0..8"),
        ({"mode": "push"}, "mode 'push' is unknown"),
        ({"mode": "clamp"}, "mode clamp needs an SAE"),
        ({"tokens": ("all", "last")}, "tokens 'last' is unknown"),
        ({"max_new": 60}, "prompt 'a' and max_new are .* longer than the context of 64"),
        ({"top_p": 0.0}, "sampling: top_p is 0.0"),
        ({"strengths": (1.0, 1.0)}, "rows stand twice in the plan"),
        ({"prompts": "empty"}, "has no records"),
        ({"prompts": "twice"}, "id 'a' stands on line 1 too"),
        ({"prompts": "bare"}, "has no 'prompt'"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    files = {"empty": [], "twice": [PROMPTS[0], PROMPTS[0]], "bare": [{"id": "x"}]}
    if "prompts" in change:
        change = {"prompts": str(write_lines(tmp_path / "prompts.jsonl", *files[change["prompts"]]))}
    with pytest.raises(ValueError, match=message):
        steer.start(config(folder, **change), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
