"""Grades kept on disk by judge and text, so that nothing is graded twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sae_attr.judge.base import (
    Grade,
    Item,
    Judge,
    JudgeStopped,
    check_items,
    grade_of_row,
    grade_row,
    judge_name,
    tells_coherence,
)
from sae_attr.judge.probe import advice, shown
from sae_attr.store import PathLike, Progress, digest, write_atomic

FIRST = 50  # new replies after which it is asked whether the judge can be read at all
LEAST = 5  # replies below which nothing is concluded


class CachedJudge:
    """A `Judge` that asks another one only for texts that it has not graded yet.

    Every grade is on disk before it is yielded, in `<folder>/<digest of the judge's
    identity>/rows.jsonl`; a line that a kill cut short is left out when the file is
    read, and its text is graded again. Texts that stand several times in one call are
    graded once. A reply that could not be read stays there as evidence, and its text is
    asked again by the next `CachedJudge` of the folder: the server may have been mended
    since.

    Raises, while grades arrive, JudgeStopped where most of the first `FIRST` new
    replies cannot be read.

    Args:
      judge: the one to ask.
      folder: may hold the grades of any number of judges.
    """

    def __init__(self, judge: Judge, folder: PathLike) -> None:
        self.judge = judge
        self._progress = Progress(epath.Path(folder) / digest(judge.identity))
        self._known: dict[str, Grade] | None = None
        self._new, self._unread = 0, list[Grade]()

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the judge asked: a cache changes no grade."""
        return self.judge.identity

    @property
    def tells_coherence(self) -> bool:
        """As the judge asked does."""
        return tells_coherence(self.judge)

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """(id, grade): first what is known, then what the judge gives, as it arrives;
        raises what the judge raises.
        """
        check_items(items)
        return self._grades(items)

    def known(self, items: Sequence[Item]) -> dict[str, Grade]:
        """Grades that need no call, by id."""
        grades = self._load()
        return {
            item.id: grades[key] for item in items if (key := item_key(item)) in grades
        }

    def _grades(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        grades = self._load()
        same: dict[str, list[Item]] = {}  # new texts -> the items that have them
        for item in items:
            key = item_key(item)
            if key in grades:
                yield item.id, grades[key]
            else:
                same.setdefault(key, []).append(item)
        keys = {found[0].id: key for key, found in same.items()}
        for name, grade in self.judge.grade([found[0] for found in same.values()]):
            self._keep(keys[name], grade)
            self._stop_if_unreadable(len(same))
            yield from ((item.id, grade) for item in same[keys[name]])

    def _load(self) -> dict[str, Grade]:
        if self._known is None:
            rows = (
                row for row in self._progress.rows() if "key" in row and "label" in row
            )
            grades = ((row["key"], grade_of_row(row)) for row in rows)
            self._known = {key: grade for key, grade in grades if not grade.malformed}
        return self._known

    def _stop_if_unreadable(self, wanted: int) -> None:
        """Raises JudgeStopped when `FIRST` replies, or all of a shorter list, have come
        and most cannot be read.
        """
        enough = min(FIRST, max(wanted, LEAST))
        if self._new != enough or 2 * len(self._unread) <= enough:
            return
        cut = sum(grade.details.get("finish") == "length" for grade in self._unread)
        example, name = self._unread[-1], judge_name(self.identity)
        raise JudgeStopped(
            f"{len(self._unread)} of the first {self._new} replies of {name} cannot be "
            f"read, {cut} of them cut by their "
            f"length, for instance {shown(example)}. {advice(example)}. They are kept "
            f"in {self._progress.folder}, and asked "
            "again in the next run",
            graded=self._new - len(self._unread),
            left=wanted - self._new + len(self._unread),
        )

    def _keep(self, key: str, grade: Grade) -> None:
        about = self._progress.folder / "identity.json"
        if not about.exists():
            write_atomic(
                about,
                json.dumps(
                    dict(self.identity), indent=1, ensure_ascii=False, default=str
                ),
            )
        self._progress.append([{"key": key, **grade_row(grade)}])
        self._new += 1
        if grade.malformed:
            self._unread.append(grade)
        self._load()[key] = grade


def cached(judge: Judge, folder: PathLike) -> CachedJudge:
    """The judge with its grades kept in a folder; see `CachedJudge`."""
    return CachedJudge(judge, folder)


def item_key(item: Item) -> str:
    """A name for the text that is graded, whatever the item's id."""
    return digest({"prompt": item.prompt, "completion": item.completion})
