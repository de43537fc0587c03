"""The stages of a study of dense latents: densities, the classes of the densest latents,
and the retraining test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.dense_case import DenseCase
from sae_attr.analyses.dense_classes import (
    antipodality,
    class_aucs,
    component_cosines,
    first_component,
    letter_shares,
    null_energy,
    position_correlations,
)
from sae_attr.analyses.dense_retraining import retraining_rows
from sae_attr.analyses.dense_settings import (
    ALPHABET,
    NULL_SPACE,
    POSITION,
    PRINCIPAL,
    WORD,
    DenseSettings,
)
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.lrp import PLAIN, parse_rules
from sae_attr.logit_effects import STRIDE, entropy_effects, final_states
from sae_attr.store import Computed, Progress, Result, Stage, fingerprint
from sae_attr.study.case_stage import plain
from sae_attr.study.stages import norm_limits

VERSION = 1
DENSITY, MEASURES, RETRAINING = "density", "dense_measures", "retraining"


def dense_stages(cases: Sequence[DenseCase], settings: DenseSettings) -> list[Stage]:
    """Returns the stages of all cases, and the test on planted data.

    Raises ValueError for an SAE or settings that do not fit (`DenseCase.check`), and a
    study that is not finished.
    """
    stages = []
    for case in cases:
        case.check()
        stages += [_density_stage(case), _measures_stage(case)]
    if settings.retraining.steps:
        stages.append(_retraining_stage(settings))
    return stages


def _density_stage(c: DenseCase) -> Stage:
    """Returns the stage that passes over ordinary text: arrays `rate_n` and
    `component_d`, the first principal component of the site.
    """

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        rate_n, covariance_dd, tokens = c.statistics()
        component_d, share = first_component(covariance_dd)
        arrays = {"rate_n": rate_n, "component_d": component_d}
        return arrays, {"tokens": tokens, "component_share": share}

    fields = {"attribute": c.result("attribute").key, "tokens": c.settings.tokens}
    return Stage(c.stage_name(DENSITY), run, fields, (), VERSION)


def _measures_stage(c: DenseCase) -> Stage:
    """Returns the stage that measures the densest latents: `latents_k`, densest first,
    their antipodes, and the size of what each class asks for.
    """
    density = c.stage_name(DENSITY)
    s = c.settings

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        rate_n = np.asarray(results[density].arrays["rate_n"])
        latents_k = densest(rate_n, s.most)
        sae = c.case.setup.sae
        dec_nm = np.asarray(sae.dec_nm, np.float32)
        antipodes = antipodality(
            np.asarray(sae.enc_dn, np.float32).T, dec_nm, latents_k
        )
        dec_km = dec_nm[latents_k]
        component_d = np.asarray(results[density].arrays["component_d"])
        arrays = {
            "latents_k": latents_k,
            "antipodality_k": antipodes.score_k,
            "antipode_k": antipodes.partner_k,
            "antipode_cosine_k": antipodes.cosine_k,
            PRINCIPAL: component_cosines(dec_km, component_d),
        }
        meta: dict[str, Any] = {"left_out": {}}
        for part in (_of_sample(c, latents_k), _of_logits(c, dec_km)):
            arrays |= part[0]
            meta["left_out"] |= part[1].pop("left_out", {})
            meta |= part[1]
        return arrays, meta

    fields = {
        "most": s.most,
        "sample_tokens": s.sample_tokens,
        "null_directions": s.null_directions,
        "letter_tokens": s.letter_tokens,
        "entropy_tokens": s.entropy_tokens,
        "words": fingerprint(s.words) if s.words else "",
    }
    return Stage(c.stage_name(MEASURES), run, fields, (density,), VERSION)


def densest(rate_n: np.ndarray, most: int) -> np.ndarray:
    """Returns the latents of highest firing rate, the densest first; those that never
    fire are not among them.
    """
    order = np.argsort(-rate_n, kind="stable")[:most]
    return order[rate_n[order] > 0]


def _of_sample(c: DenseCase, latents_k: np.ndarray) -> tuple[dict[str, Any], Any]:
    """Returns what a sample of tokens says: correlations with positions, and how well an
    activation tells a class of words.
    """
    codes_xk, places = c.sample(latents_k)
    by_start = position_correlations(codes_xk, places.distances)
    starts, position_k = _largest(by_start)
    arrays, meta = {POSITION: position_k}, {"from": starts, "left_out": {}}
    if not c.settings.words:
        why = "no file of words with their classes; give config.words"
        return arrays, meta | {"left_out": {WORD: why}}
    aucs = class_aucs(codes_xk, places.class_x, c.vocabulary.classes)
    if not aucs:
        why = "the sample has words of fewer than two classes"
        return arrays, meta | {"left_out": {WORD: why}}
    names, auc_k = _largest(aucs)
    return arrays | {WORD: auc_k}, meta | {"word_classes": names}


def _largest(by_name: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Returns for every latent the value that is largest in size, and its name; NaN and
    "" where there is none.
    """
    names = list(by_name)
    values_nk = np.stack(list(by_name.values()))
    sizes_nk = np.where(np.isnan(values_nk), -1, np.abs(values_nk))
    best_k = sizes_nk.argmax(0)
    value_k = values_nk[best_k, np.arange(values_nk.shape[1])]
    best_names = []
    for place, value in zip(best_k, value_k, strict=True):
        best_names.append("" if np.isnan(value) else names[place])
    return best_names, value_k


