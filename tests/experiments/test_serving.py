"""Studies whose completions other engines sample."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from benchmarks.faults import contents
from experiments import _dry_run, case_study
from sae_attr.server.budget import CallBudget
from sae_attr.steering.served import SamplesStopped
from sae_attr.store import InputAwaited
from sae_attr.study import model_files
from sae_attr.study.sample_sources import SERVED
from sae_attr.text.tokenizer import decode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.experiments.test_case_study import config, run
from tests.judge._server import Answer, serving
from tests.steering._sweep_answers import answer

RATES = _dry_run.rates_of_flags(("2000", "100"), "data=1")


def entry(workdir: Path, stage: str, array: str = "tokens_rn") -> np.ndarray:
    """An array that a stage stored."""
    (folder,) = (workdir / "store").glob(f"rude.{stage}-*")
    return np.load(folder / f"{array}.npy")


def served(made: ConfigDict, url: str) -> ConfigDict:
    made.cases.rude.server.update(
        {"model": "served", "base_url": url, "key_variable": "SERVING_KEY"}
    )
    return made


@pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="asking a server needs openai: pip install 'sae_attr[judge]'",
)
def test_samples_for_pairs_come_from_a_server_without_loading_the_model(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(miniature / "model")

    def rule(number: int, request: dict[str, Any]) -> Answer:
        word = ("fool", "thanks")[request["seed"] % 2]
        prompt = decode(tokenizer, request["prompt"])
        # What a server decodes behind a prompt.
        ids = tokenizer.backend.encode(word, add_special_tokens=False).ids
        text = decode(tokenizer, [*request["prompt"], *ids])[len(prompt) :]
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return Answer(body={"object": "text_completion", "choices": [choice]})

    def load_lm(*args: Any, **options: Any) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(model_files, "load_lm", load_lm)
    monkeypatch.setenv("SERVING_KEY", "sk-secret")
    with serving(rule) as server:
        made = served(config(miniature, ("rude",), batch_size=8), server.url)
        made.cases.rude.update({"pair_prompts": 3, "pair_samples": 2})
        report = case_study.dry_run(made, epath.Path(tmp_path / "dry"), RATES)
        assert report.faults == []
        assert re.search(r"rude: served +ok +answered in", report.text())
        assert not (tmp_path / "dry" / SERVED).exists()
        made.cases.rude.server.max_calls = 2
        with pytest.raises(
            SamplesStopped, match=r"2 of 6.* budget of 2 calls is spent"
        ):
            run(made, tmp_path, until="pair")
        made.cases.rude.server.max_calls = None
        run(made, tmp_path, until="pair")
        calls = server.calls
        assert CallBudget(ledger=tmp_path / SERVED / "rude").calls == calls - 1
        # A server that moved is the same model.
        run(served(made, f"{server.url}/moved"), tmp_path, until="pair")
        assert server.calls == calls >= 6
    assert {request["model"] for request in server.requests} == {"served"}
    texts = {decode(tokenizer, row[row >= 0]) for row in entry(tmp_path, "sample")}
    assert texts == {"fool", "thanks"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in path.read_bytes() for path in written)


# ---- exported sweeps -----------------------------------------------------------------


@pytest.mark.slow
def test_a_study_whose_sweeps_are_answered_elsewhere_is_the_study_that_samples_here(
    studied: Path, miniature: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "exported"
    shutil.copytree(studied, workdir)
    made = config(miniature, sweeps_by="export")
    answered: set[Path] = set()
    while (error := waits(made, workdir)) is not None:
        waiting = set((workdir / "sweeps").iterdir()) - answered
        assert len(waiting) == str(error).count("waits for completions") > 0
        for folder in waiting:
            answer(folder, miniature / "model")
        answered |= waiting
    fresh = contents(workdir / "store").keys() - contents(studied / "store").keys()
    arrays = [name for name in fresh if name.endswith(".npy")]
    assert {name.split("-")[0] for name in arrays} >= {
        "rude.steer.away",
        "kind.judge.toward",
    }
    for name in arrays:
        stage, _, file = name.partition("-")
        (other,) = (studied / "store").glob(f"{stage}-*/{Path(file).name}")
        assert other.read_bytes() == (workdir / "store" / name).read_bytes(), stage
    for path in sorted(studied.glob("*/*.csv")):
        same = workdir / path.relative_to(studied)
        assert same.read_bytes() == path.read_bytes()


def waits(made: ConfigDict, workdir: Path) -> InputAwaited | None:
    """Runs a study; returns what it waits for, None where it ends."""
    try:
        run(made, workdir, allow_change=True)
    except InputAwaited as error:
        return error
    return None
