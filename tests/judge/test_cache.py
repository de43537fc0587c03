"""Nothing is graded twice, whatever becomes of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sae_attr.judge import (
    Grade,
    Item,
    Judge,
    JudgeStopped,
    cached,
    load_rubric,
    read_reply,
)
from tests.judge._rule import RuleJudge, items

TEXTS = ("1", "5", "REFUSAL", "2", "3", "ANSWER: 4")


def rows_file(folder: Path) -> Path:
    return next(folder.rglob("rows.jsonl"))


def test_the_second_run_asks_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first, second = RuleJudge(), RuleJudge()
    a = dict(cached(first, tmp_path).grade(items(*TEXTS)))
    b = dict(cached(second, tmp_path).grade(items(*TEXTS)))
    assert a == b == dict(RuleJudge().grade(items(*TEXTS)))
    assert first.asked == list(TEXTS)
    assert second.asked == []
    assert b["i2"].excluded


def test_a_reply_that_could_not_be_read_is_kept_and_asked_again_in_the_next_run(
    tmp_path: Path,
) -> None:
    texts = (*TEXTS, "no idea", "nor I")
    first = cached(RuleJudge(), tmp_path)
    assert dict(first.grade(items(*texts)))["i6"].malformed
    assert b"no idea" in rows_file(tmp_path).read_bytes()  # as evidence
    second = RuleJudge()
    assert dict(cached(second, tmp_path).grade(items(*texts)))["i6"].malformed
    assert second.asked == ["no idea", "nor I"]


@dataclass
class Mended(RuleJudge):
    """The same judge after its server was mended: it answers what could not be read
    before.
    """

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        for name, grade in super().grade(items):
            yield (
                name,
                read_reply("4", load_rubric(self.rubric)) if grade.malformed else grade,
            )


def test_a_mended_judge_replaces_what_could_not_be_read(tmp_path: Path) -> None:
    texts = (*TEXTS, "no idea")
    dict(cached(RuleJudge(), tmp_path).grade(items(*texts)))
    assert dict(cached(Mended(), tmp_path).grade(items(*texts)))["i6"].score == 4
    third = RuleJudge()
    assert dict(cached(third, tmp_path).grade(items(*texts)))["i6"].score == 4
    assert third.asked == []


@pytest.mark.parametrize(
    ("readable", "total", "stops"),
    [(24, 200, True), (26, 200, False), (0, 12, True), (1, 4, False)],
)
def test_a_judge_whose_first_replies_cannot_be_read_is_stopped_early(
    tmp_path: Path, readable: int, total: int, stops: bool
) -> None:
    texts = [
        f"{1 + i % 5}" if i < readable else f"no idea {'about it ' * i}"
        for i in range(total)
    ]
    people = [Item(f"i{i}", f"Question {i}?", text) for i, text in enumerate(texts)]
    judge = RuleJudge()
    if not stops:
        assert len(dict(cached(judge, tmp_path).grade(people))) == total
        return
    seen = min(50, total)
    with pytest.raises(
        JudgeStopped,
        match=f"{seen - readable} of the first {seen} replies of rule.* cannot be read",
    ) as stop:
        dict(cached(judge, tmp_path).grade(people))
    assert "for instance 'no idea" in str(stop.value)
    assert len(judge.asked) == seen


def test_a_cached_judge_is_a_judge_with_the_identity_of_the_one_behind_it(
    tmp_path: Path,
) -> None:
    judge = RuleJudge()
    outer = cached(cached(judge, tmp_path / "a"), tmp_path / "b")
    assert isinstance(outer, Judge)
    assert outer.identity == judge.identity
    assert len(dict(outer.grade(items(*TEXTS)))) == 6
    written = json.loads(next((tmp_path / "a").rglob("identity.json")).read_text())
    assert written == judge.identity


def test_equal_texts_are_graded_once_within_a_run(tmp_path: Path) -> None:
    judge = RuleJudge()
    found = dict(cached(judge, tmp_path).grade(items("4", "2", "4", "4")))
    assert judge.asked == ["4", "2"]
    assert [found[f"i{k}"].score for k in range(4)] == [4, 2, 4, 4]


def test_another_prompt_rubric_or_judge_is_graded_anew(tmp_path: Path) -> None:
    dict(cached(RuleJudge(), tmp_path).grade(items("4")))
    for judge, item in (
        (RuleJudge(rubric="validation"), Item("i0", "What now?", "4")),
        (RuleJudge(name="other"), Item("i0", "What now?", "4")),
        (RuleJudge(), Item("i0", "What then?", "4")),
        (RuleJudge(), Item("i0", ({"role": "user", "content": "What now?"},), "4")),
    ):
        dict(cached(judge, tmp_path).grade([item]))
        assert judge.asked == ["4"]


def test_every_grade_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    grades = cached(RuleJudge(), tmp_path).grade(items(*TEXTS))
    for count in range(1, 4):
        next(grades)
        assert len(rows_file(tmp_path).read_text().splitlines()) == count


def test_what_was_graded_before_a_stop_is_kept(tmp_path: Path) -> None:
    found: dict[str, Grade] = {}
    with pytest.raises(JudgeStopped, match="enough"):
        found.update(cached(RuleJudge(limit=4), tmp_path).grade(items(*TEXTS)))
    assert len(found) == 4
    later = RuleJudge()
    assert dict(cached(later, tmp_path).grade(items(*TEXTS))).items() >= found.items()
    assert later.asked == list(TEXTS[4:])


def test_a_file_cut_at_any_byte_loses_the_last_line_at_most(tmp_path: Path) -> None:
    whole = dict(cached(RuleJudge(), tmp_path / "whole").grade(items(*TEXTS)))
    data = rows_file(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(0, len(data), 37):
        folder = tmp_path / str(cut)
        target = folder / rows_file(tmp_path / "whole").relative_to(tmp_path / "whole")
        target.parent.mkdir(parents=True)
        target.write_bytes(data[:cut])
        judge = RuleJudge()
        assert dict(cached(judge, folder).grade(items(*TEXTS))) == whole
        kept = sum(
            end <= cut or end == cut + 1 for end in ends
        )  # a line that lacks its \n alone is whole
        assert judge.asked == list(TEXTS[kept:])
        again = RuleJudge()
        assert dict(cached(again, folder).grade(items(*TEXTS))) == whole
        assert again.asked == []


def test_lines_that_are_no_grades_are_left_out(tmp_path: Path) -> None:
    whole = dict(cached(RuleJudge(), tmp_path).grade(items(*TEXTS)))
    path = rows_file(tmp_path)
    strange = [
        b"\x00\x00\x00",
        b"[1, 2]",
        b'{"label": "4"}',
        b'{"key": "x"}',
        b"\xff\xfe",
    ]
    path.write_bytes(b"\n".join(strange) + b"\n" + path.read_bytes())
    judge = RuleJudge()
    assert dict(cached(judge, tmp_path).grade(items(*TEXTS))) == whole
    assert judge.asked == []


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = cached(RuleJudge(), tmp_path)._progress.append, [0]

    def append(self: object, rows: list[dict[str, object]]) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        real(rows)

    monkeypatch.setattr("sae_attr.store.Progress.append", append)
    found: dict[str, Grade] = {}
    with pytest.raises(OSError, match="No space left"):
        found.update(cached(RuleJudge(), tmp_path).grade(items(*TEXTS)))
    assert list(found) == ["i0", "i1"]
    judge = RuleJudge()
    dict(cached(judge, tmp_path).grade(items(*TEXTS)))
    assert judge.asked == list(TEXTS[2:])


def test_known_grades_can_be_asked_for_alone(tmp_path: Path) -> None:
    dict(cached(RuleJudge(), tmp_path).grade(items("1", "2")))
    assert sorted(cached(RuleJudge(), tmp_path).stored(items("2", "3", "1"))) == [
        "i0",
        "i2",
    ]
