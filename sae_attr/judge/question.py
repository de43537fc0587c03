"""Sends one question to a server until it is answered: attempts, waits and the budget.

The openai client can retry by itself, with Retry-After; that is switched off (openai 2 and
3). Each attempt must be in the budget before it is sent: a hook of the HTTP client could
charge it, but openai 2 takes what a hook raises for a broken connection, and retries. A
body with status 200 that is no chat completion is not retried there. Its waits end at 8 s,
cannot be set, and cannot be cut short when the judge stops. And its time limit is per
read, where ours is for the whole reply (`transport`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any

from sae_attr.judge.budget import CallBudget
from sae_attr.judge.faults import Failed, Passing, fault_of
from sae_attr.judge.reply import TOKEN_CHARS, Reply, hider, reply_of
from sae_attr.judge.server import Patience
from sae_attr.judge.transport import within


def ask(
    client: Any,
    request: Mapping[str, Any],
    *,
    patience: Patience,
    budget: CallBudget,
    halt: threading.Event,
) -> Reply:
    """Returns the reply to one request, sent again where that may help.

    Args:
      client: of `server.openai_client`.
      request: fields of `chat.completions.create`.
      halt: when it is set, nothing is sent again.

    Raises:
      Failed, Fatal, NoLogprobs, Filtered, Refused: see `faults`.
      budget.Spent: no call is left.
    """
    attempts = patience.retries + 1
    wait = patience.first_wait
    for attempt in range(1, attempts + 1):
        try:
            return _attempt(client, request, budget, patience.timeout)
        except Passing as error:
            fault = error
        if attempt == attempts:
            break
        if fault.wait is not None and fault.wait > patience.longest_wait:
            raise Failed(
                f"{fault}; the server asks to wait {fault.wait:.0f} s, longest_wait is "
                f"{patience.longest_wait:g}"
            )
        # Jitter keeps questions that failed together from being sent again together.
        pause = random.uniform(wait / 2, wait)
        if fault.wait is not None:
            pause = fault.wait
        if halt.wait(pause):
            raise Failed(f"{fault}; stopped before it was sent again")
        wait = min(2 * wait, patience.longest_wait)
    raise Failed(f"{fault} (sent {attempts} times)")


def expected_tokens(request: Mapping[str, Any]) -> int:
    """Returns the tokens that a request may need: its text, and the longest answer that
    it allows.
    """
    chars = sum([len(message["content"]) for message in request["messages"]])
    longest = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return chars // TOKEN_CHARS + int(longest)


def _attempt(
    client: Any, request: Mapping[str, Any], budget: CallBudget, seconds: float
) -> Reply:
    """Sends one request; it counts in the budget also where it fails."""
    hide = hider(client.api_key)
    call = budget.take(expected_tokens(request))
    used = 0
    try:
        completion = within(seconds, lambda: client.chat.completions.create(**request))
        reply = reply_of(completion, request, hide)
        used = reply.used
        return reply
    except Passing:
        raise
    except Exception as error:
        raise fault_of(error, hide) from None  # the original's text may hold the key
    finally:
        budget.settle(call, used)
