"""A judge over functions that answer prompts, such as those of a language model here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sae_attr.judge.base import Grade, Item, check_items
from sae_attr.judge.model_judge import ModelJudge
from sae_attr.judge.prompt import judge_prompt
from sae_attr.judge.replies import VERSION, read_reply
from sae_attr.judge.rubrics import Rubric
from sae_attr.judge.weighing import (
    can_weigh,
    numbers_of,
    weighted_score,
    writes_whole_numbers,
)
from sae_attr.text.chat import Message

Prompts: TypeAlias = Sequence[tuple[Message, ...]]
Generate: TypeAlias = Callable[[Prompts], Sequence[str]]
NextToken: TypeAlias = Callable[[Prompts], Sequence[Mapping[str, float]]]

_KEPT = 20  # tokens of a distribution in the raw reply


@dataclass(frozen=True)
class LocalJudge(ModelJudge):
    """A `Judge` over functions that answer prompts, each one user message.

    Args:
      model: plain values that name the model (name, fingerprint, ...); `name` is used
        in tables.
      rubric: what is asked.
      generate: prompts -> texts.
      next_token_logprobs: prompts -> token -> natural logarithm of its probability as
        the first token of the answer; at least the 20 likeliest. Used where the rubric
        asks for a bare number; with `generate` too, an answer with too little
        probability on numbers is generated.
      batch_size: prompts handed over at once; no grade depends on it.
      settings: plain values that decide what the functions answer (temperature, longest
        reply, ...).

    Raises:
      ValueError: no function, or only probabilities for a rubric with reasoned answers.
    """

    model: Mapping[str, Any]
    rubric: Rubric
    generate: Generate | None = None
    next_token_logprobs: NextToken | None = None
    batch_size: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.generate is None and (
            self.next_token_logprobs is None or self.rubric.reasoned
        ):
            needed = "generate"
            if not self.rubric.reasoned:
                needed = "generate or next_token_logprobs"
            raise ValueError(
                f"a local judge with rubric {self.rubric.name} needs {needed}; hand it "
                "that function"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def identity(self) -> dict[str, Any]:
        """Model, rubric, settings and which of the two kinds of answer is read."""
        return {
            "kind": "local",
            "name": str(self.model.get("name", "local")),
            "version": VERSION,
            "model": dict(self.model),
            "rubric": self.rubric.identity,
            "settings": {
                **self.settings,
                "weighted": self._weighs,
                "text": self.generate is not None,
            },
        }

    @property
    def _weighs(self) -> bool:
        return self.next_token_logprobs is not None and can_weigh(self.rubric)

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade) batch by batch.

        Raises:
          ValueError: an id that occurs twice.
        """
        check_items(items)
        return self._grades(items)

    def _grades(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        for start in range(0, len(items), self.batch_size):
            yield from self._batch(items[start : start + self.batch_size])

    def _batch(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        prompts: list[tuple[Message, ...]] = []
        for item in items:
            content = judge_prompt(self.rubric, item)
            prompts.append(({"role": "user", "content": content},))
        grades: list[Grade | None] = [None] * len(items)
        if self._weighs and self.next_token_logprobs is not None:
            distributions = _answers(self.next_token_logprobs, prompts)
            grades = [self._of_tokens(logprobs) for logprobs in distributions]
        left = []
        for i, grade in enumerate(grades):
            if grade is None:
                left.append(i)
        if left and self.generate is not None:
            texts = _answers(self.generate, [prompts[i] for i in left])
            for i, text in zip(left, texts):
                grades[i] = read_reply(text, self.rubric)
        for item, grade in zip(items, grades):
            if grade is not None:
                yield item.id, grade

    def _of_tokens(self, logprobs: Mapping[str, float]) -> Grade | None:
        """Returns the grade by a distribution; None where the text must decide."""
        top = sorted(logprobs.items(), key=lambda pair: -pair[1])[:_KEPT]
        score = weighted_score(logprobs.items(), self.rubric)
        if score is None:
            if self.generate is not None:
                return None
            likeliest = top[0][0] if top else ""
            return read_reply(likeliest, self.rubric)
        numbers = numbers_of(logprobs.items(), self.rubric) or {}
        if not writes_whole_numbers(numbers, self.rubric):
            if self.generate is not None:
                return None
            raise ValueError(
                f"{self.identity['name']} puts no probability on a token of two "
                "digits; its tokenizer writes 85 as two "
                "tokens, so that a mean over first tokens is no score: hand the judge "
                "`generate`"
            )
        return self.rubric.scored(
            score, raw=json.dumps(dict(top), ensure_ascii=False), weighted=True
        )


def _answers(
    function: Callable[[Prompts], Sequence[Any]], prompts: Prompts
) -> Sequence[Any]:
    """Returns a function's answers; raises ValueError where there is not one for each prompt."""
    answers = function(prompts)
    if len(answers) != len(prompts):
        raise ValueError(
            f"the judge's function gave {len(answers)} answers to {len(prompts)} "
            "prompts; it must give one each"
        )
    return answers
