"""Objectives that keep a fixed number of latents: TopK, multi-TopK, BatchTopK,
Matryoshka and the BatchTopK crosscoder, all with AuxK.

TopK, AuxK and multi-TopK: Gao et al. 2024, arXiv:2406.04093. BatchTopK: Bussmann et al.
2024, arXiv:2412.06410. Matryoshka: Bussmann et al. 2025, arXiv:2503.17547. Crosscoder:
Minder et al. 2025, arXiv:2504.02922.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sae_attr.sae.model import SAE
from sae_attr.sae.objectives.contract import (
    Objective,
    Outcome,
    Signals,
    as_streams,
    keep,
    squared_error,
    stream_error,
    stream_norms,
    unit_rows,
)
from sae_attr.sae.selection import BatchChoice, batch_topk, kth_largest, row_topk
from sae_attr.sae.slots import Slots, decode_slots, encoded, fired
from sae_attr.sae.train_config import TrainConfig

_MULTI_WEIGHT = 1 / 8


def topk_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns the error of the k largest latents of every token, and AuxK."""
    pre_bn, bias_n = _project(sae, x_bd)
    slots = encoded(
        _rows(pre_bn, cfg.k, signals.mesh), x_bd, sae.enc_dn, bias_n, signals.mesh
    )
    out_bm = decode_slots(slots, sae.dec_nm, len(x_bd), signals.mesh) + sae.dec_bias_m
    terms = {"error": squared_error(out_bm, y_bm)}
    terms |= _aux(sae, x_bd, y_bm - out_bm, pre_bn, bias_n, cfg, signals)
    return _outcome(terms, out_bm, slots, cfg)


def multi_topk_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns `topk_loss` plus 1/8 of the error of the `multi · k` largest, which keeps the
    order beyond k meaningful.
    """
    pre_bn, bias_n = _project(sae, x_bd)
    slots = encoded(
        _rows(pre_bn, cfg.k * cfg.multi, signals.mesh),
        x_bd,
        sae.enc_dn,
        bias_n,
        signals.mesh,
    )
    # Slots are in falling order, so the first k rows are the k largest.
    first = Slots(slots.values_sb[: cfg.k], slots.latents_sb[: cfg.k])
    rest = Slots(slots.values_sb[cfg.k :], slots.latents_sb[cfg.k :])
    out_bm = decode_slots(first, sae.dec_nm, len(x_bd), signals.mesh) + sae.dec_bias_m
    more_bm = out_bm + decode_slots(rest, sae.dec_nm, len(x_bd), signals.mesh)
    terms = {
        "error": squared_error(out_bm, y_bm),
        "multi": _MULTI_WEIGHT * squared_error(more_bm, y_bm),
    }
    terms |= _aux(sae, x_bd, y_bm - out_bm, pre_bn, bias_n, cfg, signals)
    return _outcome(terms, out_bm, first, cfg)


def batch_topk_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns the error of the b·k largest latents of the batch, and AuxK."""
    pre_bn, bias_n = _project(sae, x_bd)
    choice = _choice(pre_bn, cfg, signals)
    slots = encoded(choice.slots, x_bd, sae.enc_dn, bias_n, signals.mesh)
    out_bm = decode_slots(slots, sae.dec_nm, len(x_bd), signals.mesh) + sae.dec_bias_m
    terms = {"error": squared_error(out_bm, y_bm)}
    terms |= _aux(sae, x_bd, y_bm - out_bm, pre_bn, bias_n, cfg, signals)
    return _outcome(terms, out_bm, slots, cfg)._replace(
        threshold=choice.threshold, spilled=choice.spilled
    )


