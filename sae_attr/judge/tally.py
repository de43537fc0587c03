"""Counts graded and unanswered questions, and decides when a judge stops."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from sae_attr.judge.base import BudgetExhausted, Grade, Item, JudgeStopped
from sae_attr.judge.budget import CallBudget, Spent
from sae_attr.judge.faults import Failed, Fatal, Refused
from sae_attr.judge.server import FEW, Patience


@dataclass
class Tally:
    """The state of one call of `grade`, and the reason for its early end.

    Args:
      waiting: questions that are not sent yet.
      total: questions.
      patience: limits.
      begun: calls and tokens that the budget had spent before.
      graded: questions with a grade.
      in_a_row: questions that failed since the last grade.
      failed_prompts: prompts of those questions.
      spent, fatal: why nothing more is sent; "" for no reason.
      unanswered: questions that got no answer after all tries, with the reason; their
        neighbours go on.
    """

    waiting: deque[Item]
    total: int
    patience: Patience
    begun: tuple[int, int]
    graded: int = 0
    in_a_row: int = 0
    failed_prompts: set[str] = field(default_factory=set)
    spent: str = ""
    fatal: str = ""
    unanswered: list[tuple[Item, str]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be sent."""
        return bool(self.spent or self.fatal) or self._is_dead

    @property
    def _is_dead(self) -> bool:
        """Whether the server answers nothing any more.

        A server may fail on any number of equal questions, all samples of one prompt,
        and answer the rest. So failures in a row about one prompt alone do not count
        while there is another prompt to ask about.
        """
        if self.in_a_row < self.patience.failures:
            return False
        return len(self.failed_prompts) > 1 or not self._about_another_prompt()

    def next_item(self) -> Item:
        """Takes the next question: in order, but for a doubtful server one about a
        prompt on which it has not just failed.
        """
        if self.in_a_row >= self.patience.failures:
            item = self._about_another_prompt()
            if item is not None:
                self.waiting.remove(item)
                return item
        return self.waiting.popleft()

    def _about_another_prompt(self) -> Item | None:
        for item in self.waiting:
            if str(item.prompt) not in self.failed_prompts:
                return item
        return None

    def take(self, future: Future[Grade], item: Item) -> Grade | None:
        """Counts a finished question; returns its grade, or None where it has none."""
        try:
            grade = future.result()
        except Spent as error:
            self.spent = str(error)
        except Fatal as error:
            self.fatal = str(error)
        except (Failed, Refused) as error:
            self.unanswered.append((item, str(error)))
            # A refusal comes from a living server; before the first grade it may be
            # one of every question.
            if isinstance(error, Failed) or not self.graded:
                self.in_a_row += 1
                self.failed_prompts.add(str(item.prompt))
        else:
            self.graded += 1
            self.in_a_row = 0
            self.failed_prompts.clear()
            return grade
        return None

    def raise_if_stopped(self, budget: CallBudget) -> None:
        """Raises BudgetExhausted or JudgeStopped where questions are left that another
        run should ask.
        """
        left = self.total - self.graded
        progress = f"graded {self.graded} of {self.total} items, {left} are left"
        if self.spent:
            raise BudgetExhausted(
                f"{progress}: {self.spent}. What is graded is kept; run again with a "
                f"larger budget to go on{self._estimate(budget, left)}",
                graded=self.graded,
                left=left,
            )
        reason = self._reason()
        if reason:
            raise JudgeStopped(
                f"{progress}: {reason}. What is graded is kept; run again to go on",
                graded=self.graded,
                left=left,
            )

    def _reason(self) -> str:
        """Returns why the judge is stopped; "" where it is not."""
        if self.fatal:
            return self.fatal
        lost = len(self.unanswered)
        limit = max(FEW, self.patience.unanswered * self.total)
        if not self.ended and lost <= limit:
            return ""
        reason = f"{lost} got no answer, the last because {self.unanswered[-1][1]}"
        if self.ended:
            return reason
        share = f"unanswered={self.patience.unanswered:g}"
        return f"{reason}; at most {limit:.0f} may stay without one ({share})"

    def _estimate(self, budget: CallBudget, left: int) -> str:
        """Returns the cost of the rest, by that of this call's grades; "" where it has none."""
        if not self.graded:
            return ""
        calls = left * (budget.calls - self.begun[0]) / self.graded
        tokens = left * (budget.tokens - self.begun[1]) / self.graded
        return f" (about {calls:,.0f} calls and {tokens:,.0f} tokens more)"
