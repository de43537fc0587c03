"""One question to an OpenAI-compatible server: retries with back-off, errors told
apart, replies as plain values.
"""

from __future__ import annotations

import base64
import email.utils
import importlib
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge.budget import Budget
from sae_attr.judge.transport import Endless, bounded_client, within

_PASSING = {408, 409, 425, 429}  # and 5xx: another try may succeed
_OF_ONE = {400, 403, 413, 414, 422, 451}  # what may be wrong with one question alone
FEW = 4  # unanswered questions that never stop a judge
_SHORTEST_KEY = 4  # a shorter "key" would be cut out of ordinary words
_ROUNDING = 1e-3  # servers round log-probabilities of 0 up
_MOST_TOKENS = 10**9
_LONGEST_NAME = (
    200  # characters of what a server calls itself; it stands beside every grade
)
_TOKEN_CHARS = 4  # characters per token, where the server does not count


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


@dataclass(frozen=True)
class Server:
    """Where a judge is served.

    Args:
      base_url: for instance http://127.0.0.1:8000/v1.
      model: the name that the server knows it by.
      api_key: sent as the bearer token; never shown or stored.
      name: of the server, for readers. Neither it nor the address is part of the
        judge's identity: the same model behind another address gives the same grades,
        and those that are kept stay valid.
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
      timeout: seconds until a request counts as lost, its whole reply included.
      retries: how often a question is sent again after 408, 409, 425, 429, 5xx, a
        timeout, a broken connection or a body that is no chat completion.
      first_wait, longest_wait: seconds of the back-off, doubled each time, of which a
        random half to all is waited. A Retry-After of the server is waited in full; one
        longer than `longest_wait` ends the question.
      failures: questions in a row that may fail before no more are sent.
      unanswered: share of questions that may stay without an answer, or `FEW` questions
        where that is more; beyond it the judge is stopped.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    failures: int = 5
    unanswered: float = 0.1

    def __post_init__(self) -> None:
        if (
            self.concurrency < 1
            or self.retries < 0
            or self.timeout <= 0
            or self.failures < 1
        ):
            raise ValueError(
                f"{self}: concurrency and failures must be at least 1, timeout above "
                "0, retries from 0"
            )
        if not 0 <= self.unanswered <= 1:
            raise ValueError(
                f"unanswered {self.unanswered} is a share of questions; give 0 to 1"
            )


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Args:
      text: the message's content.
      tokens: (token, alternatives as (token, natural logarithm of its probability)) in
        order; empty where not given.
      finish: why it ended ("stop", "length", ...).
      model, fingerprint: what the server says it is.
      used: tokens of question and answer; `counted` is False where this is our
        estimate.
    """

    text: str
    tokens: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    finish: str
    model: str
    fingerprint: str
    used: int
    counted: bool


def openai_client(server: Server, patience: Patience) -> Any:
    """The `openai` client without retries and redirects of its own, which would escape
    the budget.

    Raises:
      ImportError: openai is not installed; says how to.
    """
    try:
        openai = importlib.import_module("openai")
    except ImportError as error:
        raise ImportError(
            "a judge behind a server needs openai; run: pip install 'sae_attr[judge]'"
        ) from error
    http = bounded_client(patience.timeout)
    options = {"timeout": patience.timeout, "max_retries": 0, "http_client": http}
    return openai.OpenAI(base_url=server.base_url, api_key=server.api_key, **options)


def ask(
    client: Any,
    request: Mapping[str, Any],
    *,
    patience: Patience,
    budget: Budget,
    halt: threading.Event,
) -> Reply:
    """The reply to one request, sent again where that may help.

    Args:
      request: fields of `chat.completions.create`.
      halt: when it is set, nothing is sent again.

    Raises:
      Failed, Fatal, NoLogprobs, Filtered, Refused: as their names say.
      budget.Spent: no call is left.
    """
    wait, problem = patience.first_wait, ""
    for attempt in range(patience.retries + 1):
        try:
            return _once(client, request, budget, patience.timeout)
        except _Passing as error:
            problem, asked = str(error), error.wait
        if attempt == patience.retries:
            break
        if asked is not None and asked > patience.longest_wait:
            raise Failed(
                f"{problem}; the server asks to wait {asked:.0f} s, longest_wait is "
                f"{patience.longest_wait:g}"
            )
        pause = asked if asked is not None else random.uniform(wait / 2, wait)
        if halt.wait(pause):
            raise Failed(f"{problem}; stopped before it was sent again")
        wait = min(2 * wait, patience.longest_wait)
    raise Failed(f"{problem} (sent {patience.retries + 1} times)")


