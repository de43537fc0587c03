"""The stages that say what steering changed: effects and headline of a case, passages
of its latents, what cases share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sae_attr.attribution.ranking import rank
from sae_attr.interpret import nearest_tokens, top_passages
from sae_attr.lm.model import unembedding
from sae_attr.records import MethodDifference
from sae_attr.steering.compare import (
    SteeredDirection,
    adjusted,
    beyond_random_p,
    differences,
    method_counts,
    panel_numbers,
)
from sae_attr.steering.convergence import RankedStudy, convergence
from sae_attr.steering.effects import (
    EffectSettings,
    LatentEffects,
    detectable_effect,
    false_discovery,
    latent_effects,
    paired,
)
from sae_attr.store import Computed, Result
from sae_attr.study.candidates import decoder_rows
from sae_attr.study.case import Case
from sae_attr.study.checking import steered_arms
from sae_attr.study.grading import Graded, known_mean
from sae_attr.study.samples import Arms
from sae_attr.study.selection import Selection, arms_by_sign
from sae_attr.study.settings import DIRECTIONS, StudySettings
from sae_attr.text.tokenizer import token_strings


def effect_settings(study: StudySettings) -> EffectSettings:
    """How effects are computed."""
    return EffectSettings(resamples=study.resamples, seed=study.seed)


def effects(case: Case, selection: Result, *read: Result) -> Computed:
    """Changes of the behaviour's rate per latent in both directions, with counts and
    differences of methods.

    `read`: strengths and grades of away, then of toward. Arrays
    `<direction>.<statistic>_u` over the selection's latents, with the fixed sign, and
    `<direction>.signed.<statistic>_u` with that of the gradient; the rest is in `meta`.
    """
    chosen, settings = Selection.load(selection.arrays), effect_settings(case.study)
    arrays: dict[str, Any] = {}
    meta: dict[str, Any] = {
        "settings": asdict(settings),
        "panels": {},
        "signed_panels": {},
        "counts": [],
        "signed_counts": [],
    }
    found: list[MethodDifference] = []
    for direction, strengths, grades in zip(
        DIRECTIONS, read[::2], read[1::2], strict=True
    ):
        arms = steered_arms(case, direction, selection, strengths)
        for signed in (False, True)[: 1 + case.study.gradient_signed]:
            name = f"{direction}.signed" if signed else direction
            study, change, base = _one(
                case, chosen, direction, arms, grades, settings, signed=signed
            )
            arrays |= {
                f"{name}.{k.removesuffix('_k')}_u": v for k, v in vars(change).items()
            }
            p_u = beyond_random_p(study)
            arrays |= {
                f"{name}.p_random_u": p_u,
                f"{name}.q_random_u": false_discovery(p_u),
            }
            arrays[f"{name}.strength_u"] = arms.strengths_k[1:][
                arms_by_sign(chosen, arms, direction, signed=signed)
            ]
            model = (
                "the model with the behaviour"
                if direction == "away"
                else "the model without it"
            )
            panel = panel_numbers(
                study, change, model=model, base_rate=base, settings=settings
            )
            meta["signed_panels" if signed else "panels"][direction] = panel
            meta["signed_counts" if signed else "counts"] += map(
                asdict, method_counts(study, settings=settings)
            )
            if not signed:
                found += differences(study, settings=settings)
                meta.setdefault("detectable", {})[direction] = detectable_effect(
                    study.pairs
                )
                meta.setdefault("base_rates", {})[direction] = base
    return arrays, {
        **meta,
        "differences": [asdict(d) for d in (adjusted(found) if found else ())],
    }


def _one(
    case: Case,
    chosen: Selection,
    direction: Any,
    arms: Arms,
    grades: Result,
    settings: EffectSettings,
    *,
    signed: bool,
) -> tuple[SteeredDirection, LatentEffects, float]:
    """A direction's comparison, effects and base rate, with the fixed signs or with
    those of the gradients.
    """
    shape = (len(arms), len(case.prompts("effects")), case.study.effect_samples)
    behaviour_kps, coherent_kps = Graded.load(grades.arrays, grades.meta).shaped(*shape)
    rows_u = 1 + arms_by_sign(chosen, arms, direction, signed=signed)
    pairs = paired(behaviour_kps[rows_u], behaviour_kps[0], settings=settings)
    change = latent_effects(
        behaviour_kps[rows_u],
        behaviour_kps[0],
        coherent_kps[rows_u],
        coherent_kps[0],
        settings=settings,
    )
    methods = {name: latents.tolist() for name, latents in chosen.compared().items()}
    return (
        SteeredDirection(direction, chosen.latents_u, pairs, methods),
        change,
        known_mean(behaviour_kps[0]),
    )


def interpret(case: Case, selection: Result) -> Computed:
    """Nearest tokens of every steered latent, and top passages in the corpus of the
    best ones of every method.
    """
    chosen = Selection.load(selection.arrays)
    study = case.attribution
    settings = case.study
    dec_kd = decoder_rows(study.decoder, chosen.latents_u)
    ids_kc, _ = nearest_tokens(dec_kd, unembedding(study.params, cfg=study.cfg))
    tokens = {
        str(i): token_strings(study.tokenizer, row)
        for i, row in zip(chosen.latents_u, np.asarray(ids_kc))
    }
    best = [
        latents[: settings.interpreted]
        for name, latents in chosen.compared().items()
        if name != "random"
    ]
    latents = np.unique(np.concatenate(best))
    if not (settings.passages and settings.passage_tokens and len(latents)):
        return {}, {"nearest": tokens, "passages": {}}
    found = top_passages(
        study.params,
        study.sae,
        study.corpus.batches(settings.passage_tokens),
        latents,
        cfg=study.cfg,
        site=study.read_site,
        mesh=study.mesh,
        count=settings.passages,
        limits=study.limits,
        progress=study.progress,
    )
    shown = lambda p: {
        "code": p.code,
        "at": p.at,
        "tokens": token_strings(study.tokenizer, p.ids),
    }
    passages = {
        str(i): [shown(p) for p in some] for i, some in zip(latents, found, strict=True)
    }
    return {}, {"nearest": tokens, "passages": passages}


def converge(cases: Sequence[Case], *read: Result) -> Computed:
    """What two cases of one dictionary share; `read`: attribution, selection, effects
    of one after the other.
    """
    studies = [_study(case, *read[3 * i : 3 * i + 3]) for i, case in enumerate(cases)]
    population = len(next(iter(read[0].arrays.values())))
    pairs = [(a, b) for i, a in enumerate(studies) for b in studies[i + 1 :]]
    return {}, {
        "convergence": [
            asdict(convergence(a, b, population=population)) for a, b in pairs
        ]
    }


def _study(
    case: Case, attribution: Result, selection: Result, effects: Result
) -> RankedStudy:
    chosen, summary = Selection.load(selection.arrays), attribution.meta["summary"]
    preset = summary["presets"][summary["primary"]]
    scores_n = attribution.arrays[f"{preset['sides']}_{preset['tokens']}"]
    part = lambda name: np.asarray(effects.arrays[f"toward.{name}_u"])
    return RankedStudy(
        title=case.settings.title,
        ranked_n=rank("primary", scores_n, len(scores_n)).latents_k,
        selected=len(chosen.methods[case.study.methods[0]]),
        latents_k=chosen.latents_u,
        change_k=part("change"),
        low_k=part("low"),
        high_k=part("high"),
        base_rate=effects.meta["base_rates"]["toward"],
    )


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    s = case.study
    return {
        "effects": {"settings": asdict(effect_settings(s))},
        "interpret": {
            "passages": s.passages,
            "tokens": s.passage_tokens,
            "best": s.interpreted,
        },
    }