def crosscoder_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns `batch_topk_loss` of models side by side, whose selection compares code
    times the sum of the latent's row norms; rows have any length.
    """
    pre_bn, bias_n = _project(sae, x_bd)
    norm_n = jax.lax.stop_gradient(stream_norms(sae.dec_nm, cfg.streams))
    choice = _choice(pre_bn * norm_n, cfg, signals)
    by_code = _by_norm(choice.slots, norm_n)
    slots = encoded(by_code, x_bd, sae.enc_dn, bias_n, signals.mesh)
    out_bm = decode_slots(slots, sae.dec_nm, len(x_bd), signals.mesh) + sae.dec_bias_m
    terms = {"error": stream_error(out_bm, y_bm, cfg)}
    terms |= _aux(sae, x_bd, y_bm - out_bm, pre_bn, bias_n, cfg, signals, norm_n)
    return _outcome(terms, out_bm, slots, cfg)._replace(
        threshold=choice.threshold, spilled=choice.spilled
    )


def matryoshka_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns the mean over nested groups of the error that the latents up to the group's end
    leave; selection as for BatchTopK.

    With `empty_prefix` the mean has one more term, the error of b_dec alone.

    "error" is the whole dictionary's; "nested" is what has to be added to give the mean
    over the groups.
    """
    pre_bn, bias_n = _project(sae, x_bd)
    choice = _choice(pre_bn, cfg, signals)
    slots = encoded(choice.slots, x_bd, sae.enc_dn, bias_n, signals.mesh)
    ends = jnp.asarray(list(itertools.accumulate(cfg.group_sizes)), jnp.int32)
    group_sb = jnp.searchsorted(ends, slots.latents_sb, side="right").astype(jnp.int32)
    b, groups = len(x_bd), len(cfg.group_sizes)
    assert slots.rows_sb is not None
    # One pass decodes every group into rows of its own.
    apart = slots._replace(rows_sb=slots.rows_sb + b * group_sb)
    parts_gbm = decode_slots(apart, sae.dec_nm, groups * b, signals.mesh).reshape(
        groups, b, -1
    )
    nested_gbm = jnp.cumsum(parts_gbm, axis=0) + sae.dec_bias_m
    out_bm = nested_gbm[-1]
    error = squared_error(out_bm, y_bm)
    mean = jnp.mean(jnp.square(nested_gbm - y_bm))
    if cfg.empty_prefix:
        empty = squared_error(sae.dec_bias_m, y_bm)
        mean = (groups * mean + empty) / (groups + 1)
    terms = {"error": error, "nested": mean - error}
    terms |= _aux(sae, x_bd, y_bm - out_bm, pre_bn, bias_n, cfg, signals)
    return _outcome(terms, out_bm, slots, cfg)._replace(
        threshold=choice.threshold, spilled=choice.spilled
    )


def _choice(pre_bn: jax.Array, cfg: TrainConfig, signals: Signals) -> BatchChoice:
    """Returns the batch's selection at this step's k.

    Shapes are those of the largest k; entries below a smaller one's threshold are
    emptied. Where several equal it all stay.
    """
    largest = cfg.largest_k
    choice = batch_topk(pre_bn, largest, cfg.candidates * largest, signals.mesh)
    if signals.k is None:
        return choice
    values_sb = choice.slots.values_sb
    threshold = kth_largest(values_sb, len(pre_bn) * signals.k)
    values_sb = jnp.where(values_sb >= threshold, values_sb, 0)
    slots = choice.slots._replace(values_sb=values_sb)
    return choice._replace(slots=slots, threshold=threshold)


def as_jumprelu(sae: SAE, cfg: TrainConfig, threshold: jax.Array) -> SAE:
    """Returns BatchTopK at inference: a token is encoded by itself, with the running threshold
    in the place of the batch's.
    """
    # The batch keeps entries at its threshold, jumprelu those strictly above.
    below = jnp.nextafter(jnp.asarray(threshold, jnp.float32), jnp.float32(-1))
    threshold_n = jnp.full(cfg.n_latents, jnp.maximum(below, 0), jnp.float32)
    return replace(
        sae,
        threshold_n=threshold_n,
        cfg=replace(sae.cfg, gate="jumprelu", expected_l0=float(cfg.k)),
    )


def as_crosscoder(sae: SAE, cfg: TrainConfig, threshold: jax.Array) -> SAE:
    """Returns `as_jumprelu` with an axis for streams: the threshold of code times norm,
    divided by the latent's norm.
    """
    sae = as_jumprelu(sae, cfg, threshold)
    assert sae.threshold_n is not None
    norm_n = stream_norms(sae.dec_nm, cfg.streams)
    # A latent without rows is never selected.
    threshold_n = jnp.where(norm_n > 0, sae.threshold_n / norm_n, jnp.inf)
    return as_streams(replace(sae, threshold_n=threshold_n), cfg)


