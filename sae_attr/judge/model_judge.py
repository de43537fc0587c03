"""The common part of judges that put a rubric's question to a language model."""

from __future__ import annotations

from sae_attr.judge.rubrics import Rubric


class ModelJudge:
    """A judge that asks a language model; `ask_one` tries it before anything is sampled.

    Attributes:
      rubric: the question, and the meaning of its answers.
    """

    rubric: Rubric

    @property
    def tells_coherence(self) -> bool:
        """Whether grades by the rubric tell if a completion is coherent."""
        return self.rubric.tells_coherence
