"""Exact rates of a real model's case: the probabilities of texts for and against the
behaviour after each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.model import Params
from sae_attr.parallel import to_host
from sae_attr.report.numbers import share
from sae_attr.report.safe_text import one_line
from sae_attr.steering.continuation_groups import (
    TextGroup,
    group_log_probs,
    group_texts,
    in_order,
    run_groups,
)
from sae_attr.steering.continuations import Unsteered
from sae_attr.steering.contrast import contrast_rates
from sae_attr.study.case import Case, ExactState
from sae_attr.study.continuation_texts import PromptTexts, prompt_texts
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairing import WITH, WITHOUT, Answer
from sae_attr.text.pairs import Prompt
from sae_attr.text.tokenizer import token_strings

_SHOWN_TOKENS = 5


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
    def groups(self) -> list[TextGroup]:
        """The prompts with their texts, as they run, a few at a time."""
        present = [texts.present.ids for texts in self.texts]
        absent = [texts.absent.ids for texts in self.texts]
        cfg = self.case.setup.cfg
        return group_texts(self.prompt_ids, present, absent, cfg=cfg)

    def begin(self, params: Params, start: int) -> ExactState:
        """Runs the model without an edit; prompts whose texts have too little
        probability are not measured.

        Raises ValueError where they have too little on average: says what the model
        says instead.
        """
        cfg, contrast = self.case.setup.cfg, self.case.settings.continuations
        states = run_groups(params, self.groups, cfg=cfg, start=start)
        rates = self._contrast([state.log_probs_pn[None] for state in states])
        behaviour_p, coherence_p = (x_kp[0] for x_kp in to_host(rates))
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
        log_probs = group_log_probs(
            params,
            self.groups,
            arrays,
            edits,
            cfg=self.case.setup.cfg,
            tokens=self.case.study.steer_tokens,
            skip=self.case.study.steer_skip,
        )
        return self._contrast(log_probs)

    def answers(self, states: Sequence[Unsteered]) -> list[list[Answer]]:
        """Returns the texts of every prompt as answers, the likeliest first.

        Args:
          states: arrays of `begin`.
        """
        answers: list[list[Answer]] = [[] for _ in self.prompts]
        for group, state in zip(self.groups, states, strict=True):
            log_probs_pn = to_host(state.log_probs_pn)
            for place, log_probs_n in zip(group.places, log_probs_pn, strict=False):
                answers[place] = _ranked_answers(self.texts[place], log_probs_n)
        return answers

    def _contrast(self, log_probs: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns the rates of all prompts, from the log-probabilities of each group."""
        contrast = self.case.settings.continuations
        behaviour, coherence = [], []
        for group, log_probs_kpn in zip(self.groups, log_probs, strict=True):
            # A group may repeat its last prompt.
            log_probs_kpn = log_probs_kpn[:, : len(group.places)]
            rates = contrast_rates(
                log_probs_kpn, group.side_pn, group.length_pn, contrast
            )
            behaviour.append(rates[0])
            coherence.append(rates[1])
        return in_order(self.groups, behaviour), in_order(self.groups, coherence)

    def _too_little(self, mass_p: np.ndarray, states: Sequence[Unsteered]) -> str:
        """Says what the model says instead of the texts, on the prompt where they have
        least.
        """
        worst = int(mass_p.argmin())
        for group, state in zip(self.groups, states, strict=True):
            if worst in group.places:
                row = int(np.flatnonzero(group.places == worst)[0])
                likeliest = to_host((state.top_ids_pm, state.top_probs_pm))
                ids_m, probs_m = (x_pm[row] for x_pm in likeliest)
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
