"""How a run ends when it does not get through: its message, and an exit status that a
scheduler understands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sae_attr.store import InputAwaited
from sae_attr.store.lease import InUse

from . import _notes

REFUSED = 1
TEMPORARY = 75
"""The run did not fail by itself, and the same command goes on: EX_TEMPFAIL of
sysexits.h.
"""

AWAITS = 3
"""A stage wrote what another program must answer; the same command goes on once the
answers are there.
"""

# Package -> extra of setup.py that installs it.
EXTRAS = {
    "openai": "judge",
    "pyarrow": "data",
    "gcsfs": "gcs",
    "google": "gcs",
    "selenium": "page",
    "tensorboardX": "tensorboard",
}
# What XLA's allocators write of memory, on every platform.
_FULL = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Resource exhausted")
# Keys of configs that decide how much one step holds.
_ROWS = ("batch_size", "corpus_batch", "micro", "batch_rows", "ablate_rows")


class Ending(NamedTuple):
    """How a run ends.

    Args:
      message: for the user; None where the error is a bug, whose traceback is shown.
      status: exit status of the process.
    """

    message: str | None
    status: int


def ending_of(error: Exception, config: ConfigDict | None) -> Ending:
    """Returns how a run ends that was stopped by an error.

    Args:
      config: of the run, where it has one: says what to change.
    """
    if isinstance(error, MemoryError) or _is_full(error):
        return Ending(memory_message(error, config), REFUSED)
    if isinstance(error, jax.errors.JaxRuntimeError):
        if _notes.processes_of_run() == 1:
            return Ending(None, REFUSED)
        text = (
            f"another process of the run ended, or cannot be reached: {_first(error)}; "
            "the same command goes on from what is stored"
        )
        return Ending(text, TEMPORARY)
    if isinstance(error, InputAwaited):
        return Ending(message_of(error), AWAITS)
    if isinstance(error, InUse | ConnectionError | TimeoutError):
        return Ending(message_of(error), TEMPORARY)
    known = (ValueError, OSError, RuntimeError, ImportError)
    if isinstance(error, known) and not _is_bug(error):
        return Ending(message_of(error), REFUSED)
    return Ending(None, REFUSED)


def message_of(error: Exception) -> str:
    """Returns an error's message; of a library that is missing, with the line that
    installs it.
    """
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and "pip install" not in str(error)
    ):
        package = error.name.split(".")[0]
        install = f"'sae_attr[{EXTRAS[package]}]'" if package in EXTRAS else package
        return f"{error}; install it: pip install {install}"
    return str(error) or type(error).__name__


def _is_bug(error: Exception) -> bool:
    """Whether an import failed inside the project itself."""
    return isinstance(error, ImportError) and (error.name or "").split(".")[0] in (
        "sae_attr",
        "experiments",
        "configs",
    )


# ---- memory --------------------------------------------------------------------------


def memory_message(error: Exception, config: ConfigDict | None) -> str:
    """Returns what to change where memory is full: the keys of this config that decide
    it, with smaller values.
    """
    changes = [] if config is None else list(_smaller(config, "config"))
    text = f"out of memory: {_first(error)}"
    if not changes:
        return f"{text}; use a machine with more, or smaller inputs"
    flags = " ".join(changes)
    other = ""
    if config is not None and config.get("dtype") == "float32":
        other = "; in a new --workdir, --config.dtype=bfloat16 halves the weights"
    return (
        f"{text}; go on with less at a time, one change after another: "
        f"{flags}{other}. --dry_run says what lies on each device"
    )


def _smaller(config: ConfigDict, path: str) -> Iterator[str]:
    """Yields flags that need less memory than a config, those of its parts last."""
    for name in _ROWS:
        value = config.get(name)
        if isinstance(value, int) and value > 1:
            yield f"--{path}.{name}={value // 2}"
    if config.get("remat") is False:
        yield f"--{path}.remat=True"
    if "mesh" in config and "model=" not in str(config.mesh) and _devices() > 1:
        yield f"--{path}.mesh=model={_devices()}"
    for name in config:
        part = config.get(name)
        if isinstance(part, ConfigDict) and name != "cases":
            yield from _smaller(part, f"{path}.{name}")


def _devices() -> int:
    return len(jax.devices())


def _is_full(error: Exception) -> bool:
    text = str(error)
    is_jax = isinstance(error, jax.errors.JaxRuntimeError)
    return is_jax and any(word in text for word in _FULL)


def _first(error: Any) -> str:
    """Returns the first line of a message, which may be pages of a compiler's."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
