"""The parts of a case study that need no model: prompts, sampling that goes on,
grading, pairs, selection.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.judge import Grade, Item
from sae_attr.store import Store
from sae_attr.study import checking
from sae_attr.study.facts import one_sided_warning
from sae_attr.study.grading import Graded, graded, known_mean
from sae_attr.study.latents import outside
from sae_attr.study.pairing import jsonl, make_pairs, sides_of
from sae_attr.study.prompts import SPLITS, split_prompts
from sae_attr.study.samples import Rows, every_row, padded, sampled, unpadded
from sae_attr.study.selection import arms_by_sign, arms_of, select, with_unsteered
from sae_attr.text.pairs import Prompt, read_pairs, read_prompts

# ---- prompts


def splits(path: Path) -> dict[str, tuple[Prompt, ...]]:
    return split_prompts(read_prompts(path), path=str(path))


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_splits_share_nothing_and_do_not_move_when_prompts_are_added(
    tmp_path: Path,
) -> None:
    records = [{"id": f"q{i}", "prompt": f"Question {i}?"} for i in range(200)]
    few, more = (
        splits(write(tmp_path / f"{n}.jsonl", records[:n])) for n in (100, 200)
    )
    ids = [p.id for split in SPLITS for p in more[split]]
    assert sorted(ids) == sorted(r["id"] for r in records)
    for split in SPLITS:
        assert set(few[split]) <= set(more[split])
    assert 70 <= len(more["pairs"]) <= 130


def test_named_splits_and_messages_are_kept(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    records = [{"prompt": str(i), "split": split} for i, split in enumerate(SPLITS)] + [
        {"prompt": messages, "split": "pairs"}
    ]
    found = splits(write(tmp_path / "p.jsonl", records))
    assert [len(found[s]) for s in SPLITS] == [2, 1, 1]
    assert found["pairs"][1].prompt == tuple(messages)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"prompt": "a"}, {"prompt": "a"}],
            "p.jsonl:2: the prompt of 'line-1' on line 1 stands here again",
        ),
        (
            [{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}],
            "p.jsonl:2: id '1' stands on line 1 too",
        ),
        ([{"text": ""}], "p.jsonl:1 has no 'prompt'"),
        (["text"], "p.jsonl:1 has no 'prompt'"),
        ([{"prompt": [{"role": "user"}]}], "needs the strings role and content"),
        ([{"prompt": "a", "split": "test"}], "split 'test' is unknown"),
        ([{"prompt": "a", "split": "pairs"}], "no prompt in the split 'strengths'"),
    ],
)
def test_prompts_that_cannot_be_used(
    tmp_path: Path, records: Sequence[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        splits(write(tmp_path / "p.jsonl", records))


# ---- sampling


def test_a_stopped_list_of_rows_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    calls: list[list[int]] = []

    def answer(rows: Rows) -> list[list[int]]:
        calls.append(rows.prompt_r.tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [[int(p), 7] for p in rows.prompt_r]

    rows, progress = every_row(1, 10, 1), Store(tmp_path).progress("s")
    options: dict[str, Any] = {"batch_size": 4, "name": "x", "bar": False}
    with pytest.raises(KeyboardInterrupt):
        sampled(answer, rows, progress, **options)
    assert sampled(answer, rows, progress, **options) == [[p, 7] for p in range(10)]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [8, 9]]
    assert (
        len(sampled(answer, rows, progress, **{**options, "batch_size": 5})) == 10
    )  # another size takes nothing over
    assert len(calls) == 6


def test_padding_is_undone() -> None:
    ids = [[1, 2, 3], [], [0]]
    assert list(unpadded(padded(ids, 4))) == ids


# ---- grading


class Parity:
    """Even numbers have the behaviour, odd ones not; 9 is set aside and incoherent; 5
    gets a reply that cannot be read.
    """

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": "parity"}

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        for item in reversed(items):  # in any order
            number = int(item.completion)
            if number == 9:
                yield item.id, Grade("INCOHERENT", excluded=True, coherent=0.0)
            elif number == 5:
                yield item.id, Grade("MALFORMED", malformed=True)
            else:
                yield (
                    item.id,
                    Grade(str(number), behaviour=float(number % 2 == 0), coherent=1.0),
                )


def item(name: str, p: int, ids: list[int]) -> Item:
    return Item(name, f"prompt {p}", str(ids[0]))


def test_excluded_answers_are_sampled_again_and_coherence_is_of_the_first_attempt(
    tmp_path: Path,
) -> None:
    first = [2, 3, 9, 9, 5]
    second = {
        2: [9, 4],
        3: [9, 9, 9],
    }  # row 2 becomes 4 at the second attempt, row 3 never
    asked: list[tuple[int, int]] = []

    def answer(rows: Rows) -> list[list[int]]:
        asked.extend(zip(rows.prompt_r.tolist(), rows.attempt_r.tolist()))
        return [
            [second[int(p)][int(a) - 1]] for p, a in zip(rows.prompt_r, rows.attempt_r)
        ]

    found, counts = graded(
        every_row(1, 5, 1),
        padded([[n] for n in first], 3),
        Parity(),
        item,
        answer,
        Store(tmp_path).progress("g"),
        attempts=3,
        batch_size=2,
        bar=False,
    )
    np.testing.assert_array_equal(found.behaviour_r, [1, 0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(found.coherent_r, [1, 1, 0, 0, np.nan])
    assert found.attempt_r.tolist() == [0, 0, 2, 3, 0]
    assert [ids[0] for ids in unpadded(found.tokens_rn)] == [2, 3, 4, 9, 5]
    assert asked == [(2, 1), (3, 1), (2, 2), (3, 2), (3, 3)]
    assert counts["missing"] == 2
    assert counts["malformed"] == 1
    assert counts["resampled"] == 5
    again = Graded.load(found.arrays(), {"labels": list(found.labels_r)})
    np.testing.assert_array_equal(again.behaviour_r, found.behaviour_r)


def test_a_mean_is_of_what_is_known() -> None:
    assert known_mean(np.array([1.0, np.nan, 0.0])) == 0.5
    assert np.isnan(known_mean(np.full((2, 3), np.nan)))


@pytest.mark.parametrize("unsteered", [np.nan, 1.0])
def test_strengths_by_samples_need_a_judge_that_tells_coherence(
    monkeypatch: pytest.MonkeyPatch, unsteered: float
) -> None:
    """Beside an unsteered model of unknown coherence every strength would pass."""
    coherent = np.array([[[unsteered]], [[np.nan]]])
    tokens_rn, nothing = np.array([[7], [8]]), np.zeros(2)
    graded_as = lambda coherent: Graded(
        tokens_rn, nothing, coherent.ravel(), nothing.astype(int), ("4", "MALFORMED")
    )
    trial = SimpleNamespace(
        shape=(2, 1, 1),
        rows=every_row(2, 1, 1),
        sample=lambda progress, name: (np.zeros((2, 1), int), {"samples": 2}),
        grade=lambda tokens, progress, attempts: (graded_as(coherent), {}),
    )
    monkeypatch.setattr(checking, "Trial", lambda *args: trial)
    case: Any = SimpleNamespace(
        settings=SimpleNamespace(name="own"),
        study=SimpleNamespace(strength_samples=1),
        judge=SimpleNamespace(),
        measures_coherence=False,
    )
    run = lambda: checking._sampled_coherence(case, "away", None, 1.0, None)  # type: ignore[arg-type]
    if np.isnan(unsteered):
        with pytest.raises(ValueError, match=r"cases\.own\.judge\.coherence=coherence"):
            run()
    else:
        coherent_k, unread, _ = run()
        np.testing.assert_array_equal(coherent_k, [1.0, 0.0])
        assert unread["unread_tokens_rn"].tolist() == [
            [8]
        ]  # asked again in the next run
        assert unread["unread_prompt_r"].tolist() == [0]


# ---- pairs


def grades(numbers: Sequence[Sequence[int]]) -> Graded:
    """Samples of prompts: even with, odd without, 9 set aside."""
    flat = np.array(numbers).ravel()
    behaviour = np.where(flat == 9, np.nan, (flat % 2 == 0).astype(float))
    coherent = np.where(flat == 9, 0.0, 1.0)
    zeros = np.zeros(len(flat), int)
    return Graded(
        flat[:, None].astype(np.int32),
        behaviour,
        coherent,
        zeros,
        tuple(map(str, flat)),
    )


def pairs_of(
    numbers: Sequence[Sequence[int]], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    found = grades(numbers)
    prompts = [Prompt(f"q{i}", f"Question {i}") for i in range(len(numbers))]
    texts = [str(int(row[0])) for row in found.tokens_rn]
    settings: dict[str, Any] = {
        "samples": len(numbers[0]),
        "sampler": "hash",
        "limit": 9,
        "per_side": 2,
        **options,
    }
    return make_pairs(
        prompts, [[1, i] for i in range(len(numbers))], found, texts, **settings
    )


def test_pairs_are_prompts_with_both_kinds_distinct_and_read_back(
    tmp_path: Path,
) -> None:
    records, counts = pairs_of(
        [[2, 2, 4, 3], [2, 4, 6, 8], [1, 3, 9, 5], [9, 9, 9, 9], [6, 9, 9, 1]]
    )
    assert counts == {"both": 2, "only_with": 1, "only_without": 1, "neither": 1}
    assert [r["id"] for r in records] == ["q0", "q4"]
    assert records[0]["positive_ids"] == [[2], [4]]  # 2 stands once
    (tmp_path / "pairs.jsonl").write_text(jsonl(records))
    back = read_pairs(tmp_path / "pairs.jsonl")
    assert back[0].sampler == "hash"
    assert back[1].negative_ids == ((1,),)
    assert back[1].prompt_ids == (1, 4)
    assert len(pairs_of([[2, 1], [2, 1]], limit=1)[0]) == 1
    assert pairs_of([[2, 4, 6, 1]], per_side=1)[0][0]["positive"] == ["2"]


def with_empty(
    numbers: Sequence[Sequence[int]], empty: Sequence[tuple[int, int]]
) -> Graded:
    """Graded answers of which some (prompt, sample) have no token, though the judge
    graded them.
    """
    found = grades(numbers)
    tokens_rn = found.tokens_rn.copy()
    for p, s in empty:
        tokens_rn[p * len(numbers[0]) + s] = -1
    return dataclasses.replace(found, tokens_rn=tokens_rn)


@pytest.mark.parametrize("side", [0, 1])
def test_an_answer_without_a_token_takes_its_prompt_out_before_prompts_are_chosen(
    side: int,
) -> None:
    numbers = [[2, 1], [4, 3], [6, 1]]
    found = with_empty(numbers, [(0, side)])
    prompts = [Prompt(f"q{i}", f"Question {i}") for i in range(3)]
    records, counts = make_pairs(
        prompts,
        [[1, i] for i in range(3)],
        found,
        [""] * 6,
        samples=2,
        sampler="hash",
        limit=2,
        per_side=1,
    )
    assert [r["id"] for r in records] == [
        "q1",
        "q2",
    ]  # the limit is filled by prompts that have both
    assert all(r["positive_ids"][0] and r["negative_ids"][0] for r in records)
    alone = "only_without" if side == 0 else "only_with"
    assert counts["both"] == 2
    assert counts[alone] == counts["lost_both"] == counts["left_out_empty"] == 1


def test_another_answer_stands_in_for_one_that_cannot_be_scored() -> None:
    found, prompts = with_empty([[2, 4, 1]], [(0, 0)]), [Prompt("q0", "Question")]
    records, counts = make_pairs(
        prompts,
        [[1]],
        found,
        ["", "4", "1"],
        samples=3,
        sampler="hash",
        limit=9,
        per_side=2,
    )
    assert records[0]["positive_ids"] == [[4]]
    assert counts["left_out_empty"] == 1
    assert "lost_both" not in counts


def test_answers_that_the_scope_leaves_nothing_of_and_those_on_both_sides_are_left_out() -> (
    None
):
    found = grades([[2, 4, 1], [6, 6, 3]])
    behaviour_r = found.behaviour_r.copy()
    behaviour_r[4] = 0.0  # the judge put 6 on both sides of the second prompt
    found = dataclasses.replace(found, behaviour_r=behaviour_r)
    sides = sides_of(found, 2, 3, lambda ids: ids != (4,))
    assert sides.reason_ps.tolist() == [
        ["", "not_scorable", ""],
        ["on_both_sides", "on_both_sides", ""],
    ]
    assert sides.counts() == {
        "both": 1,
        "only_with": 0,
        "only_without": 1,
        "neither": 0,
        "lost_both": 1,
        "left_out_not_scorable": 1,
        "left_out_on_both_sides": 2,
    }


def test_no_pairs_because_of_empty_answers_says_so() -> None:
    found, prompts = with_empty([[2, 1]], [(0, 0)]), [Prompt("q0", "Question")]
    with pytest.raises(ValueError, match="Left out were graded completions: 1 empty"):
        make_pairs(
            prompts,
            [[1]],
            found,
            ["", "1"],
            samples=2,
            sampler="hash",
            limit=9,
            per_side=2,
        )


def test_no_pairs_says_what_there_was() -> None:
    with pytest.raises(
        ValueError,
        match="2 gave the behaviour alone, 1 its absence alone, 1 nothing that could be used",
    ):
        pairs_of([[2, 4], [6, 6], [1, 1], [9, 9]])


# ---- selection


def test_selection_matches_random_latents_and_arms_cover_every_strip() -> None:
    n = 40
    rng = np.random.default_rng(0)
    scores = {
        "gradient_prompt": rng.normal(size=n),
        "firing_rate": rng.uniform(0.01, 0.5, n),
        "delta_activation": rng.normal(size=n),
    }
    found, skipped = select(
        {"delta_attribution": [5, 3, 8, 1]},
        scores,
        scope="prompt",
        top=3,
        random=6,
        key=jax.random.key(0),
        methods=("delta_attribution", "delta_activation", "delta_code"),
    )
    assert found.methods["delta_attribution"].tolist() == [5, 3, 8]
    best = np.argsort(-scores["delta_activation"])[:3]
    assert found.methods["delta_activation"].tolist() == best.tolist()
    assert set(skipped) == {"delta_code"}
    assert not set(found.methods["random"]) & {5, 3, 8, *best.tolist()}
    assert len(found.methods["random"]) == 6
    for direction, sign in (("away", -1), ("toward", 1)):
        arms = arms_of(found, direction, gradient_signed=True)
        pairs = list(zip(arms.latents_k.tolist(), arms.strengths_k.tolist()))
        assert len(set(pairs)) == len(pairs)
        fixed, signed = (
            arms_by_sign(found, arms, direction, signed=s) for s in (False, True)
        )
        assert (
            arms.latents_k[fixed].tolist()
            == arms.latents_k[signed].tolist()
            == found.latents_u.tolist()
        )
        assert set(arms.strengths_k[fixed]) == {sign}
        np.testing.assert_array_equal(
            arms.strengths_k[signed], np.where(found.push_u < 0, -sign, sign)
        )
        only = arms_of(found, direction, gradient_signed=False)
        assert arms_by_sign(found, only, direction, signed=False).tolist() == list(
            range(len(only))
        )
        whole = with_unsteered(arms)
        assert (whole.latents_k[0], whole.strengths_k[0]) == (-1, 0)


def test_scores_and_rates_of_candidates_alone_rank_and_match_nothing() -> None:
    few = np.full(40, np.nan)
    few[[1, 3, 5, 8]] = (0.1, 0.2, 0.3, 0.4)
    scores = {"gradient_prompt": np.zeros(40), "firing_rate": few, "delta_code": few}
    found, skipped = select(
        {"delta_attribution": [5, 3, 8, 1]},
        scores,
        scope="prompt",
        top=2,
        random=20,
        key=jax.random.key(0),
        methods=("delta_attribution", "delta_code"),
    )
    assert "known of 4 latents alone" in skipped["delta_code"]
    assert set(found.methods) == {"delta_attribution", "random"}
    assert len(found.methods["random"]) == 20
    assert set(found.methods["random"]) - {1, 3, 5, 8}


def test_the_studied_method_must_have_scores() -> None:
    scores = {"gradient_prompt": np.zeros(4), "firing_rate": np.ones(4)}
    with pytest.raises(
        ValueError, match="'delta_code' is to be studied, but it has no score"
    ):
        select(
            {},
            scores,
            scope="prompt",
            methods=("delta_code",),
            top=2,
            random=0,
            key=jax.random.key(0),
        )


# ---- what readers are told


@pytest.mark.parametrize(
    ("away", "toward", "warned"),
    [(30, 2, True), (30, 28, False), (1, 0, False), (0, 0, False)],
)
def test_a_judge_that_refuses_one_side_is_told_with_both_rates(
    away: int, toward: int, warned: bool
) -> None:
    result = lambda unread: SimpleNamespace(
        meta={
            "counts": {"malformed": unread, "labels": {"4": 100 - unread, "X": unread}}
        }
    )
    judged: Any = {"away": result(away), "toward": result(toward)}
    found = one_sided_warning(judged)
    assert bool(found) == warned
    assert all("30 % steering away and 2 % steering toward" in text for text in found)


def test_without_a_random_band_no_latent_is_outside_it() -> None:
    assert not outside(-0.5, None, "away")
    assert not outside(None, (-0.1, 0.1), "toward")
    assert outside(-0.5, (-0.1, 0.1), "away")
    assert outside(0.5, (-0.1, 0.1), "toward")
    assert not outside(0.5, (-0.1, 0.1), "away")
