"""What a run prints: streams that cannot end it, log lines for people, and no moving
bars where nobody watches.
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

UP = "\x1b[A"  # by which nested bars go back to their lines
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
    """A text stream that outlives its reader, and in which bars leave a line a minute
    unless they are watched.

    A closed pipe or a full disk ends what is printed and not the run; a character that
    the terminal lacks is escaped.

    Args:
      stream: sys.stdout or sys.stderr.
      bars: "move" as they do, "lines" for a line now and then, "none".
    """

    def __init__(self, stream: TextIO, bars: str = "move") -> None:
        self.stream, self.bars = stream, bars
        self._shown, self._after_bar = time.monotonic(), False
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def write(self, text: str) -> int:
        """Writes a text, or what is shown of a bar."""
        if self.bars == "move":
            return self._write(text)
        if text.startswith("\r") or (UP in text and not text.strip(f"\n{UP}")):
            self._after_bar = True
            state = text.replace(UP, "").strip()
            if (
                self.bars == "lines"
                and state
                and time.monotonic() - self._shown > EVERY
            ):
                self._shown = time.monotonic()
                self._write(state + "\n")
        elif not (self._after_bar and text == "\n"):  # the end of a bar's line
            self._after_bar = False
            self._write(text)
        return len(text)

    def _write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._let_go()
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        try:
            self.stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Nobody reads any more: what is still to come goes nowhere."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def use_streams(*, quiet: bool = False) -> None:
    """Puts `Stream` in the place of stdout and stderr."""
    bars = "none" if quiet else "move" if sys.stderr.isatty() else "lines"
    for name, kind in (("stdout", "move"), ("stderr", bars)):
        stream = getattr(sys, name)
        setattr(
            sys,
            name,
            Stream(stream.stream if isinstance(stream, Stream) else stream, kind),
        )


class _Lines(logging.Formatter):
    """Time and text; the level only where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = (
            "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        )
        text = f"{clock} {level}{record.getMessage()}"
        return (
            f"{text}\n{self.formatException(record.exc_info)}"
            if record.exc_info
            else text
        )


def use_logs(*, quiet: bool = False) -> None:
    """Makes log lines readable, and keeps libraries from writing of their own affairs."""
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Lines())
    with contextlib.suppress(AttributeError):
        handler.python_handler.stream = sys.stderr
    for other in [
        h
        for h in logging.root.handlers
        if isinstance(h, logging.StreamHandler) and h is not handler
    ]:
        if other.stream in (
            sys.__stderr__,
            sys.__stdout__,
        ):  # a library's, which would say every line again
            logging.root.removeHandler(other)
    # jax tells at INFO which accelerators it did not find; httpx tells every request.
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # orbax writes twenty lines for a checkpoint, through absl's logger as we do.
    logging.getLogger("absl").addFilter(
        lambda r: r.levelno >= logging.WARNING or "orbax" not in r.pathname
    )
    absl_logging.set_verbosity(absl_logging.WARNING if quiet else absl_logging.INFO)
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **options: Any
) -> None:
    absl_logging.warning("%s", message)
