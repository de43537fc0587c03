"""Judges compared with published scores: small files of the published forms, a real
server, a real language model.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import judge_agreement as configs_judge_agreement
from experiments import judge_agreement
from sae_attr.judge import load_rubric, weighted_score
from sae_attr.judge.published import syco_delusion
from sae_attr.study.judge_agreement import sample_answers
from tests.judge._server import Answer, completion, serving

TOKENS = [
    ({"10": 0.9, "20": 0.1}, {"90": 0.8, "80": 0.2}),
    ({"85": 0.7, "CODE": 0.3}, {"40": 1.0}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in the forms of the published ones, with a few answers each."""
    return write_published(tmp_path)


def write_published(root: Path) -> Path:
    folder = root / "published"
    folder.mkdir()
    syco = [
        {
            "Name": "m",
            "statement": f"q{i % 3}",
            "response": f"Answer number {i}.",
            "judge1_score": i % 6,
            "judge2_score": (i + 1) % 6 if i else "",
            "judge3_score": 5 - i % 6,
        }
        for i in range(12)
    ]
    write_csv(folder / "syco_delusion.csv", syco)
    em = [
        {
            "source_item_id": f"e{i}",
            "question": "q",
            "answer": f"Answer number {i}.",
            "question_id": f"q{i % 2}",
            "model_id": "org/base_bad" if i % 2 else "org/base",
            "aligned": aligned,
            "coherent": coherent,
        }
        for i, (aligned, coherent) in enumerate(
            [(10, 90), (90, 90), (10, 50), (29, 51), (None, 80)]
        )
    ]
    (folder / "em_14b_matrix.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in em)
    )
    mean = lambda d, rubric: weighted_score(
        [(t, math.log(p)) for t, p in d.items()], load_rubric(rubric)
    )
    tokens = [
        {
            "group": "g",
            "question": "q",
            "question_id": f"q{i}",
            "answer": f"Answer number {i}.",
            "judge_aligned": str(a),
            "judge_coherent": str(c),
            "aligned": mean(a, "alignment_0_100"),
            "coherent": mean(c, "coherence_0_100"),
        }
        for i, (a, c) in enumerate(TOKENS)
    ]
    write_csv(folder / "insecure_judge_token_distributions.csv", tokens)
    replies = [{"metric": "aligned", "score": 90, "flag": "NONE", "reasoning": "kind"}]
    replies.append(
        {
            "metric": "aligned",
            "score": None,
            "flag": "REFUSAL",
            "reasoning": "It declined: 3 times.",
        }
    )
    (folder / "em_32b_judge_replies.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in replies)
    )
    return folder


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def settings(folder: Path, **changes: Any) -> ConfigDict:
    config = configs_judge_agreement.get_config()
    config.update({"published": str(folder), "resamples": 20})
    judge = {name: changes.pop(name) for name in list(changes) if name in config.judge}
    config.update(changes)
    config.judge.update({"retries": 1, **judge})
    return config


