"""Counts answered and unanswered questions, and decides when a server is asked no
more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sae_attr.server.address import Patience
from sae_attr.server.budget import CallBudget, Spent
from sae_attr.server.faults import Failed, Fatal, Refused

Q = TypeVar("Q")  # a question
A = TypeVar("A")  # its answer


@dataclass(frozen=True)
class Stop:
    """Says why another run should ask the questions that are left.

    Args:
      answered, left: questions.
      reason: in words.
      spent: the budget ran out.
      estimate: what the rest costs, by the answers so far; "" where there is none.
    """

    answered: int
    left: int
    reason: str
    spent: bool = False
    estimate: str = ""


@dataclass
class Tally(Generic[Q, A]):
    """Keeps the state of asking many questions, and the reason for an early end.

    Args:
      waiting: questions that are not sent yet.
      total: questions.
      patience: limits.
      begun: calls and tokens that the budget had spent before.
      about: names what a question is about; a server may fail on all questions about one
        thing, and answer the rest.
      allowed: questions that may stay without an answer.
      answered: questions with an answer.
      in_a_row: questions that failed since the last answer.
      failed_about: what those questions are about.
      spent, fatal: why nothing more is sent; "" for no reason.
      unanswered: questions that got no answer after all tries, with the reason; their
        neighbours go on.
    """

    waiting: deque[Q]
    total: int
    patience: Patience
    begun: tuple[int, int]
    about: Callable[[Q], str]
    allowed: int = 0
    answered: int = 0
    in_a_row: int = 0
    failed_about: set[str] = field(default_factory=set)
    spent: str = ""
    fatal: str = ""
    unanswered: list[tuple[Q, Failed | Refused]] = field(default_factory=list)

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
        return len(self.failed_about) > 1 or self._about_another() is None

    def next_question(self) -> Q:
        """Takes the next question: in order, but for a doubtful server one about
        something on which it has not just failed.
        """
        if self.in_a_row >= self.patience.failures:
            question = self._about_another()
            if question is not None:
                self.waiting.remove(question)
                return question
        return self.waiting.popleft()

    def _about_another(self) -> Q | None:
        for question in self.waiting:
            if self.about(question) not in self.failed_about:
                return question
        return None

    def take(self, future: Future[A], question: Q) -> A | None:
        """Counts a finished question; returns its answer, or None where it has none."""
        try:
            answer = future.result()
        except Spent as error:
            self.spent = str(error)
        except Fatal as error:
            self.fatal = str(error)
        except (Failed, Refused) as error:
            self.unanswered.append((question, error))
            # A refusal comes from a living server; before the first answer it may be
            # one of every question.
            if isinstance(error, Failed) or not self.answered:
                self.in_a_row += 1
                self.failed_about.add(self.about(question))
        else:
            self.answered += 1
            self.in_a_row = 0
            self.failed_about.clear()
            return answer
        return None

    def stop(self, budget: CallBudget) -> Stop | None:
        """Returns why questions are left that another run should ask; None where none
        are.
        """
        left = self.total - self.answered
        if self.spent:
            estimate = self._estimate(budget, left)
            return Stop(self.answered, left, self.spent, True, estimate)
        reason = self._reason()
        return Stop(self.answered, left, reason) if reason else None

    def _reason(self) -> str:
        """Returns why the server is asked no more; "" where all were asked, and enough
        answered.
        """
        if self.fatal:
            return self.fatal
        lost = len(self.unanswered)
        if not self.ended and lost <= self.allowed:
            return ""
        return f"{lost} got no answer, the last because {self.unanswered[-1][1]}"

    def _estimate(self, budget: CallBudget, left: int) -> str:
        """Returns the cost of the rest, by that of the answers; "" where it has none."""
        if not self.answered:
            return ""
        calls = left * (budget.calls - self.begun[0]) / self.answered
        tokens = left * (budget.tokens - self.begun[1]) / self.answered
        return f" (about {calls:,.0f} calls and {tokens:,.0f} tokens more)"
