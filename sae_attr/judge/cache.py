"""Grades kept on disk by judge and text, so that nothing is graded twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sae_attr.judge.base import Grade, Item, Judge, check_items, grade_of_row, grade_row, tells_coherence
from sae_attr.store import PathLike, Progress, digest, write_atomic


class CachedJudge:
    """A `Judge` that asks another one only for texts that it has not graded yet.

    Every grade is on disk before it is yielded, in `<folder>/<digest of the judge's identity>/rows.jsonl`; a line that a
    kill cut short is left out when the file is read, and its text is graded again. Texts that stand several times in
    one call are graded once.

    Args:
      judge: the one to ask.
      folder: may hold the grades of any number of judges.
    """

    def __init__(self, judge: Judge, folder: PathLike) -> None:
        self.judge = judge
        self._progress = Progress(epath.Path(folder) / digest(judge.identity))
        self._known: dict[str, Grade] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the judge asked: a cache changes no grade."""
        return self.judge.identity

    @property
    def tells_coherence(self) -> bool:
        """As the judge asked does."""
        return tells_coherence(self.judge)

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """(id, grade): first what is known, then what the judge gives, as it arrives; raises what the judge raises."""
        check_items(items)
        return self._grades(items)

    def known(self, items: Sequence[Item]) -> dict[str, Grade]:
        """Grades that need no call, by id."""
        grades = self._load()
        return {item.id: grades[key] for item in items if (key := item_key(item)) in grades}

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
            yield from ((item.id, grade) for item in same[keys[name]])

    def _load(self) -> dict[str, Grade]:
        if self._known is None:
            rows = (row for row in self._progress.rows() if "key" in row and "label" in row)
            self._known = {row["key"]: grade_of_row(row) for row in rows}
        return self._known

    def _keep(self, key: str, grade: Grade) -> None:
        about = self._progress.folder / "identity.json"
        if not about.exists():
            write_atomic(about, json.dumps(dict(self.identity), indent=1, ensure_ascii=False, default=str))
        self._progress.append([{"key": key, **grade_row(grade)}])
        self._load()[key] = grade


def cached(judge: Judge, folder: PathLike) -> CachedJudge:
    """The judge with its grades kept in a folder; see `CachedJudge`."""
    return CachedJudge(judge, folder)


def item_key(item: Item) -> str:
    """A name for the text that is graded, whatever the item's id."""
    return digest({"prompt": item.prompt, "completion": item.completion})
