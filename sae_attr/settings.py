"""Settings dataclasses as plain nested values and back: one function each way, and what
their docstrings say of each field.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

PLAIN_TYPES = (bool, int, float, str, tuple)


@dataclass(frozen=True)
class Unset:
    """Stands for None in plain values, and says what may take its place: bool, int,
    float, str, tuple or object (any).
    """

    kind: type


@dataclass(frozen=True)
class AnyKeys:
    """Stands for a mapping whose keys are not fixed, with the values that it has by
    default.
    """

    values: Mapping[str, Any]


# ---- from dataclasses ----------------------------------------------------------------


def defaults_of(
    kind: type, *, leave_out: Iterable[str] = (), unset: bool = False
) -> dict[str, Any]:
    """Returns every field of a settings dataclass (or TypedDict) with its default,
    nested dataclasses as nested dicts.

    Args:
      kind: the dataclass; a field without a default is one that may be None.
      leave_out: fields that are set elsewhere.
      unset: every field is None by default, for values that stand above other defaults.
    """
    hints = typing.get_type_hints(kind)
    defaults: dict[str, Any] = {}
    if dataclasses.is_dataclass(kind) and not unset:
        defaults = _field_defaults(kind)
    values = {}
    for name, hint in hints.items():
        if name not in leave_out:
            values[name] = _plain(hint, defaults.get(name), unset)
    return values


def _field_defaults(kind: Any) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _plain(hint: Any, default: Any, unset: bool) -> Any:
    nested = _dataclass_of(hint)
    if nested is not None and (default is not None or unset or not _optional(hint)):
        inner = defaults_of(nested, unset=unset)
        return inner if default is None else inner | _nested_values(default, inner)
    kind = plain_type(hint)
    if kind is dict:
        return AnyKeys(dict(default or {}))
    if default is None:
        return Unset(kind)
    return tuple(sorted(default)) if isinstance(default, frozenset) else default


def _nested_values(value: Any, inner: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plain fields of a default, which may differ from its own class's
    defaults.
    """
    values = {}
    for field in dataclasses.fields(value):
        x = getattr(value, field.name)
        if x is not None and not isinstance(inner[field.name], dict | AnyKeys):
            values[field.name] = x
    return values


def plain_type(hint: Any) -> type:
    """Returns the type that a value of a field has on a command line; `object` where
    several may, `dict` for mappings.
    """
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        kinds = {
            plain_type(arm) for arm in typing.get_args(hint) if arm is not type(None)
        }
        return kinds.pop() if len(kinds) == 1 else object
    if origin is typing.Literal:
        return type(typing.get_args(hint)[0])
    if not isinstance(origin, type) or origin is object:
        return object
    if issubclass(origin, PLAIN_TYPES):
        return next(kind for kind in PLAIN_TYPES if issubclass(origin, kind))
    if issubclass(origin, Mapping):
        return dict
    return tuple if issubclass(origin, Iterable) else object


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _dataclass_of(hint: Any) -> Any:
    """Returns the dataclass that a field holds, also where it may be None."""
    for arm in (hint, *typing.get_args(hint)):
        if isinstance(arm, type) and dataclasses.is_dataclass(arm):
            return arm if typing.get_origin(hint) is not tuple else None
    return None


# ---- to dataclasses ------------------------------------------------------------------


