"""How many grades may be missing before a run is stopped."""

from __future__ import annotations

from dataclasses import dataclass

_FEW = 4  # missing grades that never stop a run


@dataclass(frozen=True)
class MissingGrades:
    """Limits the questions that may stay without an answer.

    Args:
      unanswered: share of questions that may stay without an answer, or `_FEW`
        questions where that is more; beyond it the run is stopped.

    Raises:
      ValueError: no share.
    """

    unanswered: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.unanswered <= 1:
            raise ValueError(
                f"unanswered {self.unanswered} is a share of questions; give 0 to 1"
            )

    def of(self, total: int) -> int:
        """Returns how many of so many questions may stay without an answer."""
        return max(_FEW, int(self.unanswered * total))

    def stated(self, total: int) -> str:
        """Returns the limit in words."""
        share = f"unanswered={self.unanswered:g}"
        return f"at most {self.of(total)} may stay without one ({share})"
