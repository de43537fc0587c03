"""The stages that measure what latents really do, score them as other studies would, and
compare every score with the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution.directions import plain_directions
from sae_attr.attribution.latent_statistics import largest_codes
from sae_attr.attribution.output_scores import output_scores
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.score_registry import labelled
from sae_attr.attribution.selectors import selector_scores, selector_versions
from sae_attr.organism.exact import BEFORE, STUDIED, prompt_paths
from sae_attr.organism.ground_truth import (
    GroundTruth,
    ablation_ground_truth,
    steering_ground_truth,
)
from sae_attr.organism.prompting import prompting_ground_truth
from sae_attr.organism.score_agreement import (
    NUMBERS,
    Agreement,
    agreement,
    half_agreement,
    single_effects,
)
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.stages import evidence, mean_activation, norm_limits
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.text.rows import SCOPES

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {
    "ground_truth": 2,
    "directions": 1,
    "selectors": 1,
    "agreement": 2,
}
GROUND_TRUTHS = ("away", "toward", "ablation")
HALF = ("half of the prompts", "")
PROMPTING = ("prompting", "")
RANDOM = ("random", "")
DIRECTION = "direction"  # in the place of a scope: a direction, no score
NEUTRAL = (4, 8)  # ordinary texts whose first tokens are neutral prompts, and how many

_FIELDS = ("effect_np", "strength_n", "loss_n")


def context_of(e: Evaluation) -> Context:
    """Returns where the stages of an evaluation's attribution stand in the graph."""
    parts = (STUDIED[e.behaviour], BEFORE[e.behaviour], "sae", "corpus")
    files = tuple(e.organism.stages[part] for part in parts)
    return Context(e.setup, e.stage_name(""), e.stage_name("pairs"), files)


# ---- what is true --------------------------------------------------------------------


def ground_truth_stage(e: Evaluation) -> Stage:
    """Makes the stage: what steering with every latent away and toward, and ablating it,
    does; arrays `<ground truth>.<field>`, rates without an edit in `meta["base"]`.
    """
    mean_name = e.stage_name(mean_activation.NAME)

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        mean = mean_activation.mean_of(results[mean_name])
        latents = np.arange(len(e.setup.decoder))
        dec_nd = np.asarray(decoder_rows(e.setup.decoder, latents))
        return _as_computed(_measured(e, mean, dec_nd))

    parts = (STUDIED[e.behaviour], BEFORE[e.behaviour], "sae")
    needs = (mean_name, *(e.organism.stages[part] for part in parts))
    name, version = e.stage_name("ground_truth"), VERSIONS["ground_truth"]
    return Stage(name, run, _truth_fields(e), needs, version)


def directions_stage(e: Evaluation) -> Stage:
    """Makes the stage: the same of the directions that need no SAE, by name in
    `meta["directions"]`, and behind them of prompting, which ablates nothing.
    """

    def run(inputs: Inputs, progress: Progress) -> Computed:
        measured = evidence.evidence_of(e.setup, inputs)
        directions = plain_directions(measured)
        truths = _measured(e, measured.mean, np.stack(list(directions.values())))
        prompted, words = _prompted(e)
        joined = {}
        for name, truth in truths.items():
            joined[name] = _joined(truth, prompted[name])
        arrays, meta = _as_computed(joined)
        names = [[name, DIRECTION] for name in directions]
        return arrays, {**meta, "directions": [*names, list(PROMPTING)], "words": words}

    return context_of(e).stage(
        "directions",
        run,
        version=VERSIONS["directions"],
        fields=_truth_fields(e),
        needs=evidence.NEEDS,
        files=("lm", "lm_aligned"),
        pairs=True,
    )


def _truth_fields(e: Evaluation) -> dict[str, Any]:
    s = e.settings
    return {
        "behaviour": e.behaviour,
        "grid": list(s.grid),
        "budget": s.budget,
        "strength_prompts": s.strength_prompts,
        "effect_prompts": s.effect_prompts,
    }


