"""Reads rubrics from TOML files: those of the package by name, others by path."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sae_attr.judge.rubrics import BEFORE, SHOWN, SIDES, Label, Rubric
from sae_attr.store import digest

_FIELDS = {
    "name",
    "version",
    "measures",
    "reasoned",
    "instructions",
    "scale",
    "points",
    "labels",
    "material",
}
_OPTIONAL = {"points", "labels", "material"}
_MATERIAL = {"before", "shown"}
# Of a rubric whose answer is a text.
_NO_SCALE = {"low": 0, "high": 1, "whole": True, "threshold": 1, "side": "at_least"}
_SCALE = {"low", "high", "whole", "threshold", "side", "coherent"}
_LABEL = {"meaning", "coherent", "also"}


def rubric_names() -> list[str]:
    """Lists the rubrics that come with the package."""
    folder = resources.files("sae_attr.judge") / "rubrics"
    names = []
    for entry in folder.iterdir():
        if entry.name.endswith(".toml"):
            names.append(entry.name.removesuffix(".toml"))
    return sorted(names)


def load_rubric(name: str | Path) -> Rubric:
    """Reads a rubric of the package by name, or a .toml file by path.

    Raises:
      ValueError: no such rubric, no TOML, a field that is unknown, missing, of the
        wrong type or at odds with another.
    """
    text = str(name)
    if text.endswith(".toml"):
        return parse_rubric(Path(text).read_text(encoding="utf-8"), text)
    if text not in rubric_names():
        raise ValueError(
            f"no rubric {text!r}; the package has {', '.join(rubric_names())}, or give "
            "the path of a .toml"
        )
    file = resources.files("sae_attr.judge") / "rubrics" / f"{text}.toml"
    return parse_rubric(file.read_text(encoding="utf-8"), f"rubric {text}")


def reading_rubric(name: str) -> Rubric:
    """Reads one of the package's rubrics for latents that are read: describe_passages,
    describe_answers, match_passage, match_answer.
    """
    folder = resources.files("sae_attr.judge") / "rubrics" / "reading"
    text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    return parse_rubric(text, f"rubric {name}")


def parse_rubric(text: str, where: str) -> Rubric:
    """Reads a rubric from TOML text; see `load_rubric`."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no TOML: {error}") from error
    is_text = tree.get("measures") == "description"
    _check_keys(tree, _FIELDS, _OPTIONAL | ({"scale"} if is_text else set()), where)
    scale, labels = tree.pop("scale", dict(_NO_SCALE)), tree.pop("labels", {})
    _check_keys(scale, _SCALE, {"coherent"}, f"{where} [scale]")
    material = tree.pop("material", None)
    if material is not None:
        _check_keys(material, _MATERIAL, {"before"}, f"{where} [material]")
        tree["before"] = _checked(material.get("before", ""), str, f"{where}: before")
        tree["shown"] = _checked(material["shown"], str, f"{where}: shown")
    for name, entry in labels.items():
        _check_keys(entry, _LABEL, {"coherent", "also"}, f"{where} [labels.{name}]")
    instructions = _checked(tree["instructions"], str, f"{where}: instructions")
    tree["instructions"] = instructions.strip()
    scale["coherent"] = _optional(scale.get("coherent"))
    named = {name: _label(entry) for name, entry in labels.items()}
    rubric = Rubric(**tree, **scale, labels=named)
    _check_rubric(rubric, where)
    return dataclasses.replace(rubric, hash=digest(_contents(rubric)))


def _contents(rubric: Rubric) -> dict[str, Any]:
    """Returns what the hash is over."""
    contents = dict(vars(rubric))
    # Headings came after grades were stored: a rubric with the usual ones keeps its hash.
    for name, usual in (("before", BEFORE), ("shown", SHOWN)):
        if contents[name] == usual:
            del contents[name]
    return contents


def _label(entry: Mapping[str, Any]) -> Label:
    return Label(
        str(entry["meaning"]),
        _optional(entry.get("coherent")),
        tuple(entry.get("also", ())),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _checked(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{where} is {value!r}; it must be of type "
            f"{getattr(kind, '__name__', kind)}"
        )
    return value


def _check_keys(tree: Any, known: set[str], optional: set[str], where: str) -> None:
    """ValueError naming a key that is unknown or missing."""
    keys = set(_checked(tree, dict, where))
    problems = {"does not know": keys - known, "lacks": known - optional - keys}
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"{where} {problem} {', '.join(sorted(names))}; a rubric has "
                f"{', '.join(sorted(known))}"
            )


_TYPES = {"name": str, "version": int, "measures": str, "reasoned": bool, "whole": bool,
          **dict.fromkeys(("low", "high", "threshold"), int | float)}  # fmt: skip


def _check_rubric(rubric: Rubric, where: str) -> None:
    """Raises ValueError where types are wrong or the fields disagree."""
    for name, kind in _TYPES.items():
        _checked(getattr(rubric, name), kind, f"{where}: {name}")
    for problem in _problems(rubric):
        raise ValueError(f"{where}: {problem}")


def _problems(rubric: Rubric) -> Iterator[str]:
    """Fields of a rubric that cannot be or that disagree."""
    low, high = rubric.low, rubric.high
    if rubric.measures not in ("behaviour", "coherence", "description"):
        yield "measures must be 'behaviour', 'coherence' or 'description'"
    if rubric.is_text and not rubric.reasoned:
        yield "a description is no bare answer: reasoned must be true"
    if rubric.side not in SIDES:
        yield f"side must be one of {', '.join(SIDES)}"
    if not low <= rubric.threshold <= high or low >= high:
        yield "low must be below high, with the threshold between them"
    verdicts = {rubric.coherent, *(label.coherent for label in rubric.labels.values())}
    if not verdicts <= {None, 0.0, 1.0}:
        yield "coherent must be 0 or 1"
    spellings = [word.upper() for word in rubric.spellings]
    if len(set(spellings)) < len(spellings):
        yield "a spelling of a label stands twice"
    for point in rubric.points:
        if not point.isdigit() or not low <= int(point) <= high:
            yield "points must be numbers of the scale"
    if not rubric.instructions:
        yield "instructions must not be empty"
