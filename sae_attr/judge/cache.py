"""Grades on disk by judge and text, so that nothing is graded twice."""

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
    item_key,
    judge_name,
    tells_coherence,
)
from sae_attr.judge.probe import advice, shown
from sae_attr.parallel import is_main, text_from_main
from sae_attr.store import Meta, PathLike, Progress, digest, write_atomic

FIRST = 50  # new replies after which a judge that mostly cannot be read is stopped
LEAST = 5  # replies below which nothing is concluded


class CachedJudge:
    """A `Judge` that asks another one only for texts that it has not graded yet.

    Every grade is on disk before it is yielded, in `<folder>/<digest of the judge's
    identity>/rows.jsonl`; a line that a kill cut short is left out when the file is
    read, and its text is graded again. A text that occurs several times in one call is
    graded once. A reply that could not be read stays there as evidence, and its text is
    asked again by the next `CachedJudge` of the folder: the server may have been
    repaired since. With several processes the folder's grades are those that process 0
    reads, and it alone writes; all of them call `grade` with the same items.

    Raises, while grades arrive, JudgeStopped where most of the first `FIRST` new
    replies cannot be read.

    Args:
      judge: grades the new texts.
      folder: may hold the grades of any number of judges.
    """

    def __init__(self, judge: Judge, folder: PathLike) -> None:
        self.judge = judge
        place = epath.Path(folder) / digest(judge.identity)
        self._progress = Progress(place, writer=is_main())
        self._grade_of: dict[str, Grade] | None = None  # by `item_key`
        self._new = 0
        self._unread: list[Grade] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        """The inner judge's: a cache changes no grade."""
        return self.judge.identity

    @property
    def tells_coherence(self) -> bool:
        """Whether the inner judge tells it."""
        return tells_coherence(self.judge)

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade): first those on disk, then those of the inner judge as they
        arrive; raises what it raises.
        """
        check_items(items)
        return self._grades(items)

    def stored(self, items: Sequence[Item]) -> dict[str, Grade]:
        """Returns the grades that need no call, by id."""
        grades = self._load()
        stored = {}
        for item in items:
            key = item_key(item)
            if key in grades:
                stored[item.id] = grades[key]
        return stored

    def _grades(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        stored = self.stored(items)
        yield from stored.items()
        alike: dict[str, list[Item]] = {}  # new texts -> the items that have them
        for item in items:
            if item.id not in stored:
                alike.setdefault(item_key(item), []).append(item)
        # One question for equal texts: at temperature 0 another would be paid for the
        # same answer, and otherwise equal texts would get unequal grades.
        first_of = {same[0].id: key for key, same in alike.items()}
        for name, grade in self.judge.grade([same[0] for same in alike.values()]):
            key = first_of[name]
            self._keep(
                key, grade
            )  # before it is yielded: a kill loses nothing paid for
            self._stop_if_unreadable(len(alike))
            for item in alike[key]:
                yield item.id, grade

    def _load(self) -> dict[str, Grade]:
        if self._grade_of is None:
            self._grade_of = {}
            # Process 0's, since the file grows while others read it.
            for row in json.loads(text_from_main(json.dumps(self._rows()))):
                grade = grade_of_row(row)
                if not grade.malformed:
                    self._grade_of[row["key"]] = grade
        return self._grade_of

    def _rows(self) -> list[Meta]:
        """Reads the rows of grades; none on processes that take those of process 0."""
        if not is_main():
            return []
        return self._progress.rows(("key", "label"))

    def _keep(self, key: str, grade: Grade) -> None:
        about = self._progress.folder / "identity.json"
        if is_main() and not about.exists():
            identity = dict(self.identity)
            text = json.dumps(identity, indent=1, ensure_ascii=False, default=str)
            write_atomic(about, text)
        self._progress.append([{"key": key, **grade_row(grade)}])
        self._new += 1
        if grade.malformed:
            self._unread.append(grade)
        self._load()[key] = grade

    def _stop_if_unreadable(self, total: int) -> None:
        """Raises JudgeStopped when `FIRST` replies, or all of a shorter list, have come
        and most cannot be read.
        """
        enough = min(FIRST, max(total, LEAST))
        unread = len(self._unread)
        if self._new != enough or 2 * unread <= enough:
            return
        ends = [grade.details.get("finish") for grade in self._unread]
        cut = ends.count("length")
        example = self._unread[-1]
        raise JudgeStopped(
            f"{unread} of the first {self._new} replies of {judge_name(self.identity)} "
            f"cannot be read, {cut} of them cut by their length, for instance "
            f"{shown(example)}. {advice(example)}. They are kept in "
            f"{self._progress.folder}, and asked again in the next run",
            graded=self._new - unread,
            left=total - self._new + unread,
        )


def cached(judge: Judge, folder: PathLike) -> CachedJudge:
    """Returns the judge with its grades stored in a folder; see `CachedJudge`."""
    return CachedJudge(judge, folder)
