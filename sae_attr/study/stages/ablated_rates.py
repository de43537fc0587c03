"""The stage that measures the behaviour with single latents ablated: each is set to its
mean over ordinary text in the model with the behaviour, by exact probabilities.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.presets import decoder_rows
from sae_attr.hooks import Below, Edit, SetProjection
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.steering.compare import adjusted_counts, method_counts
from sae_attr.steering.interventions import set_activations
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_exact,
    declared_prompts,
    steered_scope,
)
from sae_attr.study.continuation_texts import has_texts
from sae_attr.study.exact_rates import exact_rates
from sae_attr.study.selection import Selection
from sae_attr.study.stages import firing, mean_activation, norm_limits
from sae_attr.study.stages.effects import (
    MeasuredChanges,
    compared_effects,
    effect_settings,
)

# 2: counts of methods have the gap to random latents.
VERSION = 2
NAME = "ablated_rates"


def measure(inputs: StageInputs, progress: Progress) -> Computed:
    """Measures the exact rate with every steered latent ablated alone, on the effects'
    prompts: `<statistic>_u` as of steering; counts of methods and the numbers of the
    figure's panel in `meta`, or `skipped`, why it is left out.
    """
    case = inputs.case
    why = left_out(case)
    if why:
        return {}, {"skipped": why}
    selection = Selection.load(inputs["select"].arrays)
    try:
        edits = _ablations(inputs, selection.latents_u)
    except ValueError as error:  # an SAE whose activations cannot be set there
        return {}, {"skipped": str(error)}
    prompts = case.prompts("effects")
    rates = exact_rates(case, "away", prompts, edits, progress, name="ablated rates")
    behaviour_kp1 = rates.behaviour_kp[..., None]
    coherence_kp1 = rates.coherence_kp[..., None]
    changes = MeasuredChanges(
        rates.prompts,
        behaviour_kp1[1:],
        behaviour_kp1[0],
        coherence_kp1[1:],
        coherence_kp1[0],
    )
    settings = effect_settings(case.study)
    # Removing a cause should lower the rate, as steering away from it should.
    effects = compared_effects(case, selection, "away", changes, settings)
    counts = adjusted_counts(method_counts(effects.study, settings=settings))
    return effects.arrays(), {
        "panel": effects.panel(settings),
        "exact_rows": rates.rows,
        "counts": [asdict(count) for count in counts],
    }


def left_out(case: Case) -> str:
    """Returns why a case's ablations are not measured; "" where they are."""
    if case.settings.organism is not None:
        return ""
    without = [p.id for p in case.prompts("effects") if not has_texts(case, p)]
    if not without:
        return ""
    return (
        f"{len(without)} of the effects' prompts have no texts by whose probabilities "
        f"the behaviour can be measured (give cases.{case.name}.continuations)"
    )


def _ablations(inputs: StageInputs, latents_u: np.ndarray) -> Edit:
    """Returns the ablation of every latent, after an edit that changes nothing; tokens
    whose norm is an outlier are spared.
    """
    setup, study = inputs.case.setup, inputs.case.study
    rows_ud = decoder_rows(inputs.case.latents, latents_u)
    if study.ablate_by == "projection":
        mean_d = mean_activation.mean_of(inputs[mean_activation.NAME]).mean_d
        values_u = np.asarray(rows_ud) @ np.asarray(mean_d, np.float32)
        edit: Edit = SetProjection(_after_none(rows_ud), _after_none(values_u))
    else:
        statistics = firing.statistics_of(inputs[firing.NAME])
        if not statistics.tokens:
            raise ValueError(
                "mean activations of latents are not known: too few firing_tokens"
            )
        # A gate that compares latents needs all of them; else a few rows are read.
        if setup.sae_cfg.gate in LOCAL_GATES:
            sae, places_u = setup.sae_of(latents_u), np.arange(len(latents_u))
        else:
            sae, places_u = setup.sae, latents_u
        means_u = statistics.mean_n[latents_u]
        edit = set_activations(sae, places_u, means_u, unedited=1)
    limits = norm_limits.limits_of(inputs[norm_limits.NAME])
    if setup.site not in limits:
        return edit
    count = len(jax.tree.leaves(edit)[0])
    return Below(edit, jnp.full(count, limits[setup.site], jnp.float32))


def _after_none(values_u: Any) -> jax.Array:
    """Returns values with a row of zeros before them: a projection on a direction of
    zeros, set to 0, changes nothing.
    """
    values_u = jnp.asarray(values_u, jnp.float32)
    return jnp.concatenate([jnp.zeros_like(values_u[:1]), values_u])


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the rates depend on."""
    declared = {
        "by": case.study.ablate_by,
        "settings": asdict(effect_settings(case.study)),
        "prompts": declared_prompts(case, "effects"),
        "limit": case.study.effect_prompts,
        **steered_scope(case),
    }
    if left_out(case):
        return declared
    return declared | declared_exact(case, "effects")


STAGE = CaseStage(
    NAME,
    measure,
    fields,
    needs=(
        *("select", mean_activation.NAME, firing.NAME, norm_limits.NAME),
        *("attribute",),
    ),
    version=VERSION,
    applies=lambda study: study.ablate_by != "none",
)
