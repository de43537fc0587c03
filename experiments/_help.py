"""What `--help` says: an experiment's flags, and its config's keys with defaults and
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


def help_text(argv: Sequence[str], experiment: str, module: ModuleType) -> str:
    """Returns the help of an entrypoint; the config is the one that the command line
    names, or its own.

    Args:
      argv: with the program's name first.
      module: of the entrypoint, which defines or imports its flags.
    """
    own = flags_of(module)
    program = command_line(argv[:1])
    parts = [
        (module.__doc__ or "").strip(),
        f"usage: {program} [--FLAG=VALUE ...]"
        + " [--config.KEY=VALUE ...]" * ("config" in own),
    ]
    parts.append(
        "flags:\n"
        + "\n".join(
            _entry(f"--{name}", flag.default, flag.help)
            for name, flag in sorted(own.items())
        )
    )
    if "config" in own:
        name = _config_name(argv, experiment)
        config, source = load_config(name)
        parts.append(
            f"config {name}:\n{textwrap.indent((source.__doc__ or '').strip(), '  ')}"
        )
        parts.append(
            "keys, as --config.KEY=VALUE:\n"
            + "\n".join(_keys(config, getattr(source, "SETTINGS", {})))
        )
    parts.append(
        "exit status: 0 done; 1 refused or failed, with one line; 130 stopped by "
        "Ctrl-C, 143 by SIGTERM."
    )
    return "\n\n".join(parts)


def _config_name(argv: Sequence[str], experiment: str) -> str:
    name, _, _ = split(
        [argument for argument in argv[1:] if not argument.startswith("-h")]
    )
    return name or (experiment if experiment in packaged() else "attribute")


def _keys(config: ConfigDict, settings: Any, root: str = "") -> Iterator[str]:
    """An entry for every key; what has keys of its own comes last."""
    inner = [name for name in config if isinstance(config.get(name), ConfigDict)]
    for name in config:
        if name not in inner:
            yield _entry(
                f"{root}{name}",
                config.get(name),
                meaning(settings, f"{root}{name}"),
                config.get_type(name),
            )
    for name in inner:
        part: Any = config.get(name)
        said = meaning(settings, f"{root}{name}")
        if isinstance(part, AnyKeysDict):
            yield _entry(f"{root}{name}.ANY", dict(part) or None, said)
        else:
            yield f"\n  {root}{name}.*" + (f"  {said}" if said else "")
            yield from _keys(part, settings, f"{root}{name}.")


def _entry(name: str, default: Any, text: str | None, kind: type | None = None) -> str:
    """Name, default or type, and meaning with lines below each other."""
    if default is not None:
        value = str(default) if isinstance(default, str) and default else repr(default)
    else:
        value = (
            "" if kind is None else "ANY" if kind is object else kind.__name__.upper()
        )
    head = f"  {name}={value}" if value else f"  {name}"
    body = textwrap.wrap(" ".join((text or "").split()), WIDTH - 34)
    if not body:
        return head
    first = (
        f"{head:<33} {body[0]}" if len(head) <= 33 else f"{head}\n{'':<33} {body[0]}"
    )
    return "\n".join([first, *(f"{'':<33} {line}" for line in body[1:])])
