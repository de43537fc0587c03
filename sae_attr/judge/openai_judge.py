"""A judge behind any OpenAI-compatible server: weighted scores where it gives token
probabilities, text otherwise.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge.base import BudgetExhausted, Grade, Item, JudgeStopped, check_items
from sae_attr.judge.budget import Budget, Spent
from sae_attr.judge.replies import VERSION, read_reply
from sae_attr.judge.rubrics import Rubric, judge_prompt
from sae_attr.judge.server import (
    FEW,
    Failed,
    Fatal,
    Filtered,
    NoLogprobs,
    Patience,
    Refused,
    Reply,
    Server,
    ask,
    openai_client,
)
from sae_attr.judge.weighing import can_weigh, weighted_reply

_NUMBERS = re.compile(r"\b[0-9]{1,3}\b")
_OMITTABLE = {"temperature", "seed"}
_FEWER = (20, 5, 1)  # alternatives that a server may allow at most
_REFUSALS = 3  # of token probabilities, after which a server that never gave any is not asked for them
_SHORT, _LONG = 8, 600  # tokens of a bare answer and of a reasoned one


@dataclass(frozen=True)
class Asking:
    """How a question is put; all of it may change a grade, so all of it is part of the
    judge's identity.

    Args:
      answers: "auto" (scores weighted by token probabilities where the rubric asks for
        a bare number and the server gives them, else the text), "logprobs" (an error
        where it does not), or "text".
      temperature, seed: of the judge's sampling; the seed rises by 1 when a malformed
        reply is asked for again.
      max_tokens: longest reply; None for 8 where the rubric asks for a bare answer and
        600 where it may be reasoned. A model that thinks before it answers needs more.
      top_logprobs: alternatives asked for.
      again: how often a malformed reply is asked for again.
      token_field: the request's name for `max_tokens`; newer servers want
        max_completion_tokens.
      omit: fields that are left out of the request, of temperature and seed: some
        reasoning models refuse them.
      extra: further fields of the request body.
    """

    answers: str = "auto"
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    top_logprobs: int = 20
    again: int = 1
    token_field: str = "max_tokens"
    omit: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class OpenAIJudge:
    """A `Judge` that asks a server.

    Args:
      server: address and model.
      rubric: what is asked.
      asking: how it is asked, as far as grades depend on it.
      patience: concurrency, timeouts, retries.
      budget: calls and tokens that may be used; may be shared between judges.

    Attributes:
      warnings: what a reader of the grades must know, each once, in the order in which
        it came up.
      served: (model, fingerprint) that the server said it is -> replies.

    Raises:
      ImportError: openai is not installed.
      ValueError: answers is none of the three, or "logprobs" for a rubric with reasoned
        answers.
    """

    def __init__(
        self,
        server: Server,
        rubric: Rubric,
        asking: Asking = Asking(),
        patience: Patience = Patience(),  # noqa: B008 (frozen)
        budget: Budget | None = None,
    ) -> None:
        if asking.answers not in ("auto", "logprobs", "text"):
            raise ValueError(
                f"answers={asking.answers!r} is unknown; choose auto, logprobs or text"
            )
        if asking.answers == "logprobs" and rubric.reasoned:
            raise ValueError(
                f"rubric {rubric.name} has reasoned answers, which cannot be weighted; "
                "use answers='text'"
            )
        if unknown := set(asking.omit) - _OMITTABLE:
            raise ValueError(
                f"omit names {sorted(unknown)[0]!r}; only "
                f"{', '.join(sorted(_OMITTABLE))} can be left out"
            )
        self.server, self.rubric, self.asking, self.patience = (
            server,
            rubric,
            asking,
            patience,
        )
        self.budget = Budget() if budget is None else budget
        self.warnings: list[str] = []
        self.served: Counter[tuple[str, str]] = Counter()
        self._weighs = asking.answers != "text" and can_weigh(rubric)
        self._refusals, self._gave, self._top = 0, False, asking.top_logprobs
        self._client = openai_client(server, patience)
        self._lock = threading.Lock()

    @property
    def is_model(self) -> bool:
        """True: a model answers, so that `ask_one` asks it."""
        return True

    @property
    def tells_coherence(self) -> bool:
        """As its rubric does."""
        return self.rubric.tells_coherence

    @property
    def identity(self) -> dict[str, Any]:
        """Model, server, rubric and every setting that may change a grade."""
        return {
            "kind": "openai",
            "name": self.server.model,
            "version": VERSION,
            **self.server.identity,
            "rubric": self.rubric.identity,
            "settings": {**vars(self.asking), "extra": dict(self.asking.extra)},
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """(id, grade) as replies arrive.

        Raises:
          ValueError: an id that stands twice.
          BudgetExhausted: the budget ran out; replies under way are still waited for
            and yielded.
          JudgeStopped: the server refuses, or failed for too many questions in a row or
            for some in the end.
        """
        check_items(items)
        return self._grades(items)

    def _grades(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        waiting = deque(items)
        running = dict[Future[Grade], Item]()
        halt = threading.Event()
        state = _State(total=len(items), begun=(self.budget.calls, self.budget.tokens))
        with ThreadPoolExecutor(
            self.patience.concurrency, thread_name_prefix="judge"
        ) as pool:
            try:
                while running or (waiting and not state.ended(self.patience)):
                    while (
                        waiting
                        and len(running) < self.patience.concurrency
                        and not state.ended(self.patience)
                    ):
                        item = waiting.popleft()
                        running[pool.submit(self._one, item, halt)] = item
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        item = running.pop(future)
                        if (grade := state.take(future, item)) is not None:
                            yield item.id, grade
            finally:
                halt.set()  # where the caller asks for no more, nothing is sent again
        state.raise_if_stopped(self.budget, self.patience)
        for item, reason in state.unanswered:
            yield item.id, self.rubric.malformed(raw="", details={"error": reason})
        if state.unanswered:
            self._warn(
                f"{len(state.unanswered)} of {len(items)} questions got no answer, the "
                f"last because {reason}"
            )

    def _one(self, item: Item, halt: threading.Event) -> Grade:
        """The grade of one item; a malformed reply is asked for again as often as
        allowed.
        """
        # A half of a surrogate pair, which a completion cut within a character has,
        # cannot be sent.
        content = judge_prompt(self.rubric, item).encode("utf-8", "replace").decode()
        messages = [{"role": "user", "content": content}]
        discarded: list[str] = []
        while True:
            grade = self._asked(messages, self.asking.seed + len(discarded), halt)
            if (
                not grade.malformed
                or len(discarded) >= self.asking.again
                or "error" in grade.details
            ):
                return dataclasses.replace(grade, discarded=tuple(discarded))
            discarded.append(grade.raw)

    def _asked(
        self, messages: list[dict[str, str]], seed: int, halt: threading.Event
    ) -> Grade:
        weigh = self._weighs and not self._never_gives
        try:
            return self._answered(messages, seed, halt, weigh)
        except NoLogprobs as error:
            problem = str(error)
        if (
            not weigh
        ):  # none were asked for: the message holds the word for another reason
            raise Refused(problem)
        if self._fewer_logprobs(problem):
            return self._asked(messages, seed, halt)
        self._check_may_lack(f"the server refuses token probabilities ({problem})")
        try:
            grade = self._answered(messages, seed, halt, False)
        except NoLogprobs as error:  # refused without them too: it was not about them
            raise Refused(str(error)) from None
        self._note_refusal(problem)
        return grade

    def _answered(
        self,
        messages: list[dict[str, str]],
        seed: int,
        halt: threading.Event,
        weigh: bool,
    ) -> Grade:
        """The grade of one reply, asked for in one way."""
        try:
            reply = self._reply(messages, seed, halt, weigh)
        except Filtered as error:
            return self.rubric.malformed(
                raw=str(error), details={"error": "content_filter"}
            )
        self._note(reply)
        return self._read(reply, weigh)

    def _check_may_lack(self, problem: str) -> None:
        """Raises Fatal where token probabilities are insisted on."""
        if self.asking.answers == "logprobs":
            raise Fatal(f"{problem}; use answers='auto' or 'text'")

    def _reply(
        self,
        messages: list[dict[str, str]],
        seed: int,
        halt: threading.Event,
        weigh: bool,
    ) -> Reply:
        request = self._request(messages, seed, weigh)
        return ask(
            self._client, request, patience=self.patience, budget=self.budget, halt=halt
        )

    def _request(
        self, messages: list[dict[str, str]], seed: int, weigh: bool
    ) -> dict[str, Any]:
        asking = self.asking
        longest = asking.max_tokens or (_LONG if self.rubric.reasoned else _SHORT)
        request: dict[str, Any] = {
            "model": self.server.model,
            "messages": messages,
            "seed": seed,
        }
        request |= {"temperature": asking.temperature, asking.token_field: longest}
        for name in asking.omit:
            del request[name]
        request |= {"logprobs": True, "top_logprobs": self._top} if weigh else {}
        return request | ({"extra_body": dict(asking.extra)} if asking.extra else {})

    def _read(self, reply: Reply, weigh: bool) -> Grade:
        """The grade of one reply, decided by that reply alone: weighted where its
        tokens allow it, else by its text.
        """
        details = {
            "model": reply.model,
            "fingerprint": reply.fingerprint,
            "finish": reply.finish,
            "tokens": reply.used,
        }
        details = {name: value for name, value in details.items() if value}
        by_text = read_reply(reply.text, self.rubric, details=details)
        if weigh:
            score = weighted_reply(reply.tokens, reply.text, by_text.score, self.rubric)
            if score is not None:
                return self.rubric.scored(
                    score, raw=by_text.raw, weighted=True, details=details
                )
            if not _alternatives_of(reply) and reply.text.strip():
                self._note_absence()
        if (
            reply.finish == "length" and reply.text[-1:].isdigit()
        ):  # an 8 may be the beginning of 85
            return self.rubric.malformed(raw=by_text.raw, details=details)
        return by_text

    def _fewer_logprobs(self, words: str) -> bool:
        """Asks for fewer alternatives from now on, where a server refuses so many;
        False where it refuses any.

        How many the server gives is the same for all replies, and the first reply
        tells.
        """
        with self._lock:
            stated = [
                int(number)
                for number in _NUMBERS.findall(words)
                if 0 < int(number) < self._top
            ]
            fewer = max(
                [*stated, *(number for number in _FEWER if number < self._top)],
                default=0,
            )
            if self._gave or not fewer or "top_logprobs" not in words:
                return False
            self._top = fewer
        self._warn(
            f"the server allows {fewer} alternatives of a token at most, "
            f"{self.asking.top_logprobs} were asked for"
        )
        return True

    @property
    def _never_gives(self) -> bool:
        """Whether the server refused token probabilities several times and never gave
        any: it is not asked for them again.
        """
        return self._refusals >= _REFUSALS and not self._gave

    def _note_refusal(self, words: str) -> None:
        problem = f"the server refuses token probabilities ({words})"
        with self._lock:
            self._refusals += 1
        self._warn(
            f"{problem}: such scores of {self.server.model} on {self.rubric.name} are "
            "read from the text"
        )

    def _note_absence(self) -> None:
        problem = "the server gives no token probabilities"
        self._check_may_lack(problem)
        self._warn(
            f"{problem} for some replies: their scores by {self.rubric.name} are read "
            "from the text"
        )

    def _note(self, reply: Reply) -> None:
        with self._lock:
            self.served[reply.model, reply.fingerprint] += 1
            self._gave = self._gave or _alternatives_of(reply)
        if len(self.served) > 1:
            self._warn(
                f"{self.server.model} was answered by more than one version; "
                "Grade.details tells which"
            )
        if not reply.counted:
            self._warn(
                "the server does not count tokens; the budget goes by 4 characters to "
                "a token"
            )

    def _warn(self, text: str) -> None:
        with self._lock:
            if text not in self.warnings:
                self.warnings.append(text)


def _alternatives_of(reply: Reply) -> bool:
    """Whether a reply has token probabilities."""
    return any(alternatives for _, alternatives in reply.tokens)


@dataclass
class _State:
    """How far a call of `grade` has come, and why it ends early.

    Args:
      total: questions.
      begun: calls and tokens that the budget had spent before.
      unanswered: questions that got no answer after all tries, with the reason; their
        neighbours go on.
    """

    total: int
    begun: tuple[int, int]
    graded: int = 0
    in_a_row: int = 0
    spent: str = ""
    fatal: str = ""
    unanswered: list[tuple[Item, str]] = field(default_factory=list)

    def ended(self, patience: Patience) -> bool:
        return bool(self.spent or self.fatal) or self.in_a_row >= patience.failures

    def take(self, future: Future[Grade], item: Item) -> Grade | None:
        """The grade of a finished question, or None where it has none."""
        try:
            grade = future.result()
        except Spent as error:
            self.spent = str(error)
        except Fatal as error:
            self.fatal = str(error)
        except (Failed, Refused) as error:
            self.unanswered.append((item, str(error)))
            # A server that answers others may refuse any number of equal questions in a
            #   row: all samples of one prompt.
            self.in_a_row += isinstance(error, Failed) or not self.graded
        else:
            self.graded, self.in_a_row = self.graded + 1, 0
            return grade
        return None

    def raise_if_stopped(self, budget: Budget, patience: Patience) -> None:
        """Raises BudgetExhausted or JudgeStopped where questions are left that another
        run should ask.
        """
        left = self.total - self.graded
        far = f"graded {self.graded} of {self.total} items, {left} are left"
        if self.spent:
            raise BudgetExhausted(
                f"{far}: {self.spent}. What is graded is kept; run again with a larger "
                "budget to go on"
                f"{self._estimate(budget, left)}",
                graded=self.graded,
                left=left,
            )
        lost, limit = len(self.unanswered), max(FEW, patience.unanswered * self.total)
        if not self.fatal and not self.ended(patience) and lost <= limit:
            return
        why = self.fatal
        if not why:
            why = f"{lost} got no answer, the last because {self.unanswered[-1][1]}"
        if not self.fatal and not self.ended(patience):
            why = f"{why}; at most {limit:.0f} may stay without one (unanswered={patience.unanswered:g})"
        raise JudgeStopped(
            f"{far}: {why}. What is graded is kept; run again to go on",
            graded=self.graded,
            left=left,
        )

    def _estimate(self, budget: Budget, left: int) -> str:
        """What the rest may cost, by what this run's grades did; nothing where it has
        none.
        """
        if not self.graded:
            return ""
        calls, tokens = budget.calls - self.begun[0], budget.tokens - self.begun[1]
        return f" (about {left * calls / self.graded:,.0f} calls and {left * tokens / self.graded:,.0f} tokens more)"
