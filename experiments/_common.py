"""What every entrypoint shares: versions, plain JSON values, errors as one line."""

from __future__ import annotations

import datetime
import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel, report
from sae_attr.attribution.settings import Settings

OTHER_KEYS = ("mesh", "compare", "bands")  # keys of a config that are no settings of a study


def versions() -> dict[str, Any]:
    """`report.versions`, and the devices."""
    return {**report.versions(), "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()]}


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as the bytes of an uncompressed .npz."""
    buffer = io.BytesIO()
    kwargs: dict[str, Any] = dict(arrays)
    np.savez(buffer, **kwargs)
    return buffer.getvalue()


def settings_of(config: ConfigDict, *, needs: tuple[str, ...] = ("lm", "sae", "pairs", "corpus")) -> Settings:
    """`Settings` from the config; a ValueError names what of `needs` is missing."""
    values = {k: v for k, v in config.to_dict().items() if k not in OTHER_KEYS}
    absent = [k for k in needs if not values.get(k)]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}; add " + " ".join(f"--config.{k}=PATH" for k in absent))
    if values["exclude"] is not None:
        values["exclude"] = tuple(values["exclude"])
    for name in ("sae_options", "template_options"):
        values[name] = {k: v for k, v in values[name].items() if v is not None}
    return Settings(**{"pairs": "", **values})


def fix_day(config: ConfigDict, workdir: epath.Path) -> None:
    """Gives every `template_options` of a config a date: the one that the workdir's first run recorded, else today.

    A template that writes the day would give other token ids on another one, and all that depends on them would be made anew.
    """
    file = workdir / "config.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    _fix_day(config, recorded if isinstance(recorded, dict) else {}, datetime.date.today().isoformat())


def _fix_day(config: Any, recorded: Mapping[str, Any], today: str) -> None:
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            continue
        before = recorded.get(name)
        before = before if isinstance(before, Mapping) else {}
        if name == "template_options" and value.get("date") is None:
            value["date"] = str(before.get("date") or today)
        _fix_day(value, before, today)


def begin(argv: Sequence[str], *, cluster: bool = True) -> None:
    """What every entrypoint does first: refuses unknown arguments, joins the cluster there may be, keeps compiled programs.

    `cluster`: False for an experiment of one process.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if cluster:
        parallel.start_distributed()
    parallel.enable_compile_cache()


def run_app(main: Callable[[list[str]], None]) -> None:
    """`app.run`, with an input error as one message instead of a traceback (exit status 1)."""
    # jax tells at INFO which accelerators it did not find; that reads like an error and is none.
    logging.getLogger("jax").setLevel(logging.WARNING)
    # orbax writes twenty lines for a checkpoint, through absl's logger as we do.
    logging.getLogger("absl").addFilter(lambda r: r.levelno >= logging.WARNING or "orbax" not in r.pathname)
    app.run(guarded(main), flags_parser=parse_flags)


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """`main` that ends an input error with one message on stderr and exit status 1; a bug keeps its traceback."""

    def run(argv: list[str]) -> None:
        try:
            main(argv)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with an unknown config key or an absent config file as one message."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # what a locked ConfigDict raises for a key that it does not have
        named = str(error).strip("\"'")
        print(f"error: the config has no key {named!r}; the file given as --config lists them", file=sys.stderr)
    except OSError as error:
        print(f"error: {error}; check --config", file=sys.stderr)
    sys.exit(1)