def _of_logits(c: DenseCase, dec_km: np.ndarray) -> tuple[dict[str, Any], Any]:
    """Returns what decoder rows do before the final norm: energy in the null space of
    the unembedding, the letter of their best tokens, effects on entropy.
    """
    s = c.settings
    if not c.writes_residual:
        why = f"{c.case.setup.site} does not write into the residual stream"
        return {}, {"left_out": {NULL_SPACE: why, ALPHABET: why}}
    table_vd = c.unembedding
    arrays = {NULL_SPACE: null_energy(dec_km, table_vd, s.null_directions)}
    arrays |= _entropies(c, dec_km)
    chance = s.null_directions / table_vd.shape[1]
    meta: dict[str, Any] = {"null_chance": chance}
    why = _no_letter(c)
    if why:
        return arrays, meta | {"left_out": {ALPHABET: why}}
    ids_kc, _ = nearest_tokens(
        jnp.asarray(dec_km), jnp.asarray(table_vd), count=s.letter_tokens
    )
    share_k, letters = letter_shares(np.asarray(ids_kc), c.tokens)
    return arrays | {ALPHABET: share_k}, meta | {"letters": letters}


def _no_letter(c: DenseCase) -> str:
    """Returns why no latent can stand for a letter; "" where one can."""
    s = c.settings
    count = len(c.tokens)
    if count < 10 * s.letter_tokens:
        return (
            f"the vocabulary has {count} tokens: among the best {s.letter_tokens} of so "
            "few a common letter means nothing"
        )
    return ""


def _entropies(c: DenseCase, dec_km: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the first-order effect on the entropy of the next token, nats per mean
    norm of the final residuals, with the final norm's scale free and held.
    """
    s, setup = c.settings, c.case.setup
    if not s.entropy_tokens:
        return {}
    states_xd = final_states(
        setup.params,
        setup.corpus.batches(s.entropy_tokens * STRIDE),
        cfg=setup.cfg,
        mesh=setup.mesh,
        count=s.entropy_tokens,
        limits=norm_limits.limits_of(c.result(norm_limits.NAME)),
        progress=setup.progress,
    )
    unit = np.linalg.norm(states_xd, axis=-1).mean()
    directions = jnp.asarray(dec_km)
    states = jnp.asarray(states_xd)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    effects = {}
    for name, rules in (("entropy_k", PLAIN), ("entropy_held_k", parse_rules("norm"))):
        effect_k = entropy_effects(
            setup.params, directions, states, cfg=setup.cfg, rules=rules
        )
        effects[name] = unit * np.asarray(effect_k, np.float64)
    return effects


def _retraining_stage(settings: DenseSettings) -> Stage:
    """Returns the stage of the test on planted data: `meta["rows"]`."""

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        return {}, {"rows": retraining_rows(settings)}

    fields = {
        **plain(settings.retraining),
        "seed": settings.seed,
        "dense": settings.dense,
        "antipodal": settings.antipodal,
    }
    return Stage(RETRAINING, run, fields, (), VERSION)