def settings_from(
    kind: type[T], values: Mapping[str, Any], *, where: str = "config"
) -> T:
    """Makes a settings dataclass of plain nested values; None stands for the default,
    lists become tuples where they belong.

    Args:
      values: as `defaults_of` names them; nested dataclasses as mappings, or made
        already.
      where: path of `values` in what the user wrote, for messages.

    Raises:
      ValueError: a key that the dataclass does not have (with the nearest that it has),
        or one that is missing.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(
                unknown_key(f"{where}.{name}", [f"{where}.{field}" for field in fields])
            )
        if value is not None or (
            _optional(hints[name])
            and fields[name].default not in (None, dataclasses.MISSING)
        ):
            arguments[name] = _value(hints[name], value, f"{where}.{name}")
            factory: Any = fields[name].default_factory
            if plain_type(hints[name]) is dict and factory is not dataclasses.MISSING:
                # Entries that are set stand above the default ones.
                arguments[name] = {**factory(), **arguments[name]}
    # Checked here: Python's own TypeError would not name the key of the config.
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if required and name not in arguments:
            raise ValueError(f"{where}.{name} is missing; add --{where}.{name}=VALUE")
    return kind(**arguments)


def _value(hint: Any, value: Any, where: str) -> Any:
    nested = _dataclass_of(hint)
    if nested is not None and isinstance(value, Mapping):
        return settings_from(nested, value, where=where)
    if isinstance(value, Mapping):
        return given_only(value)
    if not isinstance(value, list | tuple) or plain_type(hint) is not tuple:
        return value
    for arm in (hint, *typing.get_args(hint)):
        if typing.get_origin(arm) is tuple and (kind := typing.get_args(arm)[0]) in (
            int,
            float,
        ):
            check_numbers(value, kind, where)
    if frozenset in (hint, typing.get_origin(hint)):
        return frozenset(value)
    return tuple(value)


def check_numbers(values: Iterable[Any], kind: type, where: str) -> None:
    """Raises ValueError for the first value that is no number of its kind, `int` or
    (finite) `float`.

    Args:
      where: the key that holds the values, for messages.
    """
    what = "whole numbers" if kind is int else "finite numbers"
    for value in values:
        fits = isinstance(
            value, int if kind is int else int | float
        ) and not isinstance(value, bool)
        if not fits or not math.isfinite(value):
            raise ValueError(f"{where} has {value!r}; give {what}, with commas between")


def given_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are neither None nor an empty mapping, at every depth."""
    out = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = given_only(value)
        if value is not None and value != {}:
            out[name] = value
    return out


# Keys that had another name before, so that a command or config of then is told the new
# one: the nearest spelling would be another key.
RENAMED = {
    "fitness_tokens": "sae_check_tokens",
    "sides": "gating",
    "max_below_promise": "max_below_stated",
}
_LEAST_LIKENESS = 0.6  # of two names, below which a hint would only mislead
_SAME_GROUP = 0.15  # a key of the group that was named is likelier to be meant


def unknown_key(path: str, known: Iterable[str]) -> str:
    """Returns the message about a key that does not exist: its whole path, and the
    nearest that exists.

    Args:
      path: as the user wrote it, dotted.
      known: whole paths of the keys that exist.
    """
    parent, dot, name = path.rpartition(".")
    absent = f"the config has no key {path.removeprefix('config.')!r}"
    if name in RENAMED:
        return f"{absent}: it is called --{parent}{dot}{RENAMED[name]} now"
    nearest = nearest_key(path, known)
    if nearest is None:
        return f"{absent}; --help lists the keys"
    return f"{absent}; did you mean --{nearest}?"


def nearest_key(path: str, known: Iterable[str]) -> str | None:
    """Returns the existing path whose last name is most like that of `path`, or one of
    that name's words; None where nothing is like it.

    Of equal names the one in the same group wins, then the one with the nearest path.
    """
    group, _, name = path.rpartition(".")
    best, nearest = (_LEAST_LIKENESS, 0.0), None
    for other in known:
        other_group, _, other_name = other.rpartition(".")
        alike = _likeness(name, other_name)
        if alike < _LEAST_LIKENESS:
            continue
        bonus = _SAME_GROUP if group == other_group else 0.0
        closeness = alike + bonus, _ratio(path, other)
        if closeness > best:
            best, nearest = closeness, other
    return nearest


def _likeness(name: str, other: str) -> float:
    """Returns how alike two names are, 0 to 1; `call` is like `max_calls`."""
    words = [0.9 * _ratio(name, word) for word in other.split("_") if len(word) > 2]
    return max(_ratio(name, other), *words, 0.0)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


# ---- what docstrings say -------------------------------------------------------------

_ENTRY = re.compile(r"^ {2}([A-Za-z_]\w*(?:, \w+)*): (.*)$")


def meanings_of(kind: type) -> dict[str, str]:
    """Returns field -> what the class's docstring says about it, or that of a settings
    class which it extends; a field that is not described is absent.
    """
    out: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is kind or dataclasses.is_dataclass(base):
            for names, text in _entries(typing.cast(str, base.__doc__ or "")):
                out |= dict.fromkeys(names, text)
    return out


def _entries(doc: str) -> Iterator[tuple[list[str], str]]:
    """Yields the `name, name: text` entries of a docstring's Args, each with its
    continued lines.
    """
    names: list[str] = []
    text: list[str] = []
    lines = [line.removeprefix("    ") for line in doc.splitlines()]
    for line in [*lines, "Raises:"]:
        match = _ENTRY.match(line)
        if match or not line.startswith("  "):
            if names:
                yield names, " ".join(text)
            names = match[1].split(", ") if match else []
            text = [match[2]] if match else []
        else:
            text.append(line.strip())
