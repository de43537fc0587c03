"""The command line of an experiment: which config is meant, its overrides, and messages
about what is not understood.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from sae_attr.settings import RENAMED, unknown_key

from . import _flags
from ._config import override

ROOT = __name__.rpartition(".")[0].removesuffix(
    "experiments"
)  # "" in a checkout, "sae_attr." in an installed package
INSTALLED = "sae_attr"  # the command that an install has, `__main__.main`
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Keys that some configs of an experiment have and its own does not.
MORE_KEYS = {"case_study": ("organism",)}


# ---- configs -------------------------------------------------------------------------


def packaged() -> list[str]:
    """Returns the names of the configs that come with the experiments."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def config_module(name: str) -> ModuleType:
    """Returns the module of a config: a name (`attribute`), its path
    (`configs/attribute.py`), or a custom file.

    Raises:
      ValueError: there is no such config or file, or it cannot be run; names the
        nearest.
    """
    path = Path(name)
    inside = path.stem in packaged() and (
        name == path.stem or path.parts[-2:-1] == ("configs",)
    )
    if path.is_file() and path.resolve().parent != CONFIGS:
        return _own_file(path)
    if path.is_file() or inside:
        return importlib.import_module(f"{ROOT}configs.{path.stem}")
    near = difflib.get_close_matches(path.stem, packaged(), n=1)
    hint = f"; did you mean --config={near[0]}?" if near else ""
    raise ValueError(
        f"there is no config {name}{hint} (there are {', '.join(packaged())}, and "
        "files of your own)"
    )


def _own_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(
            f"{path} is no Python file; a config is one with a function get_config"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{path}{_line_of(error, path)}: the config cannot be run: "
            f"{type(error).__name__}: {error}"
        ) from error
    return module


