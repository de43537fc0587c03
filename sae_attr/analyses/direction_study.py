"""Directions of the cases of a finished case study: of its pairs, at every layer, and
what projecting each out of every case does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sae_attr.analyses.direction_record import (
    DirectionRecord,
    measure_directions,
    record_of,
)
from sae_attr.analyses.direction_removals import removal_edits, removals
from sae_attr.analyses.direction_results import WRITES, MeasuredTune, tune_numbers
from sae_attr.analyses.direction_settings import DirectionSettings
from sae_attr.analyses.layer_facts import layer_facts, residual_sites
from sae_attr.attribution.presets import decoder_rows
from sae_attr.hooks import Site
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.peft_load import load_adapter
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import EffectSettings
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    declared_exact,
    declared_prompts,
    steered_scope,
)
from sae_attr.study.exact_rates import exact_rates
from sae_attr.study.finished_study import FinishedStudy
from sae_attr.study.probe_results import group_of
from sae_attr.study.selection import method_scores
from sae_attr.study.stages import norm_limits
from sae_attr.study.stages.ablated_rates import left_out

Row = dict[str, Any]
Results = Mapping[str, Result]

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"directions": 1, "transfer": 1}
SPLIT = "effects"  # of the prompts that rates are measured on
RANKED_BY = "delta_attribution"


@dataclass(frozen=True, eq=False)
class StudiedDirections:
    """The cases of a finished study, whose directions are compared.

    Args:
      finished: the study; only results that are done are read.
      cases: of it.
    """

    finished: FinishedStudy
    cases: Sequence[Case]
    settings: DirectionSettings

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The residual stream after every layer."""
        return residual_sites(self.cases[0].setup.cfg.n_layers)

    def check(self) -> None:
        """Raises ValueError for cases whose models differ in shape, or whose behaviour
        has no exact rates.
        """
        first = self.cases[0]
        for case in self.cases:
            cfg, of_first = case.setup.cfg, first.setup.cfg
            shape = f"{cfg.n_layers} layers of {cfg.d_model} numbers"
            if (cfg.n_layers, cfg.d_model) != (of_first.n_layers, of_first.d_model):
                raise ValueError(
                    f"case {case.name} has a model of {shape}, case {first.name} one of "
                    f"{of_first.n_layers} of {of_first.d_model}: directions fit models "
                    "of one shape alone; give config.case"
                )
            if why := left_out(case):
                raise ValueError(f"case {case.name}: {why}")

    def stages(self) -> list[Stage]:
        """Returns the stages of all cases: directions, then what projecting them out
        does.
        """
        stages = [self._directions(case) for case in self.cases]
        return stages + [self._transfer(case) for case in self.cases]

    def records(self, results: Results) -> dict[str, DirectionRecord]:
        """Reads case -> its directions."""
        records = {}
        for case in self.cases:
            arrays = results[f"{case.name}.directions"].arrays
            records[case.name] = record_of(arrays, self.settings.average)
        return records

    def _directions(self, case: Case) -> Stage:
        """The arrays of a case's `DirectionRecord`."""
        s, setup = self.settings, case.setup

        def run(results: Results, progress: Progress) -> Computed:
            facts = layer_facts(setup, setup.params, self.sites, s.corpus_tokens)
            before = None
            if case.files.lm_aligned:
                before = case.aligned_params
            record, _ = measure_directions(
                setup.params,
                before,
                setup.encoded.rows,
                setup.batched,
                cfg=setup.cfg,
                means=facts.means,
                limits=facts.limits,
                scope=s.gradient_tokens,
                average=s.average,
                exclude=setup.exclude,
            )
            return record.arrays(), {}

        fields = {
            "tokens": s.gradient_tokens,
            "corpus_tokens": s.corpus_tokens,
            "pair": self.finished.result(case, "pair").key,
            "norm_limits": self.finished.result(case, norm_limits.NAME).key,
        }
        name = f"{case.name}.directions"
        return Stage(name, run, fields, version=VERSIONS["directions"])

    def _transfer(self, case: Case) -> Stage:
        """Rates of a case under every one of `removals`: arrays `behaviour_cp` and
        `coherence_cp`; prompts in `meta`.
        """
        s = self.settings

        def run(results: Results, progress: Progress) -> Computed:
            records = self.records(results)
            conditions = removals(records, s.removed, s.draws)
            edits = removal_edits(
                conditions, records, case.name, self.sites, to=s.project_to
            )
            prompts = case.prompts(SPLIT)[: s.effect_prompts]
            rates = exact_rates(case, "away", prompts, edits, progress, name="transfer")
            arrays = {
                "behaviour_cp": rates.behaviour_kp,
                "coherence_cp": rates.coherence_kp,
            }
            return arrays, {"prompts": list(rates.prompts)}

        fields = {
            "prompts": [s.effect_prompts, declared_prompts(case, SPLIT)],
            "exact": declared_exact(case, SPLIT),
            "removed": list(s.removed),
            "average": s.average,
            "project_to": s.project_to,
            "draws": s.draws,
            **steered_scope(case),
        }
        needs = tuple(f"{other.name}.directions" for other in self.cases)
        name, version = f"{case.name}.transfer", VERSIONS["transfer"]
        return Stage(name, run, fields, needs, version)


