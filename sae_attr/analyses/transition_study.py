"""The transition of a rank-1 adapter on a real model: the case of a finished case study,
whose model before the fine-tune learns a file of rows, with the case's own pairs, SAE
and prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.transition_measures import (
    PairMeasurement,
    SteppedModel,
    measure_pairs,
    measured_series,
)
from sae_attr.analyses.transition_settings import TransitionSettings
from sae_attr.analyses.transition_stages import MEASURED, PATH, RATES, path_of
from sae_attr.hooks import Add, Edit, Site
from sae_attr.lm.params import Params
from sae_attr.lm.sites import edited_suffix
from sae_attr.lm.train_data import RowDataset, example_dataset
from sae_attr.organism.adapter_path import AdapterPath, check_path_adapter, fit_path
from sae_attr.store import Computed, Progress, Result, Stage, digest
from sae_attr.study.case import ExactPrompts, ExactState
from sae_attr.study.case_stage import declared_exact, declared_prompts, steered_scope
from sae_attr.study.finished_study import FinishedCase
from sae_attr.study.stages import mean_activation
from sae_attr.study.stages.ablated_rates import left_out
from sae_attr.text.example_records import Example
from sae_attr.text.examples import read_examples

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"path": 1, "rates": 1, "measured": 1}
SPLIT = "effects"  # of the prompts that rates are measured on

Results = Mapping[str, Result]


@dataclass(frozen=True, eq=False)
class StudiedTransition(FinishedCase):
    """A case of a finished study, whose model without the behaviour is fine-tuned anew.

    Args:
      settings: how; of an organism's fields none counts.
      data: file of rows that it learns, of chat or prompt and completion.
    """

    settings: TransitionSettings
    data: str

    def check(self) -> None:
        """Raises ValueError for a case without exact rates or not finished, for an adapter
        that does not fit its model, and for rows that cannot be read.
        """
        if why := left_out(self.case):
            raise ValueError(f"case {self.case.name}: {why}")
        # Pairs are in the file that is written before this stage.
        self.result("gradients")
        _ = self.where, self.examples

    @property
    def about(self) -> dict[str, Any]:
        """Returns what its rows begin with."""
        return {"behaviour": self.case.name, "seed": 0}

    def stage_name(self, stage: str, run: int) -> str:
        """Returns the whole name of a stage of one of its runs."""
        return super().stage_name(f"run-{run}.{stage}")

    @cached_property
    def where(self) -> tuple[str, int]:
        """The matrix and the layer that the adapter is on."""
        return check_path_adapter(self.case.setup.cfg, self.settings.adapter)

    @cached_property
    def examples(self) -> list[Example]:
        """The first rows of the data, as many as the training takes."""
        setup = self.case.setup
        context = setup.cfg.max_len
        read = read_examples(self.data, setup.tokenizer, context=context)
        return read.rows[: self.settings.training.rows]

    @cached_property
    def model(self) -> SteppedModel:
        """The model before the fine-tune, which the adapter of a step is put on."""
        case = self.case
        return SteppedModel(
            case.setup.cfg, case.aligned_params, self.settings.adapter, self.where
        )

    # ---- stages ----------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """Returns the stages of every run."""
        stages = []
        for run in range(self.settings.runs):
            stages += [self._path(run), self._rates(run), self._measured(run)]
        return stages

    def _path(self, run: int) -> Stage:
        """The adapter at every step: arrays of an `AdapterPath`."""
        s, setup = self.settings, self.case.setup

        def compute(results: Results, progress: Progress) -> Computed:
            path = fit_path(
                self._dataset(),
                setup.cfg,
                self.model.params,
                lora=s.adapter,
                training=s.training,
                seed=run,
                mesh=setup.mesh,
                progress=setup.progress,
            )
            return path._asdict(), {}

        rows = [[x.ids.tolist(), x.loss_mask.tolist()] for x in self.examples]
        fields = {
            "lm": self._key_before(),
            "rows": digest(rows),
            "adapter": asdict(s.adapter),
            "training": asdict(s.training),
            "run": run,
        }
        return Stage(self.stage_name(PATH, run), compute, fields, (), VERSIONS[PATH])

    def _dataset(self) -> RowDataset:
        context = self.case.setup.cfg.max_len
        return example_dataset(self.examples, context=context, packed=False)

    def _key_before(self) -> str:
        """Names the model before the fine-tune by its files' contents."""
        setup = self.case.setup
        return setup.aligned_key if self.case.files.lm_aligned else setup.lm_key

    def _rates(self, run: int) -> Stage:
        """Exact rates at every step, of the adapter times every scale: arrays `rate_cs`
        and `coherent_cs`, `[scales, steps + 1]`.
        """
        s, case = self.settings, self.case
        path_name = self.stage_name(PATH, run)

        def compute(results: Results, progress: Progress) -> Computed:
            path, exact = path_of(results[path_name]), self._exact(s.rate_prompts)
            # The layers before the adapter's are the same at every step.
            layer = self.where[1]
            state = exact.begin(self.model.params, layer)
            unedited = _nothing(Site(layer, "resid_pre"), case.setup.cfg.d_model)
            rates, coherent = [], []
            for scale in s.scales:
                for step in range(len(path.b_so)):
                    weights = self.model.at(path, step, scale)
                    rate, coherence = _mean_rates(exact, weights, state, unedited)
                    rates.append(rate[0])
                    coherent.append(coherence[0])
            shape = len(s.scales), len(path.b_so)
            rate_cs = np.reshape(rates, shape)
            return {"rate_cs": rate_cs, "coherent_cs": np.reshape(coherent, shape)}, {}

        fields = {"scales": list(s.scales), **self._declared(s.rate_prompts)}
        name, version = self.stage_name(RATES, run), VERSIONS[RATES]
        return Stage(name, compute, fields, (path_name,), version)

    def _measured(self, run: int) -> Stage:
        """What the measured steps show, of `measured_series`."""
        s, setup = self.settings, self.case.setup
        path_name = self.stage_name(PATH, run)

        def compute(results: Results, progress: Progress) -> Computed:
            path = path_of(results[path_name])
            mean = mean_activation.mean_of(self.result(mean_activation.NAME))

            def measure(step: int, dec_nd: jax.Array) -> PairMeasurement:
                weights = self.model.at(path, step)
                return measure_pairs(
                    setup, weights, dec_nd, mean.mean_d, cfg=setup.cfg, settings=s
                )

            def steer(step: int, dec_kd: np.ndarray) -> np.ndarray:
                return self._steering(path, step, dec_kd, mean.norm)

            return measured_series(s, setup, measure, steer, seed=run)

        fields = {
            "every": s.measure_every,
            "pairs": s.pairs,
            "attribution": list(s.attribution),
            "gradient_tokens": s.gradient_tokens,
            "top": s.top,
            "random": s.random,
            "strength": s.strength,
            "sae": setup.sae_key,
            "pair": self.finished.result(self.case, "pair").key,
            "mean": self.finished.result(self.case, mean_activation.NAME).key,
            **self._declared(s.effect_prompts),
            **steered_scope(self.case),
        }
        name, version = self.stage_name(MEASURED, run), VERSIONS[MEASURED]
        return Stage(name, compute, fields, (path_name,), version)

    # ---- rates -----------------------------------------------------------------------

    def _exact(self, count: int) -> ExactPrompts:
        """Opens the exact rates on the first prompts."""
        return self.case.exact(self.case, self.case.prompts(SPLIT)[:count])

    def _declared(self, count: int) -> dict[str, Any]:
        """Returns what exact rates depend on."""
        prompts = declared_prompts(self.case, SPLIT)
        return {"prompts": [count, prompts], "exact": declared_exact(self.case, SPLIT)}

    def _steering(
        self, path: AdapterPath, step: int, dec_kd: np.ndarray, norm: float
    ) -> np.ndarray:
        """Returns the rise of the rate at +s and its fall at −s of every direction, `[k]`,
        on the prompts that are measured at this step.
        """
        s, setup = self.settings, self.case.setup
        weights, exact = self.model.at(path, step), self._exact(s.effect_prompts)
        count = len(dec_kd)
        vectors_kd = jnp.asarray(np.concatenate([dec_kd, dec_kd]), jnp.float32)
        strengths_k = jnp.repeat(jnp.array([s.strength, -s.strength]) * norm, count)
        edits = {setup.site: Add(vectors_kd, strengths_k)}
        start, _ = edited_suffix(edits, setup.cfg)
        rate_k, _ = _mean_rates(exact, weights, exact.begin(weights, start), edits)
        return rate_k[:count] - rate_k[count:]


def _nothing(site: Site, width: int) -> dict[Site, Edit]:
    """Returns an edit of one condition that changes nothing."""
    return {site: Add(jnp.zeros((1, width)), jnp.zeros(1))}


def _mean_rates(
    exact: ExactPrompts, params: Params, state: ExactState, edits: Mapping[Site, Edit]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns behaviour and coherence under every edit, means over the prompts that are
    measured, `[k]` each.
    """
    behaviour_kp, coherence_kp = exact.rates(params, state.arrays, edits)
    measured_p = state.measured_p
    behaviour_k = np.asarray(behaviour_kp, np.float64)[:, measured_p].mean(1)
    return behaviour_k, np.asarray(coherence_kp, np.float64)[:, measured_p].mean(1)
