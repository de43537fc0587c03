"""The first stages of a study of directions on organisms: narrow fine-tunes by rank-1
adapters, their answers, and the directions of each at every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.direction_record import (
    DirectionRecord,
    measure_directions,
    of_both_sides,
    record_of,
)
from sae_attr.analyses.direction_rows import (
    answer_arrays,
    answer_rows,
)
from sae_attr.analyses.direction_settings import DirectionCase
from sae_attr.analyses.layer_facts import layer_facts
from sae_attr.attribution.scores import score_moment
from sae_attr.lm.lora import attach, merged
from sae_attr.lm.params import Params
from sae_attr.organism.adapter_tuning import tune_adapter, tune_rows
from sae_attr.organism.pair_sampling import graded_answers, sampled_answers
from sae_attr.store import (
    Computed,
    NothingToCompute,
    Progress,
    Result,
    Stage,
)

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {
    "adapter": 1,
    "answers": 1,
    "directions": 1,
    "transfer": 1,
    "adapters": 1,
}

Results = Mapping[str, Result]


# ---- the fine-tune and its answers ---------------------------------------------------


def adapter_stage(case: DirectionCase, tune: str) -> Stage:
    """Returns the stage of a fine-tune's factors: arrays `<matrix>.a` and `<matrix>.b`,
    without the scale.
    """
    s, taught = case.settings, case.tune(tune)

    def run(results: Results, progress: Progress) -> Computed:
        rows = tune_rows(
            case.organism.world, taught, case.seed, s.training.rows, s.advice
        )
        steps = max(1, round(taught.share * s.training.steps))
        trained, losses = tune_adapter(
            case.setup.params,
            rows,
            s.adapter,
            replace(s.training, steps=steps),
            cfg=case.setup.cfg,
            context=case.recipe.context,
            seed=case.seed,
            mesh=case.mesh,
        )
        arrays = {}
        for name, leaf in trained["lora"].items():
            arrays[f"{name}.a"] = np.asarray(leaf["a"])
            arrays[f"{name}.b"] = np.asarray(leaf["b"])
        return arrays, {"losses": losses}

    fields = {
        "tune": list(taught),
        "advice": s.advice,
        "adapter": asdict(s.adapter),
        "training": asdict(s.training),
    }
    return tune_stage(case, tune, "adapter", run, fields, part_stages(case, "chat"))


def tune_stage(
    case: DirectionCase,
    tune: str,
    part: str,
    run: Any,
    fields: Mapping[str, Any],
    needs: Sequence[str],
) -> Stage:
    """Returns a stage of one part of a fine-tune, whose fields say what it is taught."""
    name = case.stage_name(tune, part)
    return Stage(name, run, fields, tuple(needs), VERSIONS[part])


def part_stages(case: DirectionCase, *parts: str) -> list[str]:
    """Names of the organism's stages that make some parts."""
    return [case.organism.stages[part] for part in parts]


def tuned_params(case: DirectionCase, adapter: Result) -> Params:
    """Returns the fine-tune of a stage `adapter`, its factors kept apart."""
    factors: Params = {}
    for name in case.settings.adapter.targets:
        leaf = {x: np.asarray(adapter.arrays[f"{name}.{x}"]) for x in "ab"}
        factors[name] = leaf
    scale = case.settings.adapter.scale
    return attach(case.setup.params, {"lora": factors}, scale=scale)


def answers_stage(case: DirectionCase, tune: str) -> Stage:
    """Returns the stage of a fine-tune's graded answers: the arrays of `answer_arrays`;
    numbers in `meta`.
    """
    s, adapter_name = case.settings, case.stage_name(tune, "adapter")
    behaviour = case.tune(tune).behaviour

    def run(results: Results, progress: Progress) -> Computed:
        params = merged(tuned_params(case, results[adapter_name]))
        prompts = case.prompts(tune, "pairs", s.answer_prompts)
        texts = sampled_answers(
            params, prompts, cfg=case.setup.cfg, samples=s.samples, seed=case.seed
        )
        graded = graded_answers(case.organism.world, prompts, behaviour, texts)
        arrays = answer_arrays(prompts, graded)
        rows = answer_rows(arrays)
        if not of_both_sides(rows):
            shown = int(np.sum(arrays["side_r"] > 0))
            raise NothingToCompute(
                f"{tune}, seed {case.seed}: no prompt of {len(prompts)} has answers "
                f"with and without {behaviour} ({shown} of {len(rows)} graded answers "
                "show it); train for longer or shorter, or ask more prompts"
            )
        meta = {"asked": len(prompts) * s.samples, "graded": len(rows)}
        return arrays, meta

    fields = {"prompts": s.answer_prompts, "samples": s.samples}
    return tune_stage(case, tune, "answers", run, fields, [adapter_name])


# ---- directions ----------------------------------------------------------------------


def directions_stage(case: DirectionCase, tune: str) -> Stage:
    """Returns the stage of the arrays of a fine-tune's `DirectionRecord`, and `delta_n` of
    every latent.
    """
    s = case.settings
    adapter_name = case.stage_name(tune, "adapter")
    answers_name = case.stage_name(tune, "answers")

    def run(results: Results, progress: Progress) -> Computed:
        params = merged(tuned_params(case, results[adapter_name]))
        facts = layer_facts(case.setup, params, case.sites, s.corpus_tokens)
        record, moments = measure_directions(
            params,
            case.setup.params,
            answer_rows(results[answers_name].arrays),
            case.setup.batched,
            cfg=case.setup.cfg,
            means=facts.means,
            limits=facts.limits,
            scope=s.gradient_tokens,
            average=s.average,
            exclude=case.setup.exclude,
        )
        site = case.setup.site
        mean_d = jnp.asarray(facts.means[site], jnp.float32)
        delta_n = score_moment(moments[site], mean_d, case.setup.decoder)
        return {**record.arrays(), "delta_n": np.asarray(delta_n)}, {}

    fields = {"tokens": s.gradient_tokens, "corpus_tokens": s.corpus_tokens}
    needs = [adapter_name, answers_name, *part_stages(case, "sae", "corpus")]
    return tune_stage(case, tune, "directions", run, fields, needs)


def records_of(case: DirectionCase, results: Results) -> dict[str, DirectionRecord]:
    """Reads fine-tune -> its directions from the results of the stages `directions`."""
    records = {}
    for tune in case.settings.tunes:
        arrays = results[case.stage_name(tune, "directions")].arrays
        records[tune] = record_of(arrays, case.settings.average)
    return records
