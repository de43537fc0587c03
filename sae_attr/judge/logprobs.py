"""What a server has shown of its token probabilities: how many it gives, or that it gives
none.
"""

from __future__ import annotations

import re
import threading

_NUMBERS = re.compile(r"\b[0-9]{1,3}\b")
_FEWER = (20, 5, 1)  # alternatives that a server may allow at most
_REFUSALS = 3  # after which a server that never gave any is not asked for them


class LogprobSupport:
    """The state of a server's token probabilities; shared by all questions of a judge.

    Attributes:
      top: alternatives of each token to ask for.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._refusals, self._gave = 0, False
        self._lock = threading.Lock()

    @property
    def never(self) -> bool:
        """Whether the server refused several times and never gave any."""
        return self._refusals >= _REFUSALS and not self._gave

    def note_refusal(self) -> None:
        """Counts a question that was answered only without probabilities."""
        with self._lock:
            self._refusals += 1

    def note_reply(self, gave: bool) -> None:
        """Records whether a reply had probabilities."""
        with self._lock:
            self._gave = self._gave or gave

    def lower(self, refusal: str) -> int | None:
        """Lowers `top` to what a refusal allows; returns it, or None where the server
        refuses any.

        The limit of a server is the same for all replies, so the first one settles it.

        Args:
          refusal: the server's message.
        """
        with self._lock:
            fewer = []
            for number in (*_FEWER, *map(int, _NUMBERS.findall(refusal))):
                if 0 < number < self.top:
                    fewer.append(number)
            if self._gave or not fewer or "top_logprobs" not in refusal:
                return None
            self.top = max(fewer)
            return self.top
