"""Exact rates of a real model's case: the probabilities of texts for and against the
behaviour after each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.attention import longest_row
from sae_attr.lm.model import Params
from sae_attr.parallel import to_host
from sae_attr.report.numbers import share
from sae_attr.report.safe_text import one_line
from sae_attr.steering.continuation_layout import (
    LayoutPart,
    in_parts,
)
from sae_attr.steering.continuations import (
    Unsteered,
    continuation_log_probs,
    read_shared,
    run_unsteered,
)
from sae_attr.steering.contrast import contrast_rates
from sae_attr.study.case import Case, ExactState
from sae_attr.study.continuation_texts import PromptTexts, prompt_texts
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairing import WITH, WITHOUT, Answer
from sae_attr.text.pairs import Prompt
from sae_attr.text.tokenizer import token_strings

_SHOWN_TOKENS = 5
_TOGETHER = 5  # prompts of one compiled program, whatever their number


def exact_prompts(case: Case, prompts: Sequence[Prompt]) -> ContinuationRates:
    """Returns the exact rates of a case on prompts.

    Raises ValueError from `prompt_texts`.
    """
    setup, ids = case.setup, []
    for prompt in prompts:
        ids.append(
            encode_prompt(prompt, setup.tokenizer, prepend_bos=setup.prepend_bos)
        )
    texts = tuple(prompt_texts(case, prompt) for prompt in prompts)
    return ContinuationRates(case, tuple(prompts), tuple(map(tuple, ids)), texts)


@dataclass(frozen=True, eq=False)
class ContinuationRates:
    """Exact rates on some prompts: see `study.case.ExactPrompts`.

    Args:
      prompts: that are measured.
      prompt_ids, texts: of each prompt.
    """

    case: Case
    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    texts: tuple[PromptTexts, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the prompts, in the order of the rates."""
        return tuple(prompt.id for prompt in self.prompts)

    @cached_property
    def parts(self) -> list[LayoutPart]:
        """The prompts as they run, a few at a time."""
        return in_parts(
            self.prompt_ids,
            [texts.ids for texts in self.texts],
            most=_TOGETHER,
            longest_row=longest_row(self.case.setup.cfg),
        )

    def begin(self, params: Params, start: int) -> ExactState:
        """Runs the model without an edit; prompts whose texts have too little
        probability are not measured.

        Raises ValueError where they have too little on average: says what the model
        says instead.
        """
        cfg, contrast = self.case.setup.cfg, self.case.settings.continuations
        states, rates = [], []
        for part in self.parts:
            states.append(run_unsteered(params, part.layout, cfg=cfg, start=start))
            rates.append(self._contrast(states[-1].log_probs_pn[None], part))
        behaviour_p, coherence_p = (to_host(x)[0] for x in self._in_order(rates))
        enough_p = np.ones(len(self.prompts), bool)
        if contrast.measure == "probability":
            enough_p = coherence_p >= contrast.least_mass
            if coherence_p.mean() < contrast.least_mass or not enough_p.any():
                raise ValueError(self._too_little(coherence_p, states))
        facts = {
            "rate": float(behaviour_p[enough_p].mean()),
            "mass": float(coherence_p.mean()),
            "left_out": [p.id for p, ok in zip(self.prompts, enough_p) if not ok],
        }
        return ExactState(states, enough_p, facts)

    def rates(
        self, params: Params, arrays: Any, edits: Mapping[Site, Edit]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns behaviour and coherence `[k, prompts]` under every condition."""
        study, of_parts, shared = self.case.study, [], None
        options = {
            "cfg": self.case.setup.cfg,
            "tokens": study.steer_tokens,
            "skip": study.steer_skip,
        }
        for part, unsteered in zip(self.parts, arrays, strict=True):
            if shared is None:
                shared = read_shared(params, unsteered, edits, **options)
            log_probs_kpn = continuation_log_probs(
                params, part.layout, unsteered, edits, shared, **options
            )
            of_parts.append(self._contrast(log_probs_kpn, part))
        behaviour_kp, coherence_kp = self._in_order(of_parts)
        return behaviour_kp, coherence_kp

    def answers(self, states: Sequence[Unsteered]) -> list[list[Answer]]:
        """Returns the texts of every prompt as answers, the likeliest first.

        Args:
          states: arrays of `begin`.
        """
        answers: list[list[Answer]] = [[] for _ in self.prompts]
        for part, state in zip(self.parts, states, strict=True):
            log_probs_pn = to_host(state.log_probs_pn)
            for place, log_probs_n in zip(part.places, log_probs_pn, strict=False):
                answers[place] = _ranked_answers(self.texts[place], log_probs_n)
        return answers

    def _contrast(
        self, log_probs_kpn: jax.Array, part: LayoutPart
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the rates of one part's prompts."""
        p, n = len(part.places), log_probs_kpn.shape[2]
        side_pn, length_pn = np.zeros((p, n), int), np.zeros((p, n), int)
        for row, place in enumerate(part.places):
            texts = self.texts[place]
            side_pn[row, : len(texts.ids)] = texts.side_n
            length_pn[row, : len(texts.ids)] = [len(ids) for ids in texts.ids]
        contrast = self.case.settings.continuations
        return contrast_rates(log_probs_kpn[:, :p], side_pn, length_pn, contrast)

    def _in_order(
        self, of_parts: Sequence[tuple[jax.Array, jax.Array]]
    ) -> list[jax.Array]:
        """Returns values of all prompts `[k, p]` in their order, from those of parts."""
        order = np.argsort(np.concatenate([part.places for part in self.parts]))
        values = []
        for parts in zip(*of_parts, strict=True):
            values.append(jnp.concatenate(parts, axis=1)[:, order])
        return values

    def _too_little(self, mass_p: np.ndarray, states: Sequence[Unsteered]) -> str:
        """Says what the model says instead of the texts, on the prompt where they have
        least.
        """
        worst = int(mass_p.argmin())
        for part, state in zip(self.parts, states, strict=True):
            if worst in part.places:
                row = int(np.flatnonzero(part.places == worst)[0])
                ids_m = to_host(state.top_ids_pm)[row]
                probs_m = to_host(state.top_probs_pm)[row]
                break
        tokens = token_strings(self.case.setup.tokenizer, ids_m)[:_SHOWN_TOKENS]
        likely = []
        for token, prob in zip(tokens, probs_m, strict=True):
            likely.append(f"{one_line(repr(token), 40)} {share(float(prob))}")
        texts = self.texts[worst]
        least = self.case.settings.continuations.least_mass
        return (
            f"case {self.case.name}: the texts {list(texts.present.texts)} (present) "
            f"and {list(texts.absent.texts)} (absent) have {share(mass_p.mean())} of "
            f"the probability on average over {len(mass_p)} prompts, less than "
            f"continuations.least_mass={least}. After prompt "
            f"{self.prompts[worst].id!r} the model says {', '.join(likely)}; give such "
            f"texts (--config.cases.{self.case.name}.continuations.present and .absent, "
            "with their spaces and capitals), or ask so that they are the answer"
        )


def _ranked_answers(texts: PromptTexts, log_probs_n: np.ndarray) -> list[Answer]:
    """Returns the texts of one prompt, the likeliest first."""
    answers = []
    for side, behaviour in ((texts.present, WITH), (texts.absent, WITHOUT)):
        for text, ids in zip(side.texts, side.ids, strict=True):
            answers.append(Answer(text, ids, behaviour))
    order = np.argsort(-log_probs_n[: len(answers)], kind="stable")
    return [answers[i] for i in order]