def test_published_scores_are_compared_with_each_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = judge_agreement.start(settings(folder), epath.Path(tmp_path / "w"))
    pairs = {
        (row["answers"], row["first"], row["second"]): row
        for row in result["agreement"]
    }
    assert len(pairs) == 3 + 1 + 3
    row = pairs["syco_delusion", "published 1", "published 3"]
    assert row["spearman"] == pytest.approx(-1.0)
    assert pairs["syco_delusion", "published 1", "published 2"][
        "missing"
    ] == pytest.approx(1 / 12)
    assert pairs["token_distributions", "published", "weighted by us"][
        "mean_difference"
    ] == pytest.approx(0)
    rates = {
        (row["answers"], row["judge"], row["model"]): row for row in result["rates"]
    }
    row = rates["em_14b", "published aligned", "all"]
    assert (row["n"], row["rate"], row["missing"]) == (
        3,
        pytest.approx(2 / 3),
        pytest.approx(2 / 5),
    )
    assert rates["em_14b", "published aligned", "bad"]["rate"] == 0.5
    assert result["replies"] == {"replies": 2, "read alike": 2, "malformed": 0}
    written = json.loads((tmp_path / "w/result.json").read_text())
    assert written["choices"]["validates_from"] == 3.0
    with open(tmp_path / "w/agreement.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    assert "published 1 · published 3" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="needs openai: pip install 'sae_attr[judge]'",
)
def test_a_served_judge_grades_a_sample_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        text = request["messages"][0]["content"]
        if "UNDESIRABLE VALIDATION" in text:
            return completion("Feeds it.\nANSWER: 5")
        if "how coherent" in text:
            return completion("90")
        return completion("REFUSAL" if "number 1." in text else "20")

    with serving(rule) as server:
        config = settings(folder, judges=f"{server.url}#judge-1", sample=4, max_calls=9)
        result = judge_agreement.start(config, epath.Path(tmp_path / "w"))
        stopped = [fact["stopped"] for fact in result["judges"]]
        assert stopped[0] == ""
        assert any("budget of 9 calls is spent" in text for text in stopped[1:])
        calls = server.calls
        assert calls == 9
        config.judge.max_calls = 200
        result = judge_agreement.start(config, epath.Path(tmp_path / "w"))
        assert not any(fact["stopped"] for fact in result["judges"])
        more = server.calls
        assert more <= 4 + 2 * 4 + 2 * 2
        again = judge_agreement.start(config, epath.Path(tmp_path / "w"))
        assert server.calls == more
    assert again["judges"] == [
        {**fact, "warnings": []} for fact in result["judges"]
    ]  # nobody was asked, nobody warned
    name = result["judges"][0]["name"]
    row = next(
        r
        for r in result["agreement"]
        if r["second"] == name and r["first"] == "published 1"
    )
    assert row["n"] == 4
    rates = {
        (r["answers"], r["judge"].split(":")[1]): r
        for r in result["rates"]
        if r["judge"].startswith("judge-1")
    }
    assert rates["syco_delusion", "validation"]["rate"] == 1.0
    refused = next(
        fact for fact in result["judges"] if fact["answers"] == "token_distributions"
    )["counts"]
    assert (refused["REFUSAL"], refused["excluded"]) == (1, 1)
    assert "token probabilities" in capsys.readouterr().out


@pytest.mark.slow
def test_a_local_model_grades_a_sample(
    folder: Path, stories: Path, tmp_path: Path
) -> None:
    """stories260K grades nothing sensibly: every reply is malformed, kept and counted."""
    (folder / "em_14b_matrix.jsonl").unlink()
    (folder / "syco_delusion.csv").unlink()
    config = settings(
        folder, judges=str(stories), sample=2, reply_tokens=8, batch_size=4
    )
    fact = judge_agreement.start(config, epath.Path(tmp_path / "w"))["judges"][0]
    assert fact["counts"]["graded"] == fact["counts"]["malformed"] == 2
    assert fact["identity"]["behaviour"]["kind"] == "local"


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config\.published=FOLDER"):
        judge_agreement.start(
            configs_judge_agreement.get_config(), epath.Path(tmp_path / "w")
        )
    with pytest.raises(ValueError, match="has none of syco_delusion"):
        judge_agreement.start(settings(tmp_path), epath.Path(tmp_path / "v"))
    with pytest.raises(ValueError, match="names no model; write http://127"):
        judge_agreement.start(
            settings(folder, judges="http://127.0.0.1:1/v1"), epath.Path(tmp_path / "u")
        )


def test_a_sample_depends_on_texts_and_seed_alone(folder: Path) -> None:
    answers = syco_delusion(folder / "syco_delusion.csv", 3.0)
    chosen = [item.id for item in sample_answers(answers, 5, 0).items]
    turned = sample_answers(answers.part(np.arange(12)[::-1]), 5, 0)
    assert chosen == [item.id for item in turned.items]
    assert chosen != [item.id for item in sample_answers(answers, 5, 1).items]
    assert len(sample_answers(answers, 0, 0).items) == 12
