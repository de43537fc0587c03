"""The stage that tries many latents on held-out pairs before a few of them are steered
on prompts, in one direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.ranking import rank
from sae_attr.attribution.score_registry import SCORES, key_of, method_keys
from sae_attr.hooks import Add
from sae_attr.lm.sites import suffix_start
from sae_attr.report.method_style import RANDOM
from sae_attr.steering.continuation_groups import run_groups
from sae_attr.steering.plan import UNSTEERED
from sae_attr.steering.screening import (
    PairIds,
    lay_out_pairs,
    pair_log_odds,
)
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs, steered_scope
from sae_attr.study.case_sweep import steering_vectors
from sae_attr.study.condition_batches import in_batches
from sae_attr.study.selection import Selection, preset_of
from sae_attr.study.stages.select import by_score, other_attributions
from sae_attr.study.stages.strengths import norm_of
from sae_attr.study.sweep_conditions import FIXED_SIGN, Side, side_condition
from sae_attr.text.rows import SCOPES

VERSION = 1
_ODDS = "odds_kp"


def measure(inputs: StageInputs, progress: Progress) -> Computed:
    """Steers every proposed latent, and those that the study steers anyway, on the
    held-out pairs.

    Arrays: `latents_k`, ascending; `change_kp`, of log p(C) − log p(C′) on every pair,
      nats; `odds_p`, its value without steering.
    """
    case, direction, study = inputs.case, inputs.direction, inputs.case.study
    selection, _ = by_score(inputs)
    proposed = proposed_latents(case, inputs["attribute"], selection)
    latents = np.union1d(proposed, selection.latents_u)
    size, sign = study.screen_strength, FIXED_SIGN[direction]
    conditions = [UNSTEERED]
    for latent in latents.tolist():
        side = Side(latent, sign)
        conditions.append(side_condition(side, size, direction, study.steer_tokens))
    norm = norm_of(inputs["attribute"])
    rows_kd, sizes_k = steering_vectors(case, conditions, norm)
    records = inputs["pair"].meta["held_out"]
    edits = Add(jnp.asarray(rows_kd), jnp.asarray(sizes_k))
    odds_kp = _log_odds(case, direction, records, edits, progress)
    return {
        "latents_k": latents,
        "change_kp": odds_kp[1:] - odds_kp[0],
        "odds_p": odds_kp[0],
    }, {
        "proposed": len(proposed),
        "pairs": [record["id"] for record in records],
        "strength": sign * size,
        "norm": norm,
        "exact_rows": odds_kp.size,
        "batch": case.runtime.batch_size,
    }


def proposed_latents(
    case: Case, attribution: Result, selection: Selection
) -> np.ndarray:
    """Returns the best latents by the score that proposes them, without the random ones
    of the selection, which are the screen's yardstick.

    Raises ValueError where there are fewer latents than are to be screened, or the score
    is not known of all of them.
    """
    count, by = case.study.screen, case.study.screen_by
    scores_n = score_of_all(attribution, by)
    if count > len(scores_n):
        raise ValueError(
            f"screen is {count:,}, but the SAE of case {case.name} has "
            f"{len(scores_n):,} latents; screen at most so many"
        )
    best = rank(by, scores_n, count).latents_k
    random = selection.methods.get(RANDOM, np.zeros(0, int))
    return np.setdiff1d(best, random)


def score_of_all(attribution: Result, by: str) -> np.ndarray:
    """Returns the score of every latent of the dictionary.

    Raises ValueError where it is not known of all of them.
    """
    summary = attribution.meta["summary"]
    preset = summary["presets"][summary["primary"]]
    if by in SCORES:
        key = key_of(by, preset["tokens"])
    elif by in method_keys(SCOPES):
        key = by  # it names its tokens
    else:
        preset = summary["presets"][preset_of(summary, by) or summary["primary"]]
        key = key_of(preset["gating"], preset["tokens"])
    values = attribution.arrays.get(key)
    # Of candidates alone: it would propose what another score proposed before.
    if values is None or not np.isfinite(values).all():
        why = summary["skipped"].get(key, "it was not computed of every latent")
        raise ValueError(
            f"screen_by is {by!r}, but {why}; choose gradient, which every study has"
        )
    return np.asarray(values)


def _log_odds(
    case: Case,
    direction: str,
    records: Sequence[Mapping[str, Any]],
    edits: Add,
    progress: Progress,
) -> np.ndarray:
    """Returns log p(C) − log p(C′) of every pair under every edit, `[k, p]`."""
    setup, study, params = case.setup, case.study, case.params(direction)
    groups = lay_out_pairs([pair_ids(record) for record in records], cfg=setup.cfg)
    start, _ = suffix_start(setup.site, setup.cfg)
    states = run_groups(params, groups, cfg=setup.cfg, start=start)
    log_odds = partial(
        pair_log_odds,
        params,
        groups,
        states,
        cfg=setup.cfg,
        tokens=study.steer_tokens,
        skip=study.steer_skip,
        per_token=study.screen_per_token,
    )
    values = in_batches(
        case,
        lambda part: (log_odds(part),),
        {setup.site: edits},
        progress,
        name=f"screen, {direction}",
        arrays=(_ODDS,),
    )
    odds_kp = values[_ODDS]
    if not np.isfinite(odds_kp).all():
        raise ValueError(
            f"screening {direction} of case {case.name} gave probabilities that are not "
            "finite; lower screen_strength, or use float32"
        )
    return odds_kp


def pair_ids(record: Mapping[str, Any]) -> PairIds:
    """Returns the token ids of a record that a study paired."""
    return PairIds(
        tuple(record["prompt_ids"]),
        tuple(map(tuple, record["positive_ids"])),
        tuple(map(tuple, record["negative_ids"])),
    )


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the changes depend on."""
    study = case.study
    return {
        "methods": [study.methods, study.top, study.random],
        "screen": study.screen,
        "by": study.screen_by,
        "strength": study.screen_strength,
        "per_token": study.screen_per_token,
        **steered_scope(case),
    }


STAGE = CaseStage(
    "screen",
    measure,
    fields,
    needs=("pair", "attribute"),
    also_needs=other_attributions,
    version=VERSION,
    directed=True,
    applies=lambda study: study.screen > 0,
)
