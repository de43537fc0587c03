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
from sae_attr.steering.plan import UNSTEERED, Condition, Plan, SweepRow
from sae_attr.steering.sweep import SampledRow
from sae_attr.store import Store
from sae_attr.study.case_findings import one_sided_warning
from sae_attr.study.grading import (
    GradedAnswers,
    Grader,
    grade_plan,
    mean_of_known,
    padded,
    unpadded,
)
from sae_attr.study.latent_table import outside
from sae_attr.study.prompts import SPLITS, split_prompts
from sae_attr.study.selection import select
from sae_attr.study.stages import strengths
from sae_attr.study.sweep_conditions import SideStrengths, side_of, sides_of
from sae_attr.text.pairing import (
    Answer,
    first_answers,
    first_distinct,
    jsonl,
    pair_records,
    pairing_counts,
    prompt_sides,
    sampled_pairs,
)
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


def test_a_group_lies_in_one_split(tmp_path: Path) -> None:
    records = []
    for i in range(150):
        prompt, group = f"Question {i}?", f"belief {i // 3}"
        records.append({"id": f"q{i}", "prompt": prompt, "group": group})
    of_groups = splits(write(tmp_path / "drawn.jsonl", records))
    groups = [{p.group for p in of_groups[split]} for split in SPLITS]
    assert [len(of_groups[split]) for split in SPLITS] == [3 * len(g) for g in groups]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    records[4]["split"] = "effects"
    records[3]["split"] = records[5]["split"] = "pairs"
    named = write(tmp_path / "named.jsonl", records)
    message = r"named.jsonl:5: group 'belief 1' has prompt 'q3' \(line 4\)"
    with pytest.raises(ValueError, match=message):
        splits(named)


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


def item(name: str, prompt: str, ids: list[int]) -> Item:
    return Item(name, prompt, str(ids[0]))