def _project(sae: SAE, x_bd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns pre-activations outside the gradient, and the bias `[n]` that makes them
    `x @ enc_dn + bias`.

    With b_dec in the bias its gradient is one product with a vector, and not one with a
    matrix of batch × latents.
    """
    bias_n = sae.enc_bias_n
    if sae.cfg.subtract_b_dec:
        bias_n = bias_n - sae.dec_bias_m @ sae.enc_dn
    return jax.lax.stop_gradient(x_bd @ sae.enc_dn + bias_n), bias_n


def _rows(pre_bn: jax.Array, k: int, mesh: Mesh | None) -> Slots:
    values_bk, latents_bk = row_topk(pre_bn, k, mesh)
    return Slots(jax.nn.relu(values_bk).T, latents_bk.T)


def _by_norm(slots: Slots, norm_n: jax.Array) -> Slots:
    """Returns slots of codes from slots of codes times their latents' norms."""
    # Where the norm is 0 so is the product, and the slot is empty.
    norm_sb = jnp.where(norm_n > 0, norm_n, 1)[slots.latents_sb]
    return slots._replace(values_sb=slots.values_sb / norm_sb)


def _aux(
    sae: SAE,
    x_bd: jax.Array,
    rest_bm: jax.Array,
    pre_bn: jax.Array,
    bias_n: jax.Array,
    cfg: TrainConfig,
    signals: Signals,
    norm_n: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns AuxK: the dead latents with the largest pre-activations explain what is
    left, which itself gets no gradient.

    As in the paper they go through the relu: a latent that is negative on every token
    of a batch learns nothing from it. The loss is the squared error of a coordinate, as
    "error" is, so that `aux_coef` weighs two numbers of one unit; with `aux_normalised`
    it is a share of the residual's variance.

    Args:
      norm_n: by which pre-activations are multiplied to be compared.
    """
    if cfg.dead_k == 0:
        return {}
    rest_bm = jax.lax.stop_gradient(rest_bm)

    def explain() -> jax.Array:
        # Where fewer are dead than are asked for, the relu turns -inf to empty slots.
        rank_bn = pre_bn if norm_n is None else pre_bn * norm_n
        masked_bn = jnp.where(signals.dead_n, rank_bn, -jnp.inf)
        slots = _rows(masked_bn, cfg.dead_k, signals.mesh)
        if norm_n is not None:
            slots = _by_norm(slots, norm_n)
        slots = encoded(slots, x_bd, sae.enc_dn, bias_n, signals.mesh)
        aux_bm = decode_slots(slots, sae.dec_nm, len(x_bd), signals.mesh)
        error = squared_error(aux_bm, rest_bm)
        if not cfg.aux_normalised:
            return error
        variance = squared_error(rest_bm, jnp.mean(rest_bm, axis=0))
        return error / jnp.maximum(variance, jnp.finfo(jnp.float32).tiny)

    # A branch, not a mask: without dead latents a second search of [b, n] is saved.
    any_dead = jnp.any(signals.dead_n)
    error = jax.lax.cond(any_dead, explain, lambda: jnp.float32(0))
    return {"aux": cfg.aux_coef * error}


def _outcome(
    terms: dict[str, jax.Array], y_bm: jax.Array, slots: Slots, cfg: TrainConfig
) -> Outcome:
    l0 = jnp.sum(slots.values_sb > 0, dtype=jnp.float32) / len(y_bm)
    return Outcome(
        terms, y_bm, fired(slots, cfg.n_latents), l0, jnp.float32(0), jnp.bool_(False)
    )


TOPK = Objective("topk", keep, topk_loss, unit_rows, True, keep, False)
MULTI_TOPK = Objective("topk", keep, multi_topk_loss, unit_rows, True, keep, False)
BATCH_TOPK = Objective(
    "relu", keep, batch_topk_loss, unit_rows, True, as_jumprelu, False
)
MATRYOSHKA = Objective(
    "relu", keep, matryoshka_loss, unit_rows, True, as_jumprelu, False
)
CROSSCODER = Objective("relu", keep, crosscoder_loss, keep, False, as_crosscoder, False)
