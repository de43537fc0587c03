"""Sweeps of a case: conditions of a model on the prompts of one split, sampled, graded,
or measured by exact probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.presets import decoder_rows
from sae_attr.hooks import Add
from sae_attr.lm.draw import Sampling
from sae_attr.steering.coherence import CoherenceLimits, coherence_limits, coherent
from sae_attr.steering.plan import NO_LATENT, UNSTEERED, Condition, Plan, SweepRow
from sae_attr.steering.sweep import SampleBatches, Sampler, sample_batches, sample_rows
from sae_attr.steering.sweep_export import SweepExport
from sae_attr.store import Progress
from sae_attr.study.case import Case
from sae_attr.study.coherence_fallback import answer_measures
from sae_attr.study.exact_rates import ExactRates, exact_rates
from sae_attr.study.grading import (
    GradedAnswers,
    Grader,
    grade_plan,
    padded,
    unpadded,
)
from sae_attr.study.sample_sources import from_files, from_server, served_model

_SAMPLES_KEY = 11  # the purpose of the study's seed that samples draw from


@dataclass(frozen=True, eq=False)
class CaseSweep:
    """Conditions on the prompts of one split, with the model that they are done to.

    Args:
      direction: `away` samples the model with the behaviour, `toward` the one without.
      split: whose prompts are answered.
      conditions: what is done to the model.
      norm: the unit of strengths, the site's mean norm.
      samples: completions of every condition and prompt.
      limits: coherence is measured against these answers of the unsteered model; None
        leaves it to the judge.
      most_prompts: that are answered; None for all of the split.
      max_new: tokens of an answer at most; None as the settings say.
    """

    case: Case
    direction: str
    split: str
    conditions: tuple[Condition, ...]
    norm: float
    samples: int
    limits: CoherenceLimits | None = None
    most_prompts: int | None = None
    max_new: int | None = None

    @cached_property
    def plan(self) -> Plan:
        """The completions of first attempts."""
        prompts = tuple(prompt.id for prompt in self.case.prompts(self.split))
        return Plan(
            self.conditions,
            prompts[: self.most_prompts],
            self.samples,
            case=self.case.name,
            model="lm" if self.direction == "away" else "lm_aligned",
        )

    @cached_property
    def sample_batches(self) -> SampleBatches:
        """Samples rows of this sweep; weights are loaded, or a server is asked, when it
        is first called for.
        """
        case, setup = self.case, self.case.setup
        seed = jax.random.key(case.study.seed)
        key = jax.random.fold_in(seed, _SAMPLES_KEY)
        sampling = replace(case.sampling, max_new=self._longest)
        # Beside steered answers of the model here, unsteered ones of another engine would
        # differ from them by more than the steering.
        alone = set(self.conditions) == {UNSTEERED}
        if alone and served_model(case, self.direction):
            return from_server(case, self.direction, self.split, key, sampling)
        if not alone and case.study.sweeps_by == "export":
            export = self._export(key, sampling)
            return from_files(export, case.runtime.workdir, self._name)
        sampler = Sampler(
            params=case.params(self.direction),
            prompts=case.prompt_ids(self.split),
            vectors=_vectors(case, self.conditions),
            key=key,
            cfg=setup.cfg,
            site=setup.site,
            mesh=case.runtime.mesh,
            batch_size=case.runtime.batch_size,
            sampling=sampling,
            unit=self.norm,
            skip=case.study.steer_skip,
        )
        return partial(sample_batches, sampler)

    @property
    def _name(self) -> str:
        """Names the sweep among others of the study."""
        return f"{self.case.name}.{self.split}.{self.direction}"

    def _export(self, key: jax.Array, sampling: Sampling) -> SweepExport:
        """Returns the sweep as another engine takes it; loads no weights."""
        case, setup = self.case, self.case.setup
        vectors = _vectors(case, self.conditions)
        labels = {latent: str(case.latents.label(latent)) for latent in vectors}
        aligned = self.direction == "toward" and case.files.lm_aligned
        return SweepExport(
            (),
            case.prompt_ids(self.split),
            vectors,
            setup.tokenizer,
            key,
            sampling,
            setup.site,
            unit=self.norm,
            skip=case.study.steer_skip,
            model=os.path.basename(str(aligned or case.files.lm)),
            labels=labels,
        )

    def sample(
        self, progress: Progress, name: str
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Returns completions int32 `[r, n]`, −1 after the end of each, and counts:
        samples, tokens.
        """
        sampled = sample_rows(
            self.plan.rows,
            self._sample_later,
            progress,
            name=name,
            bar=self.case.runtime.progress,
        )
        ids = [row.ids for row in sampled]
        counts = {"samples": len(ids), "tokens": sum(map(len, ids))}
        return padded(ids, self._longest), counts

    @property
    def _longest(self) -> int:
        """Tokens of an answer at most."""
        return self.max_new or self.case.study.sampling.max_new

    def _sample_later(self, rows: Sequence[SweepRow]) -> Any:
        """Loads the weights only where a row is left to sample."""
        return self.sample_batches(rows)

    def grade(
        self, tokens_rn: np.ndarray, progress: Progress, *, attempts: int | None = None
    ) -> tuple[GradedAnswers, dict[str, Any]]:
        """Grades completions of the plan; excluded ones are sampled again.

        Args:
          attempts: how often; None as the settings say.

        Returns:
          the answers, and the counts of `grade_plan`.
        """
        case, prompts = self.case, self.case.prompts_by_id(self.split)
        grader = Grader(
            case.judge,
            lambda name, prompt, ids: case.item(name, prompts[prompt], ids),
            self._sample_later,
            case.study.sampling.attempts if attempts is None else attempts,
            None if self.limits is None else self._coherence,
            case.runtime.progress,
        )
        return grade_plan(self.plan, np.asarray(tokens_rn), grader, progress)

    def limits_of_own(self, tokens_rn: np.ndarray, *, tail: float) -> CoherenceLimits:
        """Returns the limits of coherence that completions of the unsteered model set
        (docs/method.md, Strengths and coherence).
        """
        ids = list(unpadded(tokens_rn))
        return coherence_limits(*self._measures(self.plan.rows, ids), tail=tail)

    def _coherence(
        self, rows: Sequence[SweepRow], ids: Sequence[Sequence[int]]
    ) -> np.ndarray:
        assert self.limits is not None  # grade
        return coherent(*self._measures(rows, ids), self.limits)

    def _measures(
        self, rows: Sequence[SweepRow], ids: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns log-probability per token under the unsteered model and repetition, `[r]`
        each.
        """
        prompt_ids = self.case.prompt_ids(self.split)
        prompts = [prompt_ids[row.prompt] for row in rows]
        return answer_measures(self.case, self.direction, prompts, ids)

    # ---- exact rates -----------------------------------------------------------------

    def exact_rates(self, progress: Progress, name: str) -> ExactRates:
        """Measures every condition on every prompt by exact probabilities; rates are in
        the order of the conditions.
        """
        case = self.case
        rows_kd, strengths_k = steering_vectors(case, self.conditions, self.norm)
        return exact_rates(
            case,
            self.direction,
            case.prompts(self.split),
            Add(jnp.asarray(rows_kd), jnp.asarray(strengths_k)),
            progress,
            name=name,
        )


def steering_vectors(
    case: Case, conditions: Sequence[Condition], norm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what conditions add: unit rows `[k, d]`, zeros where nothing is steered,
    and strengths `[k]`, in units of the activation.

    Args:
      norm: the unit of the conditions' strengths.
    """
    vectors = _vectors(case, conditions)
    width = case.setup.cfg.width(case.setup.site.point)
    rows_kd = np.zeros((len(conditions), width), np.float32)
    for k, condition in enumerate(conditions):
        if condition.latent != NO_LATENT:
            rows_kd[k] = vectors[condition.latent]
    strengths = [condition.strength for condition in conditions]
    # Rounded before it is multiplied by the unit, as in `steering.steer`.
    return rows_kd, norm * np.array(strengths).astype(np.float32)


def _vectors(case: Case, conditions: Sequence[Condition]) -> dict[int, np.ndarray]:
    """Returns unit decoder rows of the latents that conditions steer."""
    latents = {condition.latent for condition in conditions} - {NO_LATENT}
    if not latents:
        return {}
    named = np.array(sorted(latents))
    rows_kd = np.asarray(decoder_rows(case.latents, named))
    return dict(zip(named.tolist(), rows_kd, strict=True))