def _measured(
    e: Evaluation, mean: MeanActivation, dec_nd: np.ndarray
) -> dict[str, GroundTruth]:
    """Away and ablation on the studied model, toward on the chat model."""
    setup, s, world = e.setup, e.settings, e.organism.world
    strengths = e.deciding_prompts("strengths", s.strength_prompts)
    effects = e.deciding_prompts("effects", s.effect_prompts)
    effect_paths = prompt_paths(world, e.behaviour, effects)
    steer = functools.partial(
        steering_ground_truth,
        strength_prompts=prompt_paths(world, e.behaviour, strengths),
        effect_prompts=effect_paths,
        dec_nd=dec_nd,
        norm=mean.norm,
        cfg=setup.cfg,
        site=setup.site,
        grid=tuple(s.grid),
        budget=s.budget,
    )
    return {
        "away": steer(setup.params, sign=-1),
        "toward": steer(e.params_before, sign=1),
        "ablation": ablation_ground_truth(
            setup.params,
            effect_paths,
            dec_nd,
            mean.mean_d,
            cfg=setup.cfg,
            site=setup.site,
        ),
    }


def _prompted(e: Evaluation) -> tuple[dict[str, GroundTruth], dict[str, str]]:
    """The effect of the best word of address, and the words."""
    setup, s = e.setup, e.settings
    address = functools.partial(
        prompting_ground_truth,
        world=e.organism.world,
        behaviour=e.behaviour,
        strength_prompts=e.deciding_prompts("strengths", s.strength_prompts),
        effect_prompts=e.deciding_prompts("effects", s.effect_prompts),
        cfg=setup.cfg,
        budget=s.budget,
    )
    away, away_word = address(setup.params, sign=-1)
    toward, toward_word = address(e.params_before, sign=1)
    unknown_1 = np.full(1, np.nan)
    nothing = GroundTruth(
        np.full_like(away.effect_np, np.nan), unknown_1, unknown_1, away.base
    )
    truths = {"away": away, "toward": toward, "ablation": nothing}
    return truths, {"away": away_word, "toward": toward_word}


def _joined(first: GroundTruth, second: GroundTruth) -> GroundTruth:
    fields = {}
    for field in _FIELDS:
        fields[field] = np.concatenate([getattr(first, field), getattr(second, field)])
    return GroundTruth(**fields, base=first.base)


def _as_computed(truths: Mapping[str, GroundTruth]) -> Computed:
    arrays = {}
    for name, truth in truths.items():
        for field in _FIELDS:
            arrays[f"{name}.{field}"] = getattr(truth, field)
    return arrays, {"base": {name: truth.base for name, truth in truths.items()}}


def ground_truths_of(result: Result) -> dict[str, GroundTruth]:
    """Reads the ground truths from the result of `ground_truth` or `directions`."""
    truths = {}
    for name in GROUND_TRUTHS:
        fields = {f: np.asarray(result.arrays[f"{name}.{f}"]) for f in _FIELDS}
        truths[name] = GroundTruth(**fields, base=result.meta["base"][name])
    return truths


# ---- what other studies would select -------------------------------------------------


def selectors_stage(e: Evaluation) -> Stage:
    """Makes the stage: arrays `<selector>.<scope>` `[n]`; what is left out, and why, in
    `meta["skipped"]`.
    """

    def run(inputs: Inputs, progress: Progress) -> Computed:
        measured = evidence.evidence_of(e.setup, inputs)
        scores, skipped = selector_scores(measured, SCOPES)
        limits = norm_limits.limits_of(inputs[norm_limits.NAME])
        for name, score_n in _output_scores(e, limits).items():
            scores[name, ""] = score_n
        arrays = {
            f"{name}.{scope}": score_n for (name, scope), score_n in scores.items()
        }
        return arrays, {"skipped": skipped}

    return context_of(e).stage(
        "selectors",
        run,
        version=VERSIONS["selectors"],
        fields={"selectors": selector_versions(), "neutral": list(NEUTRAL)},
        needs=(norm_limits.NAME, *evidence.NEEDS),
        files=("lm", "sae", "corpus"),
        pairs=True,
    )


