"""One question to an OpenAI-compatible server: retries with back-off, errors told apart, replies as plain values."""

from __future__ import annotations

import email.utils
import importlib
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge.budget import Budget

_PASSING = {408, 409, 425, 429}  # and 5xx: another try may succeed
_TOKEN_CHARS = 4  # characters per token, where the server does not count


class Failed(Exception):
    """One question got no answer although it was sent again as often as allowed."""


class Fatal(Exception):
    """The server refuses in a way that holds for every question."""


class NoLogprobs(Exception):
    """The server refuses to give token probabilities."""


class Filtered(Exception):
    """The server refuses this question because of its content."""


@dataclass(frozen=True)
class Server:
    """Where a judge is served.

    Args:
      base_url: for instance http://127.0.0.1:8000/v1.
      model: the name that the server knows it by.
      api_key: sent as the bearer token; never shown or stored.
      name: of the server, for readers. Neither it nor the address is part of the judge's identity: the same model behind
        another address gives the same grades, and those that are kept stay valid.
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    name: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """The served model."""
        return {"model": self.model}


@dataclass(frozen=True)
class Patience:
    """How a server is asked; none of it changes a grade.

    Args:
      concurrency: questions under way at once.
      timeout: seconds until a request counts as lost.
      retries: how often a question is sent again after 408, 409, 425, 429, 5xx, a timeout, a broken connection or a
        body that is no chat completion.
      first_wait, longest_wait: seconds of the back-off, doubled each time, of which a random half to all is waited. A
        Retry-After of the server is waited in full; one longer than `longest_wait` ends the question.
      failures: questions in a row that may fail before no more are sent.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    failures: int = 5

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.failures < 1:
            raise ValueError(f"{self}: concurrency and failures must be at least 1, timeout above 0, retries from 0")


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Args:
      text: the message's content.
      tokens: (token, alternatives as (token, natural logarithm of its probability)) in order; empty where not given.
      finish: why it ended ("stop", "length", ...).
      model, fingerprint: what the server says it is.
      used: tokens of question and answer; `counted` is False where this is our estimate.
    """

    text: str
    tokens: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    finish: str
    model: str
    fingerprint: str
    used: int
    counted: bool


def openai_client(server: Server, patience: Patience) -> Any:
    """The `openai` client without retries of its own, which would escape the budget.

    Raises:
      ImportError: openai is not installed; says how to.
    """
    try:
        openai = importlib.import_module("openai")
    except ImportError as error:
        raise ImportError("a judge behind a server needs openai; run: pip install 'sae_attr[judge]'") from error
    return openai.OpenAI(base_url=server.base_url, api_key=server.api_key, timeout=patience.timeout, max_retries=0)


def ask(client: Any, request: Mapping[str, Any], *, patience: Patience, budget: Budget, halt: threading.Event) -> Reply:
    """The reply to one request, sent again where that may help.

    Args:
      request: fields of `chat.completions.create`.
      halt: when it is set, nothing is sent again.

    Raises:
      Failed, Fatal, NoLogprobs, Filtered: as their names say.
      budget.Spent: no call is left.
    """
    wait, problem = patience.first_wait, ""
    for attempt in range(patience.retries + 1):
        try:
            return _once(client, request, budget)
        except _Passing as error:
            problem, asked = str(error), error.wait
        if attempt == patience.retries:
            break
        if asked is not None and asked > patience.longest_wait:
            raise Failed(f"{problem}; the server asks to wait {asked:.0f} s, longest_wait is {patience.longest_wait:g}")
        pause = asked if asked is not None else random.uniform(wait / 2, wait)
        if halt.wait(pause):
            raise Failed(f"{problem}; stopped before it was sent again")
        wait = min(2 * wait, patience.longest_wait)
    raise Failed(f"{problem} (sent {patience.retries + 1} times)")


class _Passing(Exception):
    """An error that another try may not meet; `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def expected_tokens(request: Mapping[str, Any]) -> int:
    """Tokens that a request may need: its text, and the longest answer that it allows."""
    chars = sum(len(message["content"]) for message in request["messages"])
    longest = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return chars // _TOKEN_CHARS + int(longest)


def _once(client: Any, request: Mapping[str, Any], budget: Budget) -> Reply:
    """One request, written into the budget whatever becomes of it."""
    reserved = expected_tokens(request)
    budget.take(reserved)
    used = 0
    try:
        reply = _reply(client.chat.completions.create(**request), request)
        used = reply.used
        return reply
    except (_Passing, Fatal):
        raise
    except Exception as error:
        raise _sorted(error) from error
    finally:
        budget.settle(reserved, used)


def _reply(completion: Any, request: Mapping[str, Any]) -> Reply:
    """Plain values of a chat completion; `_Passing` where the body is something else."""
    try:
        choice = completion.choices[0]
        text = choice.message.content
        text = text if isinstance(text, str) else str(getattr(choice.message, "refusal", None) or "")
        content = getattr(getattr(choice, "logprobs", None), "content", None) or ()
        tokens = tuple((t.token, tuple((a.token, float(a.logprob)) for a in t.top_logprobs or ())) for t in content)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise _Passing(f"the server sent no chat completion but {str(completion)[:200]!r}; check base_url") from error
    counted = getattr(getattr(completion, "usage", None), "total_tokens", None)
    asked = sum(len(message["content"]) for message in request["messages"])
    return Reply(
        text=text,
        tokens=tokens,
        finish=str(choice.finish_reason or ""),
        model=str(completion.model or ""),
        fingerprint=str(getattr(completion, "system_fingerprint", None) or ""),
        used=int(counted) if counted else (asked + len(text)) // _TOKEN_CHARS,
        counted=bool(counted),
    )


def _sorted(error: Exception) -> Exception:
    """What an error of the client means for this question and for all others."""
    openai = importlib.import_module("openai")
    if isinstance(error, openai.APITimeoutError):
        return _Passing("the server did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return _Passing(f"no connection to the server ({error.__cause__ or error})")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error)
    if isinstance(error, openai.APIError | ValueError):
        return _Passing(f"the server sent no chat completion ({str(error)[:200]}); check base_url")
    return error


def _of_status(error: Any) -> Exception:
    status, code, words = error.status_code, str(error.code or ""), str(error)[:300]
    if code == "insufficient_quota":
        return Fatal(f"the server's own quota is used up: {words}")
    if status in _PASSING or status >= 500:
        return _Passing(f"the server answered {status}: {words}", retry_after(error.response.headers))
    if "content_filter" in code or "content_filter" in words:
        return Filtered(words)
    if status in (400, 422) and "logprob" in words.lower():
        return NoLogprobs(words)
    hint = "; set token_field='max_completion_tokens'" if "max_completion_tokens" in words else ""
    return Fatal(f"the server refused with {status}: {words}{hint}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait (retry-after-ms, or Retry-After as seconds or date); None for nothing said."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"])) if "retry-after" in headers else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
