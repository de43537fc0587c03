"""Sweeps of a case: conditions of a model on the prompts of one split, sampled, graded,
or measured by exact probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.presets import decoder_rows
from sae_attr.hooks import Add
from sae_attr.parallel import to_host
from sae_attr.steering.coherence import CoherenceLimits, coherence_limits, coherent
from sae_attr.steering.plan import NO_LATENT, Condition, Plan, SweepRow
from sae_attr.steering.sweep import SampleBatches, Sampler, sample_batches, sample_rows
from sae_attr.store import Progress
from sae_attr.study.case import Case
from sae_attr.study.coherence_fallback import answer_measures
from sae_attr.study.grading import (
    GradedAnswers,
    Grader,
    grade_plan,
    padded,
    unpadded,
)

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
    """

    case: Case
    direction: str
    split: str
    conditions: tuple[Condition, ...]
    norm: float
    samples: int
    limits: CoherenceLimits | None = None

    @cached_property
    def plan(self) -> Plan:
        """The completions of first attempts."""
        prompts = tuple(prompt.id for prompt in self.case.prompts(self.split))
        return Plan(
            self.conditions,
            prompts,
            self.samples,
            case=self.case.name,
            model="lm" if self.direction == "away" else "lm_aligned",
        )

    @cached_property
    def sample_batches(self) -> SampleBatches:
        """Samples rows of this sweep; weights are loaded when it is first called for."""
        case, setup = self.case, self.case.setup
        seed = jax.random.key(case.study.seed)
        sampler = Sampler(
            params=case.params(self.direction),
            prompts=case.prompt_ids(self.split),
            vectors=_vectors(case, self.conditions),
            key=jax.random.fold_in(seed, _SAMPLES_KEY),
            cfg=setup.cfg,
            site=setup.site,
            mesh=case.runtime.mesh,
            batch_size=case.runtime.batch_size,
            sampling=case.sampling,
            unit=self.norm,
        )
        return partial(sample_batches, sampler)

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
        return padded(ids, self.case.study.sampling.max_new), counts

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

    def exact_coherence(self) -> dict[Condition, float]:
        """Returns condition -> the share of coherent answers by exact probabilities,
        the mean over prompts; all tokens are steered.

        Raises:
          ValueError: a case without exact rates.
        """
        case = self.case
        if case.exact is None:
            raise ValueError(
                f"case {case.name} has no exact rates; set strengths_by=samples"
            )
        vectors = _vectors(case, self.conditions)
        rows_kd = np.zeros((len(self.conditions), _width(case)), np.float32)
        for k, condition in enumerate(self.conditions):
            if condition.latent != NO_LATENT:
                rows_kd[k] = vectors[condition.latent]
        strengths = [condition.strength for condition in self.conditions]
        # Rounded before it is multiplied by the unit, as in `steering.steer`.
        strengths_k = self.norm * np.array(strengths).astype(np.float32)
        batch = case.runtime.batch_size
        run = _exact_program(case, self.split)
        parts = []
        for start in range(0, len(rows_kd), batch):
            # The last batch repeats conditions: one compiled shape.
            part = np.arange(start, start + batch) % len(rows_kd)
            edit = Add(jnp.asarray(rows_kd[part]), jnp.asarray(strengths_k[part]))
            _, coherent_kp = run(case.params(self.direction), {case.setup.site: edit})
            parts.append(to_host(coherent_kp)[: len(rows_kd) - start])
        coherent_k = np.concatenate(parts).mean(1)
        return dict(zip(self.conditions, coherent_k, strict=True))


def _exact_program(case: Case, split: str) -> Any:
    """Returns the compiled program of exact rates on a split's prompts, for both directions."""
    exact, cfg = case.exact, case.setup.cfg
    prompts, rows = case.prompts(split), case.runtime.batch_size
    assert exact is not None  # exact_coherence
    if split not in case.programs:
        case.programs[split] = jax.jit(
            lambda params, edits: exact(params, prompts, edits, cfg=cfg, rows=rows)
        )
    return case.programs[split]


def _vectors(case: Case, conditions: Sequence[Condition]) -> dict[int, np.ndarray]:
    """Returns unit decoder rows of the latents that conditions steer."""
    latents = {condition.latent for condition in conditions} - {NO_LATENT}
    if not latents:
        return {}
    named = np.array(sorted(latents))
    rows_kd = np.asarray(decoder_rows(case.setup.decoder, named))
    return dict(zip(named.tolist(), rows_kd, strict=True))


def _width(case: Case) -> int:
    return case.setup.cfg.width(case.setup.site.point)
