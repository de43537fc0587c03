"""A judge behind any OpenAI-compatible server: weighted scores where it gives token
probabilities, text otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sae_attr.judge.asking import Asking, request_of
from sae_attr.judge.base import (
    BudgetExhausted,
    Grade,
    Item,
    Judge,
    JudgeStopped,
    check_items,
)
from sae_attr.judge.kinds import JudgeKind, Workplace
from sae_attr.judge.logprobs import LogprobSupport
from sae_attr.judge.missing import MissingGrades
from sae_attr.judge.model_judge import ModelJudge
from sae_attr.judge.prompt import judge_prompt
from sae_attr.judge.replies import VERSION, read_reply
from sae_attr.judge.rubrics import Rubric
from sae_attr.judge.weighing import can_weigh, weighted_reply
from sae_attr.server.address import Patience, Server, openai_client
from sae_attr.server.attempts import Endpoint
from sae_attr.server.budget import CallBudget, CallLimits
from sae_attr.server.faults import Fatal, Filtered, NoLogprobs, Refused
from sae_attr.server.many import ask_many
from sae_attr.server.reply import Reply
from sae_attr.server.tally import Stop, Tally


class OpenAIJudge(ModelJudge):
    """A `Judge` that asks a server.

    Args:
      server: address and model.
      rubric: the question.
      asking: settings of the question, on which grades depend.
      patience: concurrency, timeouts, retries.
      budget: calls and tokens that may be used; may be shared between judges.
      missing: how many grades may be missing.

    Attributes:
      warnings: what a reader of the grades must know, each once, in the order in which
        it came up.
      served: (model, fingerprint) as the server names itself -> replies.

    Raises:
      ImportError: openai is not installed.
      ValueError: answers "logprobs" for a rubric with reasoned answers.
    """

    def __init__(
        self,
        server: Server,
        rubric: Rubric,
        asking: Asking = Asking(),  # noqa: B008 (frozen)
        patience: Patience = Patience(),  # noqa: B008 (frozen)
        budget: CallBudget | None = None,
        missing: MissingGrades = MissingGrades(),  # noqa: B008 (frozen)
    ) -> None:
        if asking.answers == "logprobs" and rubric.reasoned:
            raise ValueError(
                f"rubric {rubric.name} has reasoned answers, which cannot be weighted; "
                "use answers='text'"
            )
        self.server = server
        self.rubric = rubric
        self.asking = asking
        self.patience = patience
        self.missing = missing
        self.budget = CallBudget() if budget is None else budget
        self.warnings: list[str] = []
        self.served: Counter[tuple[str, str]] = Counter()
        self._weighs = asking.answers != "text" and can_weigh(rubric)
        self._logprobs = LogprobSupport(asking.top_logprobs)
        client = openai_client(server, patience)
        create = client.chat.completions.create
        self._endpoint = Endpoint(create, server.api_key, patience, self.budget)
        self._lock = threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        """Model, server, rubric and every setting that may change a grade."""
        return {
            "kind": "openai",
            "name": self.server.model,
            "version": VERSION,
            **self.server.identity,
            "rubric": self.rubric.identity,
            "settings": self.asking.identity,
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade) as replies arrive.

        Raises:
          ValueError: an id that occurs twice.
          BudgetExhausted: the budget ran out; replies under way are still waited for
            and yielded.
          JudgeStopped: the server refuses, or failed for too many questions in a row or
            for some in the end.
        """
        check_items(items)
        return self._grades(items)

    def _grades(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        tally = Tally[Item, Grade](
            deque(items),
            len(items),
            self.patience,
            begun=(self.budget.calls, self.budget.tokens),
            about=lambda item: str(item.prompt),
            allowed=self.missing.of(len(items)),
        )
        for item, grade in ask_many(tally, self._one, name="judge"):
            yield item.id, grade
        stop = tally.stop(self.budget)
        if stop is not None:
            if not tally.ended:
                limit = self.missing.stated(len(items))
                stop = dataclasses.replace(stop, reason=f"{stop.reason}; {limit}")
            raise _stopped(stop)
        for item, error in tally.unanswered:
            details = {"error": str(error)}
            yield item.id, self.rubric.malformed(raw="", details=details)
        if tally.unanswered:
            self._warn(
                f"{len(tally.unanswered)} of {len(items)} questions got no answer, the "
                f"last because {tally.unanswered[-1][1]}"
            )

    def _one(self, item: Item, halt: threading.Event) -> Grade:
        """Returns the grade of one item; a malformed reply is asked for again as often as
        allowed.
        """
        # A half of a surrogate pair, which a completion cut within a character has,
        # cannot be sent.
        content = judge_prompt(self.rubric, item).encode("utf-8", "replace").decode()
        discarded: list[str] = []
        while True:
            # Another seed: at the same one a server may give the same reply again.
            grade = self._asked(content, self.asking.seed + len(discarded), halt)
            is_final = not grade.malformed or "error" in grade.details
            if is_final or len(discarded) >= self.asking.again:
                return dataclasses.replace(grade, discarded=tuple(discarded))
            discarded.append(grade.raw)

    def _asked(self, content: str, seed: int, halt: threading.Event) -> Grade:
        """Returns the grade of one reply, with token probabilities where the server gives
        them.
        """
        weigh = self._weighs and not self._logprobs.never
        try:
            return self._answered(content, seed, halt, weigh)
        except NoLogprobs as error:
            refusal = str(error)
        if not weigh:  # none were asked for: the message is about something else
            raise Refused(refusal)
        if fewer := self._logprobs.lower(refusal):
            self._warn(
                f"the server allows {fewer} alternatives of a token at most, "
                f"{self.asking.top_logprobs} were asked for"
            )
            return self._asked(content, seed, halt)
        problem = f"the server refuses token probabilities ({refusal})"
        self._check_may_lack(problem)
        try:
            grade = self._answered(content, seed, halt, weigh=False)
        except NoLogprobs as error:  # refused without them too: it was not about them
            raise Refused(str(error)) from None
        self._logprobs.note_refusal()
        self._warn(
            f"{problem}: such scores of {self.server.model} on {self.rubric.name} are "
            "read from the text"
        )
        return grade

    def _answered(
        self, content: str, seed: int, halt: threading.Event, weigh: bool
    ) -> Grade:
        """Returns the grade of one reply, with or without token probabilities."""
        request = request_of(
            self.asking,
            self.rubric,
            model=self.server.model,
            content=content,
            seed=seed,
            top_logprobs=self._logprobs.top if weigh else None,
        )
        try:
            reply = self._endpoint.ask(request, halt)
        except Filtered as error:
            details = {"error": "content_filter"}
            return self.rubric.malformed(raw=str(error), details=details)
        self._note(reply)
        return self._read(reply, weigh)

    def _read(self, reply: Reply, weigh: bool) -> Grade:
        """Returns the grade of one reply, decided by that reply alone: weighted where its
        tokens allow it, else by its text.
        """
        details: dict[str, Any] = {
            "model": reply.model,
            "fingerprint": reply.fingerprint,
            "finish": reply.finish,
            "tokens": reply.used,
        }
        for name, value in tuple(details.items()):
            if not value:
                del details[name]
        by_text = read_reply(reply.text, self.rubric, details=details)
        if weigh:
            score = weighted_reply(reply.tokens, reply.text, by_text.score, self.rubric)
            if score is not None:
                return self.rubric.scored(
                    score, raw=by_text.raw, weighted=True, details=details
                )
            if not reply.has_probabilities and reply.text.strip():
                problem = "the server gives no token probabilities"
                self._check_may_lack(problem)
                self._warn(
                    f"{problem} for some replies: their scores by {self.rubric.name} "
                    "are read from the text"
                )
        # Cut within a number, an 8 may be the beginning of 85.
        if reply.finish == "length" and reply.text[-1:].isdigit():
            return self.rubric.malformed(raw=by_text.raw, details=details)
        return by_text

    def _check_may_lack(self, problem: str) -> None:
        """Raises Fatal where token probabilities are insisted on."""
        if self.asking.answers == "logprobs":
            raise Fatal(f"{problem}; use answers='auto' or 'text'")

    def _note(self, reply: Reply) -> None:
        self._logprobs.note_reply(reply.has_probabilities)
        with self._lock:
            self.served[reply.model, reply.fingerprint] += 1
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


def _stopped(stop: Stop) -> JudgeStopped:
    """Returns the error that ends grading early."""
    progress = (
        f"graded {stop.answered} of {stop.answered + stop.left} items, {stop.left} are "
        f"left: {stop.reason}. What is graded is kept; run again"
    )
    counts = {"graded": stop.answered, "left": stop.left}
    if not stop.spent:
        return JudgeStopped(f"{progress} to go on", **counts)
    text = f"{progress} with a larger budget to go on{stop.estimate}"
    return BudgetExhausted(text, **counts)


def _open(
    server: Server,
    asking: Asking,
    patience: Patience,
    missing: MissingGrades,
    limits: CallLimits,
    workplace: Workplace,
) -> Callable[[Rubric | None], Judge]:
    key = os.environ.get("OPENAI_API_KEY", Server.api_key)
    server = dataclasses.replace(server, api_key=key)
    ledger = workplace.folder / "spent"
    budget = CallBudget(limits.max_calls, limits.max_tokens, ledger=ledger)

    def judge(rubric: Rubric | None) -> Judge:
        assert rubric is not None
        return OpenAIJudge(server, rubric, asking, patience, budget, missing)

    return judge


KIND = JudgeKind(
    "openai",
    (Server, Asking, Patience, MissingGrades, CallLimits),
    _open,
    needs=("model", "base_url"),
    writes=True,
    quick={"timeout": 10.0, "retries": 0},
)
