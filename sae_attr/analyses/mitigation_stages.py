"""The stages of a mitigation study: latents of a finished case study suppressed
together, and the mean-difference direction projected out at the SAE's site and at every
layer.

Every block of conditions is measured in the same way: exact rates on the study's
effects' prompts and on benign ones, and the loss on ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.analyses.mitigation import (
    projections,
    sparing_outliers,
    suppression,
)
from sae_attr.analyses.mitigation_case import Mitigation
from sae_attr.analyses.mitigation_directions import Layers, direction_stage, layers_of
from sae_attr.analyses.mitigation_settings import (
    AT_LAYERS,
    AT_SITE,
)
from sae_attr.hooks import Edit, Site
from sae_attr.steering.specificity import gaussian_directions
from sae_attr.steering.text_loss import edited_text_loss
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.case_stage import (
    declared_exact,
    declared_prompts,
    steered_scope,
)
from sae_attr.study.exact_rates import exact_rates
from sae_attr.study.stages import mean_activation
from sae_attr.study.stages.ablated_rates import left_out
from sae_attr.study.stages.strengths import norm_of

VERSION = 1


def mitigation_stages(mitigation: Mitigation) -> list[Stage]:
    """Returns the stages of one case.

    Raises ValueError for a case whose behaviour has no exact rates, a study that is not
    finished, counts beyond what is ranked.
    """
    why = left_out(mitigation.case)
    if why:
        raise ValueError(why)
    _ = mitigation.latents, mitigation.strength
    stages = [direction_stage(mitigation)]
    for block in mitigation.blocks:
        stages.append(_block_stage(mitigation, block))
    return stages


def _block_stage(m: Mitigation, block: str) -> Stage:
    """Returns the stage that measures a block: arrays `SET.behaviour_cp` and
    `SET.coherence_cp` of every set of prompts, the condition without an edit first;
    `nats_cr` and `tokens_r` of ordinary text.
    """
    directions_name = m.stage_name("directions")

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        edits = block_edits(m, block, layers_of(m, results[directions_name]))
        arrays: dict[str, Any] = {}
        prompts: dict[str, list[str]] = {}
        for name in m.sets:
            rates = exact_rates(
                m.case,
                "away",
                m.case.prompts(name),
                edits,
                progress,
                name=f"{block}, {name}",
            )
            arrays[f"{name}.behaviour_cp"] = rates.behaviour_kp
            arrays[f"{name}.coherence_cp"] = rates.coherence_kp
            prompts[name] = list(rates.prompts)
        arrays |= _text(m, edits)
        return arrays, {"prompts": prompts}

    name = m.stage_name(block)
    fields = _block_fields(m, block)
    return Stage(name, run, fields, (directions_name,), VERSION)


def block_edits(m: Mitigation, block: str, layers: Layers) -> dict[Site, Edit]:
    """Returns the edits of a block's conditions, after one that changes nothing."""
    setup = m.case.setup
    if block in (AT_SITE, AT_LAYERS):
        sites = (setup.site,) if block == AT_SITE else m.layers
        rows = {}
        for site in sites:
            rows[site] = _direction_rows(m, layers.directions[site], site)
        edits = projections(rows, m.settings.project_to, means=layers.means)
    else:
        mean = mean_activation.mean_of(m.result(mean_activation.NAME))
        length = m.strength * norm_of(m.result("attribute"))
        edit = suppression(m.rows(), block, mean_d=mean.mean_d, length=length)
        edits = {setup.site: edit}
    return sparing_outliers(edits, layers.limits)


def _direction_rows(m: Mitigation, direction_d: np.ndarray, site: Site) -> np.ndarray:
    """Returns no direction, the direction, and random ones of a site `[2 + draws, d]`."""
    seed = 1 + site.layer + 1000 * m.settings.seed
    drawn_rd = gaussian_directions(m.settings.draws, len(direction_d), seed)
    return np.stack([np.zeros_like(direction_d), direction_d, *drawn_rd])


def _text(m: Mitigation, edits: Mapping[Site, Edit]) -> dict[str, np.ndarray]:
    """Returns the loss on ordinary text under every condition."""
    setup = m.case.setup
    if not m.settings.text_tokens:
        return {}
    loss = edited_text_loss(
        m.case.params("away"),
        setup.corpus.batches(m.settings.text_tokens),
        edits,
        cfg=setup.cfg,
        mesh=m.case.runtime.mesh,
        skip=m.case.study.steer_skip,
        bar=m.case.runtime.progress,
    )
    nats_cr = np.concatenate([loss.plain_r[None], loss.nats_kr])
    return {"nats_cr": nats_cr, "tokens_r": loss.tokens_r}


def _block_fields(m: Mitigation, block: str) -> dict[str, Any]:
    """Returns what a block's measurements depend on."""
    s, sets = m.settings, {}
    for name in m.sets:
        ids = declared_prompts(m.case, name)
        sets[name] = [len(m.case.prompts(name)), ids, declared_exact(m.case, name)]
    fields = {
        "attribute": m.result("attribute").key,
        "sets": sets,
        "draws": s.draws,
        "seed": s.seed,
        "text_tokens": s.text_tokens,
        **steered_scope(m.case),
    }
    if block in (AT_SITE, AT_LAYERS):
        return {**fields, "project_to": s.project_to}
    declared = {"counts": s.counts, "cause": s.cause, "lever": s.lever}
    if block == "steer":
        declared["strength"] = m.strength
    return {**fields, **declared}