def selectors_of(result: Result) -> dict[tuple[str, str], np.ndarray]:
    """Reads (selector, scope or "") -> score of every latent from the stage's result."""
    scores = {}
    for key, score_n in result.arrays.items():
        name, _, scope = key.rpartition(".")
        scores[name, scope] = np.asarray(score_n)
    return scores


def _output_scores(e: Evaluation, limits: Mapping[Any, float]) -> dict[str, np.ndarray]:
    setup = e.setup
    model: dict[str, Any] = {"cfg": setup.cfg, "site": setup.site}
    largest_n = largest_codes(
        setup.params,
        setup.corpus.batches(),
        setup.sae,
        mesh=setup.mesh,
        limits=limits,
        **model,
    )
    texts, tokens = NEUTRAL
    batch = next(iter(setup.corpus.batches()))
    prompts_pt = np.asarray(batch.tokens_bt)[:texts, :tokens]
    dec_nd = decoder_rows(setup.decoder, np.arange(len(setup.decoder)))
    return output_scores(setup.params, prompts_pt, dec_nd, largest_n, **model)


# ---- how far they agree --------------------------------------------------------------


def agreement_stage(e: Evaluation) -> Stage:
    """Makes the stage: arrays `<ground truth>.<number>` `[1 + draws, s]`, first the
    number and then its draws, of the s scores, directions and controls that
    `meta["scores"]` names as (name, scope); `meta["best_effect"]` by ground truth.
    """
    s = e.settings
    names = {part: e.stage_name(part) for part in ("ground_truth", "directions")}
    selectors_name = e.stage_name("selectors")
    score_names = {scope: e.stage_name(f"scores.{scope}") for scope in SCOPES}

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        scores: dict[tuple[str, str], np.ndarray] = {}
        for scope, name in score_names.items():
            scores |= labelled(results[name].arrays, scope)
        scores |= selectors_of(results[selectors_name])
        truths = ground_truths_of(results[names["ground_truth"]])
        n = len(truths["away"].effect_np)
        scores[RANDOM] = np.random.default_rng(e.recipe.seed).normal(size=n)
        scores_sn = np.stack([np.asarray(v, np.float64) for v in scores.values()])
        of_directions = ground_truths_of(results[names["directions"]])
        drawn = {"draws": s.draws, "seed": e.recipe.seed}
        options = {"top": s.top, **drawn}
        arrays: dict[str, np.ndarray] = {}
        best_effect = {}
        for name, truth in truths.items():
            of_scores = agreement(scores_sn, truth.effect_np, **options)
            of_half = half_agreement(truth.effect_np, **options)
            alone = single_effects(of_directions[name].effect_np, **drawn)
            best_effect[name] = of_scores.best_effect
            parts = [of_scores, of_half, alone]
            for number in NUMBERS:
                arrays[f"{name}.{number}"] = _with_draws(parts, number)
        labels = [*scores, HALF, *results[names["directions"]].meta["directions"]]
        meta = {"scores": [list(label) for label in labels], "best_effect": best_effect}
        return arrays, meta

    fields = {"top": s.top, "seed": e.recipe.seed, "draws": s.draws}
    needs = (*names.values(), selectors_name, *score_names.values())
    return Stage(e.stage_name("agreement"), run, fields, needs, VERSIONS["agreement"])


def _with_draws(parts: Sequence[Agreement], number: str) -> np.ndarray:
    """Returns a number and below it its draws, `[1 + draws, s]`."""
    columns = []
    for part in parts:
        columns.append(np.vstack([getattr(part, number), part.draws[number]]))
    return np.concatenate(columns, axis=1).astype(np.float32)
