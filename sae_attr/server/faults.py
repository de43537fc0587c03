"""Classifies the errors of a request: those that another try may not meet, those of one
question, and those of every question.
"""

from __future__ import annotations

import email.utils
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from sae_attr.files.text import printable
from sae_attr.server.transport import Endless

_PASSING = {408, 409, 425, 429}  # and 5xx: another try may succeed
_OF_ONE = {400, 403, 413, 414, 422, 451}  # one question alone may be at fault
_SHOWN = 300  # characters of a server's message


class Failed(Exception):
    """One question got no answer although it was sent again as often as allowed."""


class Fatal(Exception):
    """The server refuses in a way that holds for every question."""


class NoLogprobs(Exception):
    """The server refuses to give token probabilities."""


class Filtered(Exception):
    """The server refuses this question because of its content."""


class Refused(Exception):
    """The server refuses this question, for instance as too long; others may be
    answered.
    """


class Passing(Exception):
    """An error that another try may not meet.

    Attributes:
      wait: seconds that the server asks to wait; None where it asks for nothing.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def fault_of(error: Exception, hide: Callable[[str], str]) -> Exception:
    """Returns the exception of this module that an error of the client stands for.

    Args:
      error: raised by the openai client or by `transport`.
      hide: takes the key out of a text.
    """
    openai = importlib.import_module("openai")

    def words_of(cause: object) -> str:
        return printable(hide(str(cause)), _SHOWN)

    words = words_of(error)
    if isinstance(error, Endless):
        return Passing(words)
    if isinstance(error, openai.APITimeoutError):
        return Passing("the server did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        if isinstance(error.__cause__, Endless):
            return Passing(words_of(error.__cause__))
        cause = words_of(error.__cause__ or error)
        return Passing(f"no connection to the server ({cause})")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, words)
    # A body that is no JSON, nested beyond all bounds, of another encoding: the client
    # raises whatever its parser does.
    kind = type(error).__name__
    return Passing(f"the server sent no completion ({kind}: {words}); check base_url")


def _of_status(error: Any, words: str) -> Exception:
    status, code = error.status_code, str(error.code or "")
    if code == "insufficient_quota":
        return Fatal(f"the server's own quota is used up: {words}")
    if 300 <= status < 400:
        return Fatal(
            f"the server answered {status}, a redirect, which is not followed; give "
            "the address that it stands for"
        )
    if status in _PASSING or status >= 500:
        return Passing(
            f"the server answered {status}: {words}",
            retry_after(error.response.headers),
        )
    if "content_filter" in code or "content_filter" in words:
        return Filtered(words)
    if status in (400, 422) and "logprob" in words.lower():
        return NoLogprobs(words)
    refusal = f"the server refused with {status}: {words}"
    if "max_completion_tokens" in words:
        return Refused(f"{refusal}; set token_field='max_completion_tokens'")
    return Refused(refusal) if status in _OF_ONE else Fatal(refusal)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a response asks to wait (retry-after-ms, or Retry-After
    as seconds or date); None where it asks for nothing.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        return max(0.0, float(headers["retry-after"]))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(0.0, date.timestamp() - time.time())
    # Also where the last day of the calendar has no time in the machine's zone.
    except (KeyError, ValueError, OverflowError):
        return None
