"""The text of `--help`: an experiment's flags, and its config's keys with defaults and
meaning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ._command import command_line, flags_of, load_config, packaged, split
from ._config import AnyKeysDict, meaning

WIDTH = 120
COLUMN = 33  # where the meanings begin


def help_text(argv: Sequence[str], experiment: str, module: ModuleType) -> str:
    """Returns the help of an entrypoint, with the config that the command line names,
    or its own.

    Args:
      argv: with the program's name first.
      experiment: its name, which is also that of its config.
      module: of the entrypoint, which defines or imports its flags.
    """
    flags = flags_of(module)
    usage = f"usage: {command_line(argv[:1])} [--FLAG=VALUE ...]"
    if "config" in flags:
        usage += " [--config.KEY=VALUE ...]"
    entries = [
        _entry(f"--{name}", flag.default, flag.help)
        for name, flag in sorted(flags.items())
    ]
    parts = [(module.__doc__ or "").strip(), usage, "\n".join(["flags:", *entries])]
    if "config" in flags:
        parts += _config_parts(_config_name(argv, experiment))
    parts.append(
        "exit status: 0 done; 1 refused or failed, with one line; 130 stopped by "
        "Ctrl-C, 143 by SIGTERM."
    )
    return "\n\n".join(parts)


def _config_name(argv: Sequence[str], experiment: str) -> str:
    """Returns the config that the command line names, or the experiment's."""
    arguments = [argument for argument in argv[1:] if not argument.startswith("-h")]
    name, _, _ = split(arguments)
    return name or (experiment if experiment in packaged() else "attribute")


def _config_parts(name: str) -> list[str]:
    """Returns a config's description and its keys."""
    config, source = load_config(name)
    description = textwrap.indent((source.__doc__ or "").strip(), "  ")
    keys = _keys(config, getattr(source, "SETTINGS", {}))
    return [
        f"config {name}:\n{description}",
        "\n".join(["keys, as --config.KEY=VALUE:", *keys]),
    ]


def _keys(config: ConfigDict, settings: Any, root: str = "") -> Iterator[str]:
    """Yields an entry for every key; keys with keys of their own come last."""
    groups = [name for name in config if isinstance(config.get(name), ConfigDict)]
    for name in config:
        if name not in groups:
            path = f"{root}{name}"
            kind = config.get_type(name)
            yield _entry(path, config.get(name), meaning(settings, path), kind)
    for name in groups:
        path = f"{root}{name}"
        group: Any = config.get(name)
        text = meaning(settings, path)
        if isinstance(group, AnyKeysDict):
            yield _entry(f"{path}.ANY", dict(group) or None, text)
        else:
            yield f"\n  {path}.*  {text or ''}".rstrip()
            yield from _keys(group, settings, f"{path}.")


def _entry(name: str, default: Any, text: str | None, kind: type | None = None) -> str:
    """Returns a name, its default or type, and its meaning on lines below each other."""
    value = _default_text(default, kind)
    head = f"  {name}={value}" if value else f"  {name}"
    body = textwrap.wrap(" ".join((text or "").split()), WIDTH - COLUMN - 1)
    if not body:
        return head
    margin = " " * (COLUMN + 1)
    first, *rest = body
    if len(head) <= COLUMN:
        lines = [f"{head:<{COLUMN}} {first}"]
    else:
        lines = [head, margin + first]
    return "\n".join([*lines, *(margin + line for line in rest)])


def _default_text(default: Any, kind: type | None) -> str:
    """Returns the default of a key, or the type of its value where it has none."""
    if isinstance(default, str) and default:
        return default
    if default is not None:
        return repr(default)
    if kind is None:
        return ""
    return "ANY" if kind is object else kind.__name__.upper()
