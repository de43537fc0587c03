"""The stage that steers a few latents on other prompts and on ordinary text, in one
direction, and Gaussian directions beside them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Add
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.steering.specificity import gaussian_directions
from sae_attr.steering.text_loss import edited_text_loss
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_exact,
    declared_prompts,
    steered_scope,
)
from sae_attr.study.case_sweep import steering_vectors
from sae_attr.study.exact_rates import ExactRates, exact_rates
from sae_attr.study.selection import Selection
from sae_attr.study.stages.steer import strengths_of
from sae_attr.study.stages.strengths import norm_of
from sae_attr.study.stages.unsteered import prompts_of
from sae_attr.study.sweep_conditions import SideStrengths, side_of

# 2: latents on the effects' prompts are those of the stage `rates`.
VERSION = 2


def best_and_random(
    selection: Selection, best: int, random: int
) -> dict[str, list[int]]:
    """Returns method -> its best latents, random latents among them."""
    latents = {}
    for method, of_method in selection.compared().items():
        count = random if method == "random" else best
        latents[method] = of_method[:count].tolist()
    return latents


def steered_conditions(
    selection: Selection, strengths: SideStrengths, latents: dict[str, list[int]]
) -> list[Condition]:
    """Returns the conditions that steer latents with the direction's fixed sign, each
    latent once; those without a coherent strength are left out.
    """
    sides = side_of(selection, strengths.direction, signed=False)
    named: dict[int, None] = {}
    for of_method in latents.values():
        named |= dict.fromkeys(of_method)
    conditions = [strengths.condition(sides[latent]) for latent in named]
    return [condition for condition in conditions if condition.size > 0]


def median_strength(selection: Selection, strengths: SideStrengths) -> float:
    """Returns the median strength of all latents that are steered, signed as the
    direction steers; 0 where none is.
    """
    sides = side_of(selection, strengths.direction, signed=False)
    sizes = [strengths.sizes[side] for side in sides.values()]
    steered = [size for size in sizes if size > 0]
    if not steered:
        return 0.0
    sign = next(iter(sides.values())).sign
    return sign * float(np.median(steered))


def measure(inputs: StageInputs, progress: Progress) -> Computed:
    """Measures latents on every probe by exact probabilities and on ordinary text, and
    Gaussian directions on the effects' prompts; latents on these are the stage
    `rates`'s.

    Arrays: `latents_k` and `strengths_k`, of the latents; `rate_cp`, the unsteered
      condition first, then the latents, of the probes' prompts; `nats_k`, of the
      latents; `directions_rp`, of the effects' prompts.
    """
    case, direction, study = inputs.case, inputs.direction, inputs.case.study
    selection = Selection.load(inputs["select"].arrays)
    strengths = strengths_of(case, direction, inputs["strengths"])
    norm = norm_of(inputs["attribute"])
    latents = best_and_random(selection, study.specific_latents, study.specific_random)
    steered = steered_conditions(selection, strengths, latents)
    rows_kd, sizes_k = steering_vectors(case, (UNSTEERED, *steered), norm)
    median = median_strength(selection, strengths)
    arrays = {
        "latents_k": np.array([condition.latent for condition in steered], np.int64),
        "strengths_k": np.array([condition.strength for condition in steered]),
    }
    meta: dict[str, Any] = {"directions_strength": median, "exact_rows": 0}
    probes = prompts_of(case, case.settings.probes)
    if probes:
        edit = Add(jnp.asarray(rows_kd), jnp.asarray(sizes_k))
        rates = exact_rates(
            case, direction, probes, edit, progress, name=f"probes, {direction}"
        )
        arrays["rate_cp"] = rates.behaviour_kp
        meta |= {
            "prompts": list(rates.prompts),
            "left_out": list(rates.facts.get("left_out", ())),
            "exact_rows": rates.rows,
        }
    if median and study.random_directions:
        rates = _directions(case, direction, median * norm, progress)
        arrays["directions_rp"] = rates.behaviour_kp
        meta["directions_prompts"] = list(rates.prompts)
        meta["exact_rows"] += rates.rows
    arrays["nats_k"], meta["text"] = text_cost(case, direction, rows_kd, sizes_k)
    return arrays, meta


def _directions(
    case: Case, direction: str, size: float, progress: Progress
) -> ExactRates:
    """Measures Gaussian directions on the effects' prompts."""
    study, width = case.study, case.setup.cfg.width(case.setup.site.point)
    rows_rd = gaussian_directions(study.random_directions, width, study.seed)
    edit = Add(jnp.asarray(rows_rd), jnp.full(len(rows_rd), size, jnp.float32))
    prompts, name = case.prompts("effects"), f"directions, {direction}"
    return exact_rates(case, direction, prompts, edit, progress, name=name)


def text_cost(
    case: Case, direction: str, rows_kd: np.ndarray, sizes_k: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns what each steered latent costs on ordinary text, nats per token, and the
    unsteered loss with its number of tokens.

    Args:
      rows_kd, sizes_k: the unsteered condition first, then the latents.
    """
    setup, study = case.setup, case.study
    if not study.specific_tokens or len(rows_kd) == 1:
        return np.full(len(rows_kd) - 1, np.nan), {"tokens": 0}
    loss = edited_text_loss(
        case.params(direction),
        setup.corpus.batches(study.specific_tokens),
        {setup.site: Add(jnp.asarray(rows_kd), jnp.asarray(sizes_k))},
        cfg=setup.cfg,
        mesh=case.runtime.mesh,
        skip=study.steer_skip,
        bar=case.runtime.progress,
    )
    return loss.cost_k, {"tokens": loss.tokens, "nats": loss.plain}


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the changes depend on."""
    study, sets = case.study, {}
    for name in ("effects", *case.settings.probes):
        ids = declared_prompts(case, name)
        sets[name] = [len(case.prompts(name)), ids, declared_exact(case, name)]
    return {
        "sets": sets,
        "latents": [study.specific_latents, study.specific_random],
        "directions": study.random_directions,
        "tokens": study.specific_tokens,
        "seed": study.seed,
        **steered_scope(case),
    }


STAGE = CaseStage(
    "specificity",
    measure,
    fields,
    needs=("select", "strengths", "attribute"),
    version=VERSION,
    directed=True,
    applies=lambda study: study.effects_by == "exact" and study.specific_latents > 0,
)
