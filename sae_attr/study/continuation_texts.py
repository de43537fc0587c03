"""The texts for and against a behaviour that may follow a prompt, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.study.case import Case
from sae_attr.text.encoding import encode_continuation
from sae_attr.text.pairs import Prompt

Ids = tuple[int, ...]


@dataclass(frozen=True)
class SideTexts:
    """The texts of one side: `texts`, and `ids` of each."""

    texts: tuple[str, ...]
    ids: tuple[Ids, ...]


@dataclass(frozen=True)
class PromptTexts:
    """The texts of a prompt that show the behaviour, and those that show its absence."""

    present: SideTexts
    absent: SideTexts

    @property
    def ids(self) -> tuple[Ids, ...]:
        """Token ids of all texts, those that show the behaviour first."""
        return self.present.ids + self.absent.ids

    @property
    def side_n(self) -> np.ndarray:
        """1 for a text that shows the behaviour, −1 for one that shows its absence."""
        counts = [len(self.present.ids), len(self.absent.ids)]
        return np.repeat([1, -1], counts)


def prompt_texts(case: Case, prompt: Prompt) -> PromptTexts:
    """Returns the texts of a prompt: those of its record, else those of the case; they
    are encoded once.

    Of equal texts the first is kept. Where probabilities are summed, so is the shorter
    of two that begin alike: the longer one's probability is a part of its.

    Raises ValueError, with the prompt and the texts: a side without a text, a text
    without a token, one that is on both sides or begins one of the other side.
    """
    # Every stage's key declares them, and each text renders its prompt's template.
    name = repr(prompt)
    if name not in case.texts:
        sides = {side: _encoded(case, prompt, side) for side in ("present", "absent")}
        case.texts[name] = _checked(prompt, PromptTexts(**sides))
    return case.texts[name]


def _checked(prompt: Prompt, texts: PromptTexts) -> PromptTexts:
    """Raises ValueError for texts of which an answer could count on both sides."""
    for text, ids in zip(texts.present.texts, texts.present.ids, strict=True):
        for other, other_ids in zip(texts.absent.texts, texts.absent.ids, strict=True):
            if begins(ids, other_ids) or begins(other_ids, ids):
                raise ValueError(
                    f"prompt {prompt.id!r}: of the texts {text!r} (present) and "
                    f"{other!r} (absent) one begins with all tokens of the other, so "
                    "that one answer would count on both sides; make them differ"
                )
    return texts


def begins(ids: Ids, beginning: Ids) -> bool:
    """Returns True if token ids begin with others."""
    return ids[: len(beginning)] == beginning


def has_texts(case: Case, prompt: Prompt) -> bool:
    """Returns True if a prompt can be measured: it has texts on both sides, its own or
    the case's.
    """
    return bool(_texts(case, prompt, "present") and _texts(case, prompt, "absent"))


def _texts(case: Case, prompt: Prompt, side: str) -> tuple[str, ...]:
    return getattr(prompt, side) or getattr(case.settings.continuations, side)


def _encoded(case: Case, prompt: Prompt, side: str) -> SideTexts:
    texts, setup = _texts(case, prompt, side), case.setup
    if not texts:
        raise ValueError(
            f"prompt {prompt.id!r} has no text {side!r}, by whose probability answers "
            f"are measured; give --config.cases.{case.name}.continuations.{side}=TEXTS, "
            f"or a list {side!r} in its record"
        )
    by_ids: dict[Ids, str] = {}
    for text in texts:
        ids = encode_continuation(
            prompt, text, setup.tokenizer, prepend_bos=setup.prepend_bos
        )
        by_ids.setdefault(tuple(ids), text)
    if case.settings.continuations.measure == "probability":
        by_ids = {ids: by_ids[ids] for ids in _separate(list(by_ids))}
    return SideTexts(tuple(by_ids.values()), tuple(by_ids))


def _separate(texts: Sequence[Ids]) -> list[Ids]:
    """Returns the texts that begin with no other one."""
    out = []
    for ids in texts:
        if not any(other != ids and begins(ids, other) for other in texts):
            out.append(ids)
    return out
