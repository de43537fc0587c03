"""Nothing is graded twice, whatever becomes of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_attr.judge import Grade, Item, Judge, JudgeStopped, cached
from tests.judge._rule import RuleJudge, items

TEXTS = ("1", "5", "REFUSAL", "no idea", "3", "ANSWER: 4")


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
    assert b["i3"].malformed


def test_a_cached_judge_is_a_judge_with_the_identity_of_the_one_behind_it(tmp_path: Path) -> None:
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
        kept = sum(end <= cut or end == cut + 1 for end in ends)  # a line that lacks its \n alone is whole
        assert judge.asked == list(TEXTS[kept:])
        again = RuleJudge()
        assert dict(cached(again, folder).grade(items(*TEXTS))) == whole
        assert again.asked == []


def test_lines_that_are_no_grades_are_left_out(tmp_path: Path) -> None:
    whole = dict(cached(RuleJudge(), tmp_path).grade(items(*TEXTS)))
    path = rows_file(tmp_path)
    strange = [b"\x00\x00\x00", b"[1, 2]", b'{"label": "4"}', b'{"key": "x"}', b"\xff\xfe"]
    path.write_bytes(b"\n".join(strange) + b"\n" + path.read_bytes())
    judge = RuleJudge()
    assert dict(cached(judge, tmp_path).grade(items(*TEXTS))) == whole
    assert judge.asked == []


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sorted(cached(RuleJudge(), tmp_path).known(items("2", "3", "1"))) == ["i0", "i2"]
