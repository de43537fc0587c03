"""Studies whose completions other engines sample."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from sae_attr.study import model_files
from sae_attr.text.tokenizer import decode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.experiments.test_case_study import config, run
from tests.judge._server import Answer, serving


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
        run(made, tmp_path, until="pair")
        calls = server.calls
        # A server that moved is the same model.
        run(served(made, f"{server.url}/moved"), tmp_path, until="pair")
        assert server.calls == calls >= 6
    assert {request["model"] for request in server.requests} == {"served"}
    texts = {decode(tokenizer, row[row >= 0]) for row in entry(tmp_path, "sample")}
    assert texts == {"fool", "thanks"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in path.read_bytes() for path in written)
