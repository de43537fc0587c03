"""Budgets in calls and tokens that hold over threads and, with a ledger, over runs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from sae_attr.store import PathLike, Progress


@dataclass(frozen=True)
class CallLimits:
    """Limits what a server is asked over all runs of a workdir.

    Args:
      max_calls, max_tokens: budget over all runs of a workdir; None for none.

    Raises:
      ValueError: a limit below 0.
    """

    max_calls: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_limit("max_calls", self.max_calls)
        _check_limit("max_tokens", self.max_tokens)


class Spent(Exception):
    """No further call fits the budget; the message says which limit."""


class CallBudget:
    """A limit on calls and tokens.

    A call is begun only if its expected tokens still fit beside those of the calls
    under way, so the limit is passed by no more than the error of that expectation.

    Args:
      calls, tokens: limits; None for none. Every request counts as a call, also one
        that fails and is sent again.
      ledger: a folder where every call is written down before it is sent, and again
        with the tokens that it used when its reply has come. Calls of earlier runs
        count, so a limit holds over all runs that share the ledger; a call that a kill
        cut short counts with the tokens that it was expected to need. Without a ledger
        the limit is this object's.
    """

    def __init__(
        self,
        calls: int | None = None,
        tokens: int | None = None,
        ledger: PathLike | None = None,
    ) -> None:
        _check_limit("calls", calls)
        _check_limit("tokens", tokens)
        self.max_calls, self.max_tokens = calls, tokens
        self._ledger = None if ledger is None else Progress(epath.Path(ledger))
        rows: Iterable[Mapping[str, Any]] = ()
        if self._ledger is not None:
            rows = self._ledger.rows()
        self.calls, self.tokens = _spent(rows)
        self._reserved: dict[str, int] = {}
        self._changed = threading.Condition()

    def take(self, tokens: int) -> str:
        """Begins a call that is expected to need `tokens` tokens; waits while the cost
        of calls under way decides whether it fits.

        Returns:
          the call's name, for `settle`.

        Raises:
          Spent: it does not fit.
        """
        with self._changed:
            while not self._fits(tokens):
                self._changed.wait()
            # Written down before it is sent: a kill may come between, and the server has
            # counted it.
            call = uuid.uuid4().hex
            if self._ledger is not None:
                self._ledger.append([{"begun": call, "tokens": tokens}])
            self._reserved[call] = tokens
            return call

    def _fits(self, tokens: int) -> bool:
        """Returns whether a call may begin now; raises Spent where it never may."""
        calls = self.calls + len(self._reserved)
        if self.max_calls is not None and calls >= self.max_calls:
            raise Spent(
                f"the budget of {self.max_calls:,} calls is spent ({self.describe()})"
            )
        needed = self.tokens + sum(self._reserved.values()) + tokens
        if self.max_tokens is None or needed <= self.max_tokens:
            return True
        if not self._reserved:
            raise Spent(
                f"the budget of {self.max_tokens:,} tokens has no room for a call of "
                f"about {tokens:,} ({self.describe()})"
            )
        return False

    def settle(self, call: str, used: int) -> None:
        """Ends a call; the tokens that it used replace those that `take` reserved."""
        with self._changed:
            del self._reserved[call]
            self.calls, self.tokens = self.calls + 1, self.tokens + used
            if self._ledger is not None:
                self._ledger.append([{"ended": call, "tokens": used}])
            self._changed.notify_all()

    def describe(self) -> str:
        """Returns in words how much is spent."""
        return f"used so far: {self.calls:,} calls, {self.tokens:,} tokens"


def _check_limit(name: str, limit: int | None) -> None:
    if limit is not None and not limit >= 0:
        raise ValueError(
            f"a budget of {limit} {name} is no number from 0; give one, or None for "
            "no limit"
        )


def _spent(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Returns calls and tokens of a ledger; a row that names no call is a whole one of an older
    version.
    """
    used: dict[str, int] = {}
    for number, row in enumerate(rows):
        call = row.get("ended") or row.get("begun") or f"row {number}"
        # The later row of a call replaces the expected tokens by those used.
        used[str(call)] = int(row.get("tokens", 0))
    return len(used), sum(used.values())