def test_excluded_answers_are_sampled_again_and_coherence_is_of_the_first_attempt(
    tmp_path: Path,
) -> None:
    first = [2, 3, 9, 9, 5]
    second = {
        "2": [9, 4],
        "3": [9, 9, 9],
    }  # prompt 2 becomes 4 at the second attempt, prompt 3 never
    asked: list[tuple[str, int]] = []

    def sample(rows: Sequence[SweepRow]) -> Iterator[list[SampledRow]]:
        for row in rows:
            asked.append((row.prompt, row.attempt))
            yield [SampledRow(row, (second[row.prompt][row.attempt - 1],), True, -1.0)]

    plan = Plan((UNSTEERED,), tuple("01234"), 1)
    found, counts = grade_plan(
        plan,
        padded([[n] for n in first], 3),
        Grader(Parity(), item, sample, attempts=3, bar=False),
        Store(tmp_path).progress("g"),
    )
    np.testing.assert_array_equal(found.behaviour_r, [1, 0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(found.coherent_r, [1, 1, 0, 0, np.nan])
    assert found.attempt_r.tolist() == [0, 0, 2, 3, 0]
    assert [ids[0] for ids in unpadded(found.tokens_rn)] == [2, 3, 4, 9, 5]
    assert asked == [("2", 1), ("3", 1), ("2", 2), ("3", 2), ("3", 3)]
    assert counts["missing"] == 2
    assert counts["malformed"] == 1
    assert counts["resampled"] == 5
    assert found.unread() == [{"prompt": "4", "ids": [5]}]  # asked again next time
    again = GradedAnswers.load(plan, found.arrays(), {"labels": list(found.labels_r)})
    np.testing.assert_array_equal(again.behaviour_r, found.behaviour_r)


def test_answers_are_looked_up_by_condition_prompt_and_sample() -> None:
    one, other = (Condition.steered(latent, -0.5) for latent in (3, 8))
    plan = Plan((UNSTEERED, one, other), ("a", "b"), 2)
    numbers = np.arange(12)
    graded = GradedAnswers(
        plan,
        numbers[:, None].astype(np.int32),
        numbers / 12,
        np.ones(12),
        np.zeros(12, int),
        tuple(map(str, numbers)),
    )
    answers = graded.answers(other, str)
    for row, number in zip(plan.rows, numbers, strict=True):
        if row.condition == other:
            answer = answers[row.prompt, row.sample]
            assert (answer.ids, answer.label) == ((number,), str(number))
            assert graded.behaviour()[other].ravel()[number - 8] == number / 12


def test_a_mean_is_of_what_is_known() -> None:
    assert mean_of_known(np.array([1.0, np.nan, 0.0])) == 0.5
    assert np.isnan(mean_of_known(np.full((2, 3), np.nan)))


@pytest.mark.parametrize("unsteered", [np.nan, 1.0])
def test_strengths_by_samples_need_a_judge_that_tells_coherence(
    monkeypatch: pytest.MonkeyPatch, unsteered: float
) -> None:
    """Beside an unsteered model of unknown coherence every strength would pass."""
    steered = Condition.steered(3, -0.5, direction="away")
    plan = Plan((UNSTEERED, steered), ("q",), 1)
    graded = GradedAnswers(
        plan,
        np.array([[7], [8]]),
        np.zeros(2),
        np.array([unsteered, np.nan]),
        np.zeros(2, int),
        ("4", "MALFORMED"),
    )
    sweep = SimpleNamespace(
        sample=lambda progress, name: (graded.tokens_rn, {"samples": 2, "tokens": 2}),
        grade=lambda tokens, progress, attempts: (graded, {}),
    )
    monkeypatch.setattr(strengths, "CaseSweep", lambda *args: sweep)
    case: Any = SimpleNamespace(
        name="own",
        study=SimpleNamespace(
            strength_samples=1, coherence_by="judge", strengths_by="samples"
        ),
        judge=SimpleNamespace(),
    )
    nothing: Any = None
    run = lambda: strengths.sampled_coherence(
        case, "away", plan.conditions, 1.0, nothing
    )
    if np.isnan(unsteered):
        with pytest.raises(ValueError, match=r"cases\.own\.judge\.coherence=coherence"):
            run()
    else:
        measured = run()
        assert measured.share == {UNSTEERED: 1.0, steered: 0.0}
        assert measured.facts["unread"] == [{"prompt": "q", "ids": [8]}]


# ---- pairs


def grades(numbers: Sequence[Sequence[int]]) -> list[list[Answer]]:
    """Samples of prompts: even with, odd without, 9 excluded."""
    graded = []
    for row in numbers:
        graded.append([graded_answer(Answer(str(n), (n,))) for n in row])
    return graded


def graded_answer(answer: Answer) -> Answer:
    number = int(answer.text)
    if number == 9:
        return dataclasses.replace(answer, coherent=0.0)
    behaviour = float(number % 2 == 0)
    return dataclasses.replace(answer, behaviour=behaviour, coherent=1.0)


def asked_prompts(count: int) -> list[Prompt]:
    return [Prompt(f"q{i}", f"Question {i}", prompt_ids=(1, i)) for i in range(count)]


def pairs_of(
    answers: Sequence[Sequence[Answer]], limit: int = 9, per_side: int = 2
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    return pair_records(
        asked_prompts(len(answers)),
        answers,
        sampler="hash",
        limit=limit,
        pick=first_distinct(per_side),
    )


def test_pairs_are_prompts_with_both_kinds_distinct_and_read_back(
    tmp_path: Path,
) -> None:
    records, counts = pairs_of(
        grades([[2, 2, 4, 3], [2, 4, 6, 8], [1, 3, 9, 5], [9, 9, 9, 9], [6, 9, 9, 1]])
    )
    assert counts == {"both": 2, "only_with": 1, "only_without": 1, "neither": 1}
    assert [r["id"] for r in records] == ["q0", "q4"]
    assert records[0]["positive_ids"] == [[2], [4]]  # 2 is there once
    (tmp_path / "pairs.jsonl").write_text(jsonl(records))
    back = read_pairs(tmp_path / "pairs.jsonl")
    assert back[0].sampler == "hash"
    assert back[1].negative_ids == ((1,),)
    assert back[1].prompt_ids == (1, 4)
    assert len(pairs_of(grades([[2, 1], [2, 1]]), limit=1)[0]) == 1
    assert pairs_of(grades([[2, 4, 6, 1]]), per_side=1)[0][0]["positive"] == ["2"]


def with_empty(
    numbers: Sequence[Sequence[int]], empty: Sequence[tuple[int, int]]
) -> list[list[Answer]]:
    """Graded answers of which some (prompt, sample) have no token, though the judge
    graded them.
    """
    answers = grades(numbers)
    for p, s in empty:
        answers[p][s] = dataclasses.replace(answers[p][s], ids=(), text="")
    return answers


@pytest.mark.parametrize("side", [0, 1])
def test_an_answer_without_a_token_takes_its_prompt_out_before_prompts_are_chosen(
    side: int,
) -> None:
    answers = with_empty([[2, 1], [4, 3], [6, 1]], [(0, side)])
    records, counts = pairs_of(answers, limit=2, per_side=1)
    assert [r["id"] for r in records] == [
        "q1",
        "q2",
    ]  # the limit is filled by prompts that have both
    assert all(r["positive_ids"][0] and r["negative_ids"][0] for r in records)
    alone = "only_without" if side == 0 else "only_with"
    assert counts["both"] == 2
    assert counts[alone] == counts["lost_both"] == counts["left_out_empty"] == 1


def test_another_answer_stands_in_for_one_that_cannot_be_scored() -> None:
    records, counts = pairs_of(with_empty([[2, 4, 1]], [(0, 0)]))
    assert records[0]["positive_ids"] == [[4]]
    assert counts["left_out_empty"] == 1
    assert "lost_both" not in counts


def test_answers_that_the_scope_leaves_nothing_of_and_those_on_both_sides_are_left_out() -> (
    None
):
    answers = grades([[2, 4, 1], [6, 6, 3]])
    # The judge put 6 on both sides of the second prompt.
    answers[1][1] = dataclasses.replace(answers[1][1], behaviour=0.0)
    sides = [prompt_sides(of_prompt, lambda ids: ids != (4,)) for of_prompt in answers]
    assert [side.reasons for side in sides] == [
        ("not_scorable",),
        ("on_both_sides", "on_both_sides"),
    ]
    assert pairing_counts(sides) == {
        "both": 1,
        "only_with": 0,
        "only_without": 1,
        "neither": 0,
        "lost_both": 1,
        "left_out_not_scorable": 1,
        "left_out_on_both_sides": 2,
    }


def test_no_pairs_because_of_empty_answers_says_so() -> None:
    with pytest.raises(ValueError, match="Left out were graded completions: 1 empty"):
        pairs_of(with_empty([[2, 1]], [(0, 0)]))


def test_no_pairs_says_what_there_was() -> None:
    with pytest.raises(
        ValueError,
        match="of 4 prompts with 2 samples each, 2 gave the behaviour alone, 1 its "
        "absence alone, 1 nothing that could be used",
    ):
        pairs_of(grades([[2, 4], [6, 6], [1, 1], [9, 9]]))


def test_pairs_are_sampled_graded_and_paired_in_one_call() -> None:
    """Without token ids, with the caller's rule of which answers are written."""
    texts = [["2", "2", "1"], ["9", "3", "5"], ["4", "1", "1"]]
    pairs = sampled_pairs(
        asked_prompts(3),
        lambda prompts: [[Answer(text) for text in texts[i]] for i in range(3)],
        lambda prompt, answers: [graded_answer(answer) for answer in answers],
        sampler="hash",
        limit=1,
        pick=first_answers(2),
    )
    assert [record["positive"] for record in pairs.records] == [["2", "2"]]
    assert "positive_ids" not in pairs.records[0]
    assert pairs.counts["both"] == 2
    assert [answer.coherent for answer in pairs.answers[1]] == [0.0, 1.0, 1.0]
    nothing = sampled_pairs(
        asked_prompts(1),
        lambda prompts: [[Answer("1")]],
        lambda prompt, answers: [graded_answer(answer) for answer in answers],
        sampler="hash",
        limit=1,
        pick=first_answers(1),
        required=False,
    )
    assert nothing.records == []


# ---- selection


def test_selection_matches_random_latents_and_sides_cover_every_strip() -> None:
    n = 40
    rng = np.random.default_rng(0)
    scores = {
        "gradient_prompt": rng.normal(size=n),
        "gradient_all": rng.normal(size=n),
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
        methods=(
            "delta_attribution",
            "delta_activation",
            "delta_code",
            "gradient",
            "gradient_all",
            "gradient_completion",
        ),
    )
    assert found.methods["delta_attribution"].tolist() == [5, 3, 8]
    ranked = {
        "delta_activation": "delta_activation",
        "gradient": "gradient_prompt",
        "gradient_all": "gradient_all",
    }
    for method, score in ranked.items():
        best = np.argsort(-scores[score])[:3].tolist()
        assert found.methods[method].tolist() == best
        assert not set(found.methods["random"]) & {5, 3, 8, *best}
    assert set(skipped) == {"delta_code", "gradient_completion"}
    assert len(found.methods["random"]) == 6
    latents = found.latents_u.tolist()
    for direction, sign in (("away", -1), ("toward", 1)):
        sides = sides_of(found, direction, gradient_signed=True)
        assert len(set(sides)) == len(sides)
        fixed = side_of(found, direction, signed=False)
        signed = side_of(found, direction, signed=True)
        assert list(fixed) == list(signed) == latents
        assert set(sides) == {*fixed.values(), *signed.values()}
        for latent, push in zip(latents, found.push_u, strict=True):
            assert fixed[latent] == (latent, sign)
            assert signed[latent] == (latent, -sign if push < 0 else sign)
        only = sides_of(found, direction, gradient_signed=False)
        assert only == tuple(fixed.values())
        sizes = {side: 0.25 * k for k, side in enumerate(sides)}
        strengths = SideStrengths(sizes, direction, "all")
        assert strengths.conditions()[0] == UNSTEERED
        back = SideStrengths.load(strengths.arrays(), direction, "all")
        assert back.conditions() == strengths.conditions()
        for side in sides:
            assert back.condition(side).strength == side.sign * sizes[side]


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
