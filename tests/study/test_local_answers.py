"""A local judge: the ends of its answers, how prompts are rendered, its identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from etils import epath

from sae_attr import parallel
from sae_attr.judge import Judge
from sae_attr.judge.local_model import LocalAnswers
from sae_attr.study.judges import open_judge
from tests.miniatures import CHATML, write_llama, write_tokenizer


def test_an_answer_ends_with_any_token_that_ends_a_turn(tmp_path: Path) -> None:
    write_tokenizer(
        write_llama(tmp_path, vocab=110),
        chat_template="{{ strftime_now('%Y') }}" + CHATML,
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [50]}))
    how = {
        "mesh": parallel.make_mesh("data=1"),
        "max_new": 3,
        "batch_size": 1,
        "dtype": "float32",
    }
    answers = LocalAnswers(
        str(tmp_path), **how, template_options={"date": "2025-01-31"}
    )
    assert answers.reading == {
        "template_options": {"date": "2025-01-31"},
        "stop_ids": [50, 2, 1, 3],
    }
    assert LocalAnswers(str(tmp_path), **how, stop_ids=(7,)).stop_ids == (7,)
    with pytest.raises(ValueError, match=r"stop_ids has 110"):
        LocalAnswers(str(tmp_path), **how, stop_ids=(110,))


def test_a_folder_that_was_moved_is_the_same_judge(tmp_path: Path) -> None:
    def opened(folder: Path) -> Judge:
        spec = {"kind": "local", "rubric": "misalignment", "lm": str(folder)}
        mesh = parallel.make_mesh("data=1")
        return open_judge(spec, epath.Path(tmp_path / "grades"), mesh)

    folder = tmp_path / "here"
    folder.mkdir()
    write_tokenizer(write_llama(folder, vocab=110), chat_template=CHATML)
    before = opened(folder).identity
    assert before["name"].startswith("llama-")
    assert str(tmp_path) not in json.dumps(before)
    moved = folder.rename(tmp_path / "there")
    assert opened(moved).identity == before
    (moved / "generation_config.json").write_text("{}")
    assert opened(moved).identity != before