def _line_of(error: Exception, path: Path) -> str:
    """`:LINE` of the last place in a file that an error went through; "" where it went
    through none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        frame.lineno
        for frame in frames
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f":{lines[-1]}" if lines else ""


def load_config(argument: str) -> tuple[ConfigDict, ModuleType]:
    """Returns the config that --config names, and its module; a word behind a colon
    goes to `get_config`.

    Raises:
      ValueError: no such config, or a word that it does not know.
    """
    name, _, word = argument.partition(":")
    module = config_module(name)
    make = getattr(module, "get_config", None)
    if make is None:
        raise ValueError(
            f"{name} has no function get_config; see {ROOT}configs.attribute for one"
        )
    if word and not inspect.signature(make).parameters:
        raise ValueError(
            f"{name} takes no word behind a colon, but {word!r} is given; write "
            f"--config={name}"
        )
    made = make(word) if word else make()
    return made if isinstance(made, ConfigDict) else ConfigDict(made), module


def fitted(config: ConfigDict, argument: str, experiment: str) -> ConfigDict:
    """Returns a config with the keys of the experiment's own that it lacks, at their
    defaults.

    Raises:
      ValueError: it has keys that the experiment does not know, as the config of
        another experiment has.
    """
    if experiment not in packaged():
        return config
    own, _ = load_config(experiment)
    known = {*own, *MORE_KEYS.get(experiment, ())}
    strange = [name for name in config if name not in known]
    for name in strange:
        if name in RENAMED:
            raise ValueError(f"{argument}: {unknown_key(f'config.{name}', known)}")
    if strange:
        other = _experiment_of(config, experiment)
        whose = f"it fits experiments.{other}. " if other else ""
        raise ValueError(
            f"--config={argument} is no config of experiments.{experiment}, which has "
            f"no {', '.join(strange[:4])}; {whose}"
            f"Take --config={experiment}"
        )
    with config.unlocked():
        for name in own:
            if name not in config:
                config[name] = own.get_ref(name) if own[name] is None else own[name]
    return config


def _experiment_of(config: ConfigDict, experiment: str) -> str:
    """The other experiment whose own config has all these keys and the fewest besides;
    "" where none has.
    """
    spare = {}
    for name in packaged():
        if name != experiment and Path(__file__).with_name(f"{name}.py").exists():
            keys = {*load_config(name)[0], *MORE_KEYS.get(name, ())}
            if set(config) <= keys:
                spare[name] = len(keys - set(config))
    return min(spare, key=lambda name: spare[name], default="")


# ---- the command line ----------------------------------------------------------------


def split(
    argv: Sequence[str],
) -> tuple[str | None, list[tuple[str, str | None]], list[str]]:
    """Returns what --config names, the overrides as (path, text), and all other
    arguments; the text of a key without a value is None.
    """
    name, overrides, rest = None, [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":  # absl: what follows are no flags
            return name, overrides, [*rest, argument, *waiting]
        flag, equals, value = _flag_of(argument).partition("=")
        if flag.startswith("noconfig."):
            overrides.append((flag.removeprefix("noconfig."), "False"))
        elif flag == "config":
            name = value if equals else waiting.pop(0) if waiting else ""
        elif flag.startswith("config."):
            if not equals:
                bare = not waiting or waiting[0].startswith("--")
                value = None if bare else waiting.pop(0)
            overrides.append((flag.removeprefix("config."), value))
        else:
            rest.append(argument)
    return name, overrides, rest


def _flag_of(argument: str) -> str:
    """An argument without its one or two dashes; "" where it is no flag."""
    for dashes in ("--", "-"):
        if argument.startswith(dashes):
            return argument.removeprefix(dashes)
    return ""


def read_command(
    argv: Sequence[str], experiment: str, own_flags: Iterable[str]
) -> list[str]:
    """Parses a command line: sets the config with its overrides, and absl's flags;
    returns what is left.

    Args:
      argv: with the program's name first.
      experiment: name of the entrypoint; its own config is taken where --config is
        absent.
      own_flags: names of the flags that this experiment has.

    Raises:
      ValueError: anything that is not understood, with the nearest that is.
    """
    name, overrides, rest = split(argv[1:])
    names = [*own_flags]
    if "config" in names:
        argument = experiment if name is None else name
        config, _ = load_config(argument)
        config = fitted(config, argument, experiment)
        config.lock()
        for path, text in overrides:
            override(config, path, text)
        flags.FLAGS["config"].value = config
    elif name is not None or overrides:
        raise ValueError(
            f"experiments.{experiment} has no config; its flags are {_listed(names)}"
        )
    return _parse([argv[0], *rest], experiment, names)


def _parse(argv: list[str], experiment: str, names: list[str]) -> list[str]:
    try:
        left = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, names, n=1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise ValueError(
            f"experiments.{experiment} has no flag --{error.flagname}; {hint}It has "
            f"{_listed(names)}"
        ) from error
    except flags.IllegalFlagValueError as error:
        raise ValueError(_missing(str(error)) or str(error)) from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    shared = {
        flag.name
        for flag in vars(_flags).values()
        if isinstance(flag, flags.FlagHolder)
    }
    for flag in sorted(shared - set(names)):
        if flags.FLAGS[flag].present:
            raise ValueError(
                f"experiments.{experiment} has no flag --{flag}; it has "
                f"{_listed(names)}"
            )
    return left


def _missing(message: str) -> str:
    """The message about a required flag in one line; "" for another message."""
    if "must have a value other than None" not in message:
        return ""
    flag = message.partition("--")[2].partition("=")[0]
    example = {
        "workdir": "a folder for the results, for instance --workdir=runs/first"
    }.get(flag, f"--{flag}=...")
    return f"--{flag} is missing; give {example}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))


def flags_of(module: ModuleType) -> dict[str, Any]:
    """Returns the flags that an entrypoint defines or imports, by name; those too that
    a function which it imports reads.
    """
    holders = [_flags.QUIET]
    for value in vars(module).values():
        if isinstance(value, flags.FlagHolder):
            holders.append(value)
        elif isinstance(value, FunctionType):
            holders += vars(value).get("flags", ())
    return {holder.name: flags.FLAGS[holder.name] for holder in holders}


def experiment_of(module: ModuleType) -> str:
    """Returns the name of an entrypoint that was started with `python -m` or as a file."""
    if module.__spec__ is not None:
        return module.__spec__.name.rpartition(".")[2]
    return Path(module.__file__ or "").stem


def command_line(argv: Sequence[str]) -> str:
    """Returns the command that starts this run again."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        start = ["python", os.fspath(argv[0])]
    elif Path("".join(sys.orig_argv[1:2])).name == INSTALLED:
        start = [INSTALLED, spec.name.rpartition(".")[2]]
    else:
        start = ["python", "-m", spec.name]
    return shlex.join([*start, *argv[1:]])
