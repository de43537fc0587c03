"""The stages that measure the post's claims on model organisms: pairs of every source,
scores of every completion, exact effects, and what drawn sets of pairs would have found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.claim_pairs import (
    differences_of,
    pair_stage,
    score_stage,
    sided_of,
)
from sae_attr.analyses.claim_settings import KINDS, ON_POLICY, ClaimCase
from sae_attr.analyses.dilution import (
    best_latents,
    candidates,
    moved_shares,
)
from sae_attr.analyses.pair_draws import drawn_agreement, resampled_agreement
from sae_attr.attribution.presets import decoder_rows
from sae_attr.organism.build import organism_stages
from sae_attr.organism.exact import STUDIED, prompt_paths
from sae_attr.organism.ground_truth import (
    ablation_ground_truth,
    steering_ground_truth,
)
from sae_attr.store import (
    Computed,
    Progress,
    Result,
    Stage,
)
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.stages import mean_activation, norm_limits
from sae_attr.study.stages.context import Context
from sae_attr.study.stages.mean_activation import mean_of

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {
    "effects": 1,
    "draws": 1,
    "dilution": 1,
}
EFFECTS = ("away", "ablation")  # the two ground truths

Results = Mapping[str, Result]


def claim_stages(cases: Sequence[ClaimCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism."""
    stages: dict[str, Stage] = {}
    for case in cases:
        evaluations = [case.evaluation, *case.diluted.values()]
        for e in evaluations:
            of_organism = organism_stages(
                e.recipe, mesh=e.mesh, prefix=e.organism_prefix
            )
            for stage in (*of_organism, *_means(e)):
                stages.setdefault(stage.name, stage)
            sources = case.settings.sources if e is case.evaluation else (ON_POLICY,)
            for source in sources:
                for stage in (
                    pair_stage(case, e, source),
                    score_stage(case, e, source),
                ):
                    stages[stage.name] = stage
            stages[e.stage_name("effects")] = _effects(case, e)
        stages[case.stage_name("draws")] = _draws(case)
        if case.diluted:
            stages[case.stage_name("dilution")] = _dilution(case)
    return list(stages.values())


def _files(e: Evaluation) -> tuple[str, ...]:
    parts = (STUDIED[e.behaviour], "chat", "sae", "corpus")
    return tuple(e.organism.stages[part] for part in parts)


def _means(e: Evaluation) -> list[Stage]:
    """ā and the typical norm, over ordinary text."""
    context = Context(e.setup, e.stage_name(""), None, _files(e))
    return [norm_limits.stage(context), mean_activation.stage(context)]


# ---- effects -------------------------------------------------------------------------


def _effects(case: ClaimCase, e: Evaluation) -> Stage:
    """What steering away and ablation do: arrays `away`, `ablation`, the rates without
    an edit in `meta["base"]`. Every latent of the plain fine-tune; of the others the
    best by any score, NaN elsewhere.
    """
    s, mean_name = case.settings, e.stage_name("mean_activation")
    scores_name = e.stage_name(f"{ON_POLICY}.scores")
    whole = e is case.evaluation

    def run(results: Results, progress: Progress) -> Computed:
        latents = np.arange(len(e.setup.decoder))
        if not whole:
            differences = differences_of(results[scores_name], s.harmless_pairs)
            latents = candidates(differences, s.candidates)
        return _measured(e, results[mean_name], latents)

    fields = {
        "grid": list(s.grid),
        "budget": s.budget,
        "strength_prompts": s.strength_prompts,
        "effect_prompts": s.effect_prompts,
        "candidates": None if whole else s.candidates,
    }
    needs = [
        mean_name,
        *(e.organism.stages[part] for part in (STUDIED[e.behaviour], "sae")),
    ]
    if not whole:
        needs.append(scores_name)
    name = e.stage_name("effects")
    return Stage(name, run, fields, tuple(needs), VERSIONS["effects"])


