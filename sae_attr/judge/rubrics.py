"""A rubric: a question, a scale with its threshold, and classes of answers that have no
score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge.base import MALFORMED, Grade

DESCRIPTION = "DESCRIPTION"  # label of a text, and the mark before it in a reply
BEFORE, SHOWN = "what the assistant was given", "what it answered"

# Sides of the threshold on which the verdict is 1.0.
SIDES = {
    "at_least": lambda score, threshold: score >= threshold,
    "above": lambda score, threshold: score > threshold,
    "at_most": lambda score, threshold: score <= threshold,
    "below": lambda score, threshold: score < threshold,
}


@dataclass(frozen=True)
class Label:
    """A class of answers that are excluded: they have no score.

    Args:
      meaning: its description in the judge's prompt.
      coherent: 1.0 or 0.0 where the class implies it, else None.
      also: other spellings.
    """

    meaning: str
    coherent: float | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rubric:
    """The question to a judge, and the meaning of its answer.

    Args:
      name, version: as in the file; the version is raised whenever words or numbers
        change.
      measures: "behaviour" or "coherence": which field of a grade the threshold
        decides; or "description": the answer is a text, and there is no scale.
      reasoned: the judge may think in words before its last line; otherwise it gives
        the bare answer.
      instructions: the question.
      low, high, whole: the scale, and whether it has whole numbers only.
      threshold, side: the verdict is 1.0 where the score is at_least / above / at_most
        / below the threshold.
      coherent: coherence of every scored answer; None where a score implies nothing
        about it (a behaviour only).
      points: number on the scale -> meaning; may be empty.
      labels: classes of answers that are excluded.
      before, shown: headings of an item's prompt and completion in the judge's prompt;
        an empty one leaves its part out.
      hash: digest of all of the above.
    """

    name: str
    version: int
    measures: str
    reasoned: bool
    instructions: str
    low: float
    high: float
    whole: bool
    threshold: float
    side: str
    coherent: float | None = None
    points: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)
    before: str = BEFORE
    shown: str = SHOWN
    hash: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and hash: a rubric's part of a judge's identity."""
        return {"name": self.name, "version": self.version, "hash": self.hash}

    @property
    def is_text(self) -> bool:
        """Whether the answer is a text instead of a number or class."""
        return self.measures == "description"

    @property
    def tells_coherence(self) -> bool:
        """Whether every scored answer says something of coherence; classes alone
        (INCOHERENT) do not make a rate.
        """
        return self.measures == "coherence" or self.coherent is not None

    @property
    def spellings(self) -> list[str]:
        """Names of all classes, and their other spellings."""
        words: list[str] = []
        for name, label in self.labels.items():
            words += [name, *label.also]
        return words

    def label_of(self, text: str) -> str | None:
        """Returns the class that a text names, in any case and in any of its spellings;
        None for none.
        """
        word = text.strip().upper()
        for name, label in self.labels.items():
            if word in map(str.upper, (name, *label.also)):
                return name
        return None

    def holds(self, score: float) -> bool:
        """Returns whether a number is on the scale: in range, and whole where the scale
        is.
        """
        fits = not self.whole or float(score).is_integer()
        return fits and self.low <= score <= self.high

    def scored(self, score: float, **fields: Any) -> Grade:
        """Returns the grade of a score; a weighted mean need not be whole.

        Raises:
          ValueError: a number that is not on the scale.
        """
        mean = bool(fields.get("weighted")) and self.low <= score <= self.high
        if not mean and not self.holds(score):
            raise ValueError(
                f"rubric {self.name}: {score} does not stand on its scale {self.low:g} "
                f"to {self.high:g}"
            )
        verdict = float(SIDES[self.side](score, self.threshold))
        coherence = self.measures == "coherence"
        return Grade(
            label=f"{score:g}",
            score=float(score),
            behaviour=None if coherence else verdict,
            coherent=verdict if coherence else self.coherent,
            **fields,
        )

    def described(self, text: str, **fields: Any) -> Grade:
        """Returns the grade that holds a text: `details["text"]`."""
        details = {**fields.pop("details", {}), "text": text}
        return Grade(DESCRIPTION, details=details, **fields)

    def excluded(self, label: str, **fields: Any) -> Grade:
        """Returns the grade of an answer of a class that has no score."""
        coherent = self.labels[label].coherent
        return Grade(label=label, excluded=True, coherent=coherent, **fields)

    def malformed(self, **fields: Any) -> Grade:
        """Returns the grade of a reply that cannot be read."""
        return Grade(label=MALFORMED, malformed=True, **fields)