class _Passing(Exception):
    """An error that another try may not meet; `wait` is what the server asked for, in
    seconds.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def expected_tokens(request: Mapping[str, Any]) -> int:
    """Tokens that a request may need: its text, and the longest answer that it allows."""
    chars = sum(len(message["content"]) for message in request["messages"])
    longest = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return chars // _TOKEN_CHARS + int(longest)


def _once(
    client: Any, request: Mapping[str, Any], budget: Budget, seconds: float
) -> Reply:
    """One request, written into the budget whatever becomes of it."""
    hide = hider(client.api_key)
    call = budget.take(expected_tokens(request))
    used = 0
    try:
        completion = within(seconds, lambda: client.chat.completions.create(**request))
        reply = _reply(completion, request, hide)
        used = reply.used
        return reply
    except _Passing:
        raise
    except Exception as error:
        raise _sorted(error, hide) from None  # the original's text may hold the key
    finally:
        budget.settle(call, used)


def hider(key: str) -> Callable[[str], str]:
    """Returns a function that makes a server's text fit for files: without the key,
    however it is written, and in UTF-8.

    Half of a surrogate pair, which JSON can hold and no file, becomes a question mark.
    """
    forms = () if len(key) < _SHORTEST_KEY or key == Server.api_key else _forms(key)

    def hide(text: str) -> str:
        for form in forms:
            text = text.replace(form, "[key]")
        return text.encode("utf-8", "replace").decode()

    return hide


def _forms(key: str) -> tuple[str, ...]:
    """A key as it is, in an address, in JSON and in base64."""
    encoded = base64.b64encode(key.encode()).decode()
    forms = (
        key,
        urllib.parse.quote(key, safe=""),
        json.dumps(key)[1:-1],
        key.replace("/", "\\/"),
        encoded,
    )
    return tuple(sorted(set(forms), key=len, reverse=True))


def _reply(
    completion: Any, request: Mapping[str, Any], hide: Callable[[str], str]
) -> Reply:
    """Plain values of a chat completion; `_Passing` where the body is something else."""
    try:
        choice = completion.choices[0]
        text = choice.message.content
        text = (
            text
            if isinstance(text, str)
            else str(getattr(choice.message, "refusal", None) or "")
        )
        content = getattr(getattr(choice, "logprobs", None), "content", None) or ()
        tokens = tuple(
            (hide(str(t.token)), _alternatives(t.top_logprobs, hide)) for t in content
        )
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        body = hide(str(completion))[:200]
        raise _Passing(
            f"the server sent no chat completion but {body!r}; check base_url"
        ) from error
    asked = sum(len(message["content"]) for message in request["messages"])
    counted = _count(getattr(getattr(completion, "usage", None), "total_tokens", None))
    return Reply(
        text=hide(text),
        tokens=tokens,
        finish=hide(str(choice.finish_reason or ""))[:_LONGEST_NAME],
        model=hide(str(completion.model or ""))[:_LONGEST_NAME],
        fingerprint=hide(str(getattr(completion, "system_fingerprint", None) or ""))[
            :_LONGEST_NAME
        ],
        used=counted or (asked + len(text)) // _TOKEN_CHARS,
        counted=bool(counted),
    )


def _alternatives(
    given: Any, hide: Callable[[str], str]
) -> tuple[tuple[str, float], ...]:
    """Tokens with log-probabilities; those that can be none (NaN, above 0, text) are
    left out.
    """
    out = []
    for alternative in given or ():
        logprob = float(alternative.logprob)
        if logprob <= _ROUNDING:
            out.append((hide(str(alternative.token)), logprob))
    return tuple(out)


def _count(value: Any) -> int:
    """A server's number of tokens; 0 for what can be none."""
    usable = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value < _MOST_TOKENS
    )
    return int(value) if usable else 0


def _sorted(error: Exception, hide: Callable[[str], str]) -> Exception:
    """What an error of the client means for this question and for all others."""
    openai = importlib.import_module("openai")
    words = hide(str(error))[:300]
    if isinstance(error, Endless):
        return _Passing(words)
    if isinstance(error, openai.APITimeoutError):
        return _Passing("the server did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        if isinstance(error.__cause__, Endless):
            return _Passing(hide(str(error.__cause__))[:300])
        return _Passing(
            f"no connection to the server ({hide(str(error.__cause__ or error))[:300]})"
        )
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, words)
    # A body that is no JSON, nested beyond all bounds, of another encoding: whatever
    #   the client made of it.
    kind = type(error).__name__
    return _Passing(
        f"the server sent no chat completion ({kind}: {words}); check base_url"
    )


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
        return _Passing(
            f"the server answered {status}: {words}",
            retry_after(error.response.headers),
        )
    if "content_filter" in code or "content_filter" in words:
        return Filtered(words)
    if status in (400, 422) and "logprob" in words.lower():
        return NoLogprobs(words)
    if "max_completion_tokens" in words:
        return Refused(
            f"the server refused with {status}: {words}; set "
            "token_field='max_completion_tokens'"
        )
    if status in _OF_ONE:
        return Refused(f"the server refused with {status}: {words}")
    return Fatal(f"the server refused with {status}: {words}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait (retry-after-ms, or Retry-After as seconds
    or date); None for nothing said.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return (
            max(0.0, float(headers["retry-after"]))
            if "retry-after" in headers
            else None
        )
    except ValueError:
        pass
    try:
        return max(
            0.0,
            email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp()
            - time.time(),
        )
    except (KeyError, ValueError):
        return None