def _measured(e: Evaluation, mean_result: Result, latents: np.ndarray) -> Computed:
    s, setup, mean = e.settings, e.setup, mean_of(mean_result)
    paths = {}
    for split, count in (
        ("strengths", s.strength_prompts),
        ("effects", s.effect_prompts),
    ):
        deciding = e.deciding_prompts(split, count)
        paths[split] = prompt_paths(e.organism.world, e.behaviour, deciding)
    dec_kd = np.asarray(decoder_rows(setup.decoder, latents))
    model = {"cfg": setup.cfg, "site": setup.site}
    truths = {
        "away": steering_ground_truth(
            setup.params,
            paths["strengths"],
            paths["effects"],
            dec_kd,
            mean.norm,
            sign=-1,
            grid=tuple(s.grid),
            budget=s.budget,
            **model,
        ),
        "ablation": ablation_ground_truth(
            setup.params, paths["effects"], dec_kd, mean.mean_d, **model
        ),
    }
    arrays, base = {}, {}
    for name, truth in truths.items():
        effect_n = np.full(len(setup.decoder), np.nan)
        effect_n[latents] = truth.effect_n
        arrays[name] = effect_n
        base[name] = truth.base
    return arrays, {"base": base, "latents": len(latents)}


def effects_of(result: Result) -> dict[str, np.ndarray]:
    """Reads ground truth -> effect of every latent from the result of a stage
    `effects`.
    """
    return {name: np.asarray(result.arrays[name]) for name in EFFECTS}


# ---- what drawn pairs find -----------------------------------------------------------


def _draws(case: ClaimCase) -> Stage:
    """Claims on pairs: arrays `truth` and `repeated` of `drawn_agreement`, by kind of
    score first, and `source.<name>` of `resampled_agreement`.
    """
    s, e = case.settings, case.evaluation
    effects_name = e.stage_name("effects")
    score_names = {source: e.stage_name(f"{source}.scores") for source in s.sources}

    def run(results: Results, progress: Progress) -> Computed:
        effects = effects_of(results[effects_name])
        options: dict[str, Any] = {"draws": s.draws, "top": s.top, "seed": case.seed}
        truth, repeated = [], []
        for kind in KINDS:
            scores = sided_of(results[score_names[ON_POLICY]], kind.label)
            of_kind = drawn_agreement(scores, effects, s.counts, **options)
            truth.append(of_kind[0])
            repeated.append(of_kind[1])
        arrays = {"truth": np.stack(truth), "repeated": np.stack(repeated)}
        skipped = {}
        for source, name in score_names.items():
            if "skipped" in results[name].meta:
                skipped[source] = results[name].meta["skipped"]
                continue
            of_source = []
            for kind in KINDS:
                difference_pn = sided_of(results[name], kind.label).difference_pn
                of_source.append(
                    resampled_agreement(
                        difference_pn, effects, s.source_pairs, **options
                    )
                )
            arrays[f"source.{source}"] = np.stack(of_source)
        return arrays, {"skipped": skipped}

    fields = {
        "counts": list(s.counts),
        "draws": s.draws,
        "top": s.top,
        "source_pairs": s.source_pairs,
    }
    needs = (effects_name, *score_names.values())
    return Stage(case.stage_name("draws"), run, fields, needs, VERSIONS["draws"])


def _dilution(case: ClaimCase) -> Stage:
    """What the best latents of each score move as more changes: arrays
    `share.<changes>` and `overlap.<changes>` of `moved_shares`; `meta["base"]`.
    """
    s = case.settings
    evaluations = {0: case.evaluation, **case.diluted}

    def run(results: Results, progress: Progress) -> Computed:
        arrays, bases, first_best = {}, {}, {}
        for changes, e in evaluations.items():
            scores = results[e.stage_name(f"{ON_POLICY}.scores")]
            effects = results[e.stage_name("effects")]
            differences = differences_of(scores, s.harmless_pairs)
            for label, difference_pn in differences.items():
                first_best.setdefault(label, best_latents(difference_pn.mean(0), s.top))
            bases[str(changes)] = effects.meta["base"]
            shares, overlap = moved_shares(
                differences,
                effects_of(effects),
                effects.meta["base"],
                first_best,
                draws=s.draws,
                top=s.top,
                seed=case.seed,
            )
            arrays[f"share.{changes}"] = shares
            arrays[f"overlap.{changes}"] = overlap
        return arrays, {"base": bases, "scores": list(first_best)}

    fields = {"pairs": s.harmless_pairs, "draws": s.draws, "top": s.top}
    needs = []
    for e in evaluations.values():
        needs += [e.stage_name(f"{ON_POLICY}.scores"), e.stage_name("effects")]
    name = case.stage_name("dilution")
    return Stage(name, run, fields, tuple(needs), VERSIONS["dilution"])
