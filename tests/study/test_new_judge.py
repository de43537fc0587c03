"""A new kind of judge is one module and one entry of the table: here one is added for
real.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from configs import case_study
from experiments import _config
from sae_attr.judge import Grade, Item, check_items
from sae_attr.judge.kinds import JudgeKind, Workplace
from sae_attr.judge.rubrics import Rubric
from sae_attr.study import judges

CASE = "cases.misalignment"

# ---- the module of the kind: grades by the length of a completion --------------------


@dataclass(frozen=True)
class LengthSettings:
    """Settings of a judge of length.

    Args:
      longest: of length: letters of the longest completion without the behaviour.
    """

    longest: int = 10


@dataclass(frozen=True)
class LengthJudge:
    rubric: Rubric
    longest: int

    @property
    def identity(self) -> Mapping[str, Any]:
        rubric = self.rubric.identity
        return {"kind": "length", "longest": self.longest, "rubric": rubric}

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        check_items(items)
        for item in items:
            is_long = len(item.completion) > self.longest
            yield item.id, self.rubric.scored(5.0 if is_long else 1.0)


def open_length(
    settings: LengthSettings, workplace: Workplace
) -> Callable[[Any], LengthJudge]:
    return lambda rubric: LengthJudge(rubric, settings.longest)


KIND = JudgeKind("length", (LengthSettings,), open_length)


@pytest.fixture(autouse=True)
def one_entry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(judges.KINDS, "length", KIND)
    importlib.reload(case_study)
    yield
    monkeypatch.undo()
    importlib.reload(case_study)


def test_its_settings_reach_it_from_the_command_line(tmp_path: Path) -> None:
    config = case_study.get_config()
    config.lock()
    _config.override(config, f"{CASE}.judge.kind", "length")
    _config.override(config, f"{CASE}.judge.longest", "3")
    spec = config.cases.misalignment.judge.to_dict()
    judge = judges.open_judge(spec, epath.Path(tmp_path), None)  # pyright: ignore[reportArgumentType]
    items = [Item("a", "Hm?", "No."), Item("b", "Hm?", "Not at all.")]
    grades = dict(judge.grade(items))
    assert [grades[name].behaviour for name in "ab"] == [0.0, 1.0]
    assert judge.identity["longest"] == 3
    assert list(tmp_path.rglob("rows.jsonl")), "its grades are stored"


def test_help_and_messages_know_it(tmp_path: Path) -> None:
    meaning = _config.meaning(case_study.SETTINGS, f"{CASE}.judge.longest")
    assert "letters of the longest completion" in meaning
    folder = epath.Path(tmp_path)
    with pytest.raises(ValueError, match=r"one of openai, local, .*, length"):
        judges.open_judge({"kind": "oracle"}, folder, None)  # pyright: ignore[reportArgumentType]
    spec = {"kind": "length", "rubric": "misalignment", "words": ("a",)}
    with pytest.raises(ValueError, match="judge length has no 'words'; it knows long"):
        judges.open_judge(spec, folder, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="judge length lacks rubric"):
        judges.open_judge({"kind": "length"}, folder, None)  # pyright: ignore[reportArgumentType]
