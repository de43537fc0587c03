"""Output of a run: streams that cannot end it, readable log lines, and no moving bars
where nobody watches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from typing import Any, TextIO

from absl import logging as absl_logging

UP = "\x1b[A"  # by which nested bars return to their lines
EVERY = 60.0  # seconds between two states of a bar in a log file
CHATTY = (
    "jax",
    "httpx",
    "httpcore",
    "openai",
    "urllib3",
    "filelock",
    "fsspec",
    "huggingface_hub",
    "matplotlib",
    "orbax",
)


class Stream:
    """A text stream that outlives its reader.

    A closed pipe or a full disk ends the output and not the run; a character that the
    terminal lacks is escaped. Without a terminal, bars leave a line a minute.

    Args:
      stream: sys.stdout or sys.stderr.
      bars: "move" to let them move, "lines" for a line now and then, "none".
    """

    def __init__(self, stream: TextIO, bars: str = "move") -> None:
        self.stream, self.bars = stream, bars
        self._last_state = time.monotonic()
        self._after_bar = False
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def write(self, text: str) -> int:
        """Writes a text, or what is shown of a bar."""
        if self.bars == "move":
            return self._write(text)
        only_moves = UP in text and not text.strip(f"\n{UP}")
        if text.startswith("\r") or only_moves:
            self._after_bar = True
            self._write_state(text.replace(UP, "").strip())
            return len(text)
        # A bar ends with a line break of its own.
        if not (self._after_bar and text == "\n"):
            self._after_bar = False
            self._write(text)
        return len(text)

    def _write_state(self, state: str) -> None:
        """Writes a bar's state as a line, when the last one was long ago."""
        due = time.monotonic() - self._last_state > EVERY
        if self.bars == "lines" and state and due:
            self._last_state = time.monotonic()
            self._write(state + "\n")

    def _write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._detach()
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        try:
            self.stream.flush()
        except OSError:
            self._detach()

    def _detach(self) -> None:
        """Sends all further output nowhere: nobody reads it any more."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def use_streams(*, quiet: bool = False) -> None:
    """Replaces stdout and stderr by a `Stream` each."""
    watched = "move" if sys.stderr.isatty() else "lines"
    bars = "none" if quiet else watched
    for name, kind in (("stdout", "move"), ("stderr", bars)):
        stream = getattr(sys, name)
        inner = stream.stream if isinstance(stream, Stream) else stream
        setattr(sys, name, Stream(inner, kind))


class _Lines(logging.Formatter):
    """Formats a record as time and text; the level only from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        warns = record.levelno >= logging.WARNING
        level = f"{record.levelname.lower()}: " if warns else ""
        text = f"{clock} {level}{record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return text


def use_logs(*, quiet: bool = False) -> None:
    """Makes log lines readable, and silences libraries that log their own affairs."""
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Lines())
    with contextlib.suppress(AttributeError):
        handler.python_handler.stream = sys.stderr
    _remove_console_handlers(handler)
    # jax logs at INFO which accelerators it did not find; httpx logs every request.
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # orbax writes twenty lines for a checkpoint, through absl's logger as we do.
    logging.getLogger("absl").addFilter(
        lambda record: (
            record.levelno >= logging.WARNING or "orbax" not in record.pathname
        )
    )
    absl_logging.set_verbosity(absl_logging.WARNING if quiet else absl_logging.INFO)
    warnings.showwarning = _log_warning


def _remove_console_handlers(ours: logging.Handler) -> None:
    """Removes handlers that a library has added: they would print every line again."""
    for other in list(logging.root.handlers):
        if other is ours or not isinstance(other, logging.StreamHandler):
            continue
        if other.stream in (sys.__stderr__, sys.__stdout__):
            logging.root.removeHandler(other)


def _log_warning(
    message: Warning | str, category: type[Warning], *place: Any, **options: Any
) -> None:
    """Logs a warning as one line, in the place of `warnings.showwarning`."""
    absl_logging.warning("%s", message)