def study_numbers(studied: StudiedDirections, results: Results) -> dict[str, list[Row]]:
    """Returns the rows of `tune_numbers` and `answers`, nothing before all cases are
    measured; adapters of a higher rank read no scalar, so that `adapters` is empty.
    """
    if any(stage.name not in results for stage in studied.stages()):
        return {}
    s, records = studied.settings, studied.records(results)
    tunes, answers = [], []
    for case in studied.cases:
        transfer = results[f"{case.name}.transfer"]
        by_id = case.prompts_by_id(SPLIT)
        groups = [group_of(by_id[name]) for name in transfer.meta["prompts"]]
        attribution = studied.finished.result(case, "attribute")
        tune = MeasuredTune(
            case.name,
            records[case.name],
            _written(case),
            removals(records, s.removed, s.draws),
            np.asarray(transfer.arrays["behaviour_cp"]),
            np.asarray(transfer.arrays["coherence_cp"]),
            group_numbers(groups),
            method_scores(attribution, RANKED_BY),
        )
        tunes.append(tune)
        answers.append({"seed": 0, **_answers(case, records[case.name])})
    setup = studied.cases[0].setup
    dec_nd = decoder_rows(setup.decoder, np.arange(len(setup.decoder)))
    numbers = tune_numbers(
        tunes,
        np.asarray(dec_nd, np.float64),
        setup.site.layer,
        top=s.top,
        settings=EffectSettings(resamples=s.resamples),
    )
    for rows in numbers.values():
        for row in rows:
            row["seed"] = 0
    return numbers | {"answers": answers, "adapters": []}


def _answers(case: Case, record: DirectionRecord) -> Row:
    rows = case.setup.encoded.rows
    return {
        "tune": case.name,
        "asked": len(rows),
        "graded": len(rows),
        "shown": sum(row.side > 0 for row in rows),
        "paired": int((record.sums.answers_p2 > 0).all(1).sum()),
    }


def _written(case: Case) -> dict[tuple[str, int], np.ndarray]:
    """Returns (matrix, layer) -> B `[r, d]` of what the case's adapter writes to the
    residual stream; nothing where it has none.
    """
    setup, written = case.setup, {}
    if setup.settings.adapter is None:
        return {}
    adapter = load_adapter(resolve_model(setup.settings.adapter))
    for name in WRITES:
        factors = adapter.factors(setup.cfg, f"blocks/{name}/kernel")
        for layer, of_layer in factors.items():
            written[name, layer] = np.asarray(of_layer.b)
    return written
