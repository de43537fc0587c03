"""Settings dataclasses as `ConfigDict` and back; what a config's keys mean, and
overrides from a command line.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.settings import (
    AnyKeys,
    Unset,
    defaults_of,
    meanings_of,
    settings_from,
    unknown_key,
)

T = TypeVar("T")


class AnyKeysDict(ConfigDict):
    """A part of a config that takes keys of any name (options of a chat template,
    fields of a request).
    """


# ---- there and back ------------------------------------------------------------------


def config_of(
    kind: type,
    *,
    leave_out: Iterable[str] = (),
    unset: bool = False,
    **parts: ConfigDict,
) -> ConfigDict:
    """Returns a config with a key for every field of a settings dataclass; what is None
    by default has a typed place.

    Args:
      kind: a dataclass or TypedDict.
      leave_out, unset: as for `defaults_of`.
      parts: fields that are mappings, with their keys.
    """
    made = _config(defaults_of(kind, leave_out=(*leave_out, *parts), unset=unset))
    made.update(parts)
    return made


def any_keys(kinds: Mapping[str, type]) -> ConfigDict:
    """Returns a part of a config with typed places for some keys, which takes keys of
    any other name too.
    """
    made = AnyKeysDict()
    for name, kind in kinds.items():
        made[name] = placeholder(kind)
    return made


def _config(values: Mapping[str, Any]) -> ConfigDict:
    made = ConfigDict()
    for name, value in values.items():
        if isinstance(value, Unset):
            made[name] = placeholder(value.kind)
        elif isinstance(value, AnyKeys):
            made[name] = AnyKeysDict(dict(value.values))
        else:
            made[name] = _config(value) if isinstance(value, Mapping) else value
    return made


def settings_of(
    kind: type[T],
    config: ConfigDict,
    *,
    leave_out: Iterable[str] = (),
    where: str = "config",
) -> T:
    """Returns a settings dataclass from the keys of a config; the way back of
    `config_of`.

    Args:
      leave_out: keys that belong to something else.

    Raises:
      ValueError: a key that no field has, a field without a value, or what the
        dataclass itself refuses.
    """
    skipped = set(leave_out)
    values = {
        name: value for name, value in config.to_dict().items() if name not in skipped
    }
    return settings_from(kind, values, where=where)


def part_of(kind: type[T], config: ConfigDict, **given: Any) -> T:
    """Returns a settings dataclass from those keys of a config that are its fields;
    `given` wins.
    """
    names = {field.name for field in dataclasses.fields(kind)} - set(given)  # pyright: ignore[reportArgumentType]
    values = {name: value for name, value in config.to_dict().items() if name in names}
    return settings_from(kind, {**values, **given})


# ---- keys and what they mean ---------------------------------------------------------


def paths_of(config: ConfigDict, root: str = "config") -> Iterator[str]:
    """Yields the dotted path of every key, at every depth."""
    for name in config:
        path = f"{root}.{name}"
        yield path
        inner = config.get(name)
        if isinstance(inner, ConfigDict):
            yield from paths_of(inner, path)


def meaning(settings: Mapping[str, Sequence[Any]], path: str) -> str:
    """Returns what a key means: what the dataclass that its part of a config is made of
    says about it, "" where none does.

    Args:
      settings: dotted place -> dataclasses, or mappings of names to texts; "" for the
        config itself, "*" for any name, as `SETTINGS` in configs/*.py gives them.
      path: of the key, below the config.
    """
    place, _, name = path.rpartition(".")
    for pattern, sources in settings.items():
        if not matches_place(pattern, place):
            continue
        for source in sources:
            texts = source if isinstance(source, Mapping) else meanings_of(source)
            if name in texts:
                return texts[name]
    return ""


def matches_place(pattern: str, place: str) -> bool:
    """Returns whether a dotted place fits a pattern of `SETTINGS`, "*" for any name."""
    names, parts = pattern.split("."), place.split(".")
    return len(names) == len(parts) and all(
        name in ("*", part) for name, part in zip(names, parts, strict=True)
    )


# ---- overrides -----------------------------------------------------------------------


def override(config: ConfigDict, path: str, text: str | None) -> None:
    """Sets the key at a dotted path from the text of a command line.

    Args:
      path: below the config, for instance `sae.k`.
      text: read as the key's type says; "None" empties a key that may be empty. None
        stands for a bare `--config.KEY`, which switches on what is True or False.

    Raises:
      ValueError: no such key, with its whole path and the nearest that exists; a text
        that its type cannot be; a bare key that takes another value.
    """
    *parents, name = path.split(".")
    part: Any = config
    for parent in parents:
        part = _inner(part, parent)
    if isinstance(part, AnyKeysDict) and name not in part:
        with part.unlocked():
            part[name] = True if text is None else literal(text)
        return
    if not isinstance(part, ConfigDict) or name not in part:
        raise ValueError(unknown_key(f"config.{path}", paths_of(config)))
    inner = part.get(name)
    if text is None:
        if part.get_type(name) is not bool:
            raise ValueError(
                f"config.{path} is given without a value; write --config.{path}=VALUE"
            )
        text = "True"
    if isinstance(inner, ConfigDict):
        _override_part(inner, path, text)
        return
    part[name] = parsed(part.get_type(name), text, f"config.{path}")


def _inner(part: Any, name: str) -> Any:
    """Returns a group within a group, None where there is none; one that takes keys of
    any name gets it.
    """
    if isinstance(part, AnyKeysDict) and name not in part:
        with part.unlocked():
            part[name] = AnyKeysDict()
    return part[name] if isinstance(part, ConfigDict) and name in part else None


def _override_part(part: ConfigDict, path: str, text: str) -> None:
    values = literal(text)
    if not isinstance(values, dict):
        some = ", ".join(f"--config.{path}.{name}=..." for name in list(part)[:3])
        raise ValueError(
            f"config.{path} is a group of keys and cannot be {text!r}; set them "
            f"singly{some and ': ' + some}"
        )
    for name, value in values.items():
        override(part, str(name), value if isinstance(value, str) else repr(value))


def literal(text: str) -> Any:
    """Returns the number, tuple, mapping, True, False or None that a text spells, else
    the text.
    """
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parsed(kind: type, text: str, path: str) -> Any:
    """Returns a text as a value of a key's type.

    Raises:
      ValueError: the text is no such value.
    """
    if kind is str:
        return None if text == "None" else text
    value: Any = literal(text)
    if value is None:
        return None
    if kind is tuple:
        return _tuple(value, text)
    if kind is bool:
        value = {"1": True, "0": False, "yes": True, "no": False}.get(
            text.lower(), value
        )
    if kind is float and isinstance(value, str):
        value = _number(text)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind in (int, float)):
        raise ValueError(f"{path} takes {_SAID.get(kind, kind.__name__)}, not {text!r}")
    return float(value) if kind is float else value


_SAID = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    ConfigDict: "a mapping",
}


def _number(text: str) -> Any:
    try:
        return float(text)  # inf, nan, 1e5
    except ValueError:
        return text


def _tuple(value: Any, text: str) -> tuple[Any, ...]:
    """A tuple as Python writes it, or its entries with commas between them:
    `bos,special`.
    """
    if isinstance(value, tuple | list):
        return tuple(value)
    if isinstance(value, str):
        inner = text.strip().removeprefix("(").removesuffix(")")
        return tuple(literal(part.strip()) for part in inner.split(",") if part.strip())
    return (value,)


def one_of(what: str, word: str, known: Sequence[str]) -> str:
    """Returns a word that stands behind the colon of --config, if it is one of those
    that the config knows.

    Raises:
      ValueError: it is not; names the nearest.
    """
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise ValueError(
            f"{what} {word!r} is unknown; {hint} is one of {', '.join(known)}"
        )
    return word
