"""Sends one request to a server until it is answered: attempts, waits and the budget.

The openai client can retry by itself, with Retry-After; that is switched off (openai 2 and
3). Each attempt must be in the budget before it is sent: a hook of the HTTP client could
charge it, but openai 2 takes what a hook raises for a broken connection, and retries. A
body with status 200 that is no completion is not retried there. Its waits end at 8 s,
cannot be set, and cannot be cut short when the caller stops. And its time limit is per
read, where ours is for the whole reply (`transport`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.server.address import Patience
from sae_attr.server.budget import CallBudget
from sae_attr.server.faults import Failed, Fatal, Passing, fault_of
from sae_attr.server.reply import Reply, expected_tokens, reply_of
from sae_attr.server.secret import contains_key, hider
from sae_attr.server.transport import within


@dataclass(frozen=True)
class Endpoint:
    """Asks a server one way, within limits.

    Args:
      create: of the openai client: `chat.completions.create`, or `completions.create`.
      key: of the server, which is taken out of every text of the server's.
      patience: limits.
      budget: that every attempt counts in.
      verbatim: answers are data, which are never rewritten; one that holds the key ends
        the asking instead.
    """

    create: Callable[..., Any]
    key: str = field(repr=False)
    patience: Patience
    budget: CallBudget
    verbatim: bool = False

    def ask(self, request: Mapping[str, Any], halt: threading.Event) -> Reply:
        """Returns the reply to one request, sent again where that may help.

        Args:
          request: fields of `create`.
          halt: when it is set, nothing is sent again.

        Raises:
          Failed, Fatal, NoLogprobs, Filtered, Refused: see `faults`.
          budget.Spent: no call is left.
        """
        patience = self.patience
        attempts = patience.retries + 1
        wait = patience.first_wait
        for attempt in range(1, attempts + 1):
            try:
                return self._attempt(request)
            except Passing as error:
                fault = error
            if attempt == attempts:
                break
            if fault.wait is not None and fault.wait > patience.longest_wait:
                raise Failed(
                    f"{fault}; the server asks to wait {fault.wait:.0f} s, longest_wait "
                    f"is {patience.longest_wait:g}"
                )
            # Jitter keeps requests that failed together from being sent again together.
            pause = random.uniform(wait / 2, wait)
            if fault.wait is not None:
                pause = fault.wait
            if halt.wait(pause):
                raise Failed(f"{fault}; stopped before it was sent again")
            wait = min(2 * wait, patience.longest_wait)
        raise Failed(f"{fault} (sent {attempts} times)")

    def _attempt(self, request: Mapping[str, Any]) -> Reply:
        """Sends one request; it counts in the budget also where it fails."""
        hide = hider(self.key)
        call = self.budget.take(expected_tokens(request))
        used = 0
        try:
            completion = within(self.patience.timeout, lambda: self.create(**request))
            reply = reply_of(completion, request, hide, verbatim=self.verbatim)
            used = reply.used
            if self.verbatim:
                self.check_without_key(reply.text)
            return reply
        except (Passing, Fatal):
            raise
        except Exception as error:
            # The original's text may hold the key.
            raise fault_of(error, hide) from None
        finally:
            self.budget.settle(call, used)

    def check_without_key(self, text: str) -> None:
        """Raises Fatal for a text that holds the key: with the key it may not reach a
        file, and without it, it is another text.
        """
        if contains_key(self.key, text):
            raise Fatal(
                "a completion holds the server's key, and is neither changed nor kept; "
                "a key that is an ordinary word is no secret: unset the environment "
                "variable that holds it, or name another one in server.key_variable"
            )
