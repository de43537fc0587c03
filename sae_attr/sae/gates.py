"""Gates, from pre-activations to codes: all `(sae, pre, z) -> codes`.

`pre` are the pre-activations `[..., n]`, biases included; `z`, `[..., d]`, is the input
that the encoder matrix multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from sae_attr.sae.config import SAEConfig
    from sae_attr.sae.model import SAE


def relu(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Computes `max(pre, 0)`."""
    return jax.nn.relu(pre)


def identity(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Returns the pre-activations themselves."""
    return pre


def jumprelu(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Computes `max(pre, 0)` where `pre` is strictly above its threshold; with
    thresholds `[streams, n]` once per stream.
    """
    threshold_n = _like(sae.threshold_n, pre)
    if threshold_n.ndim == 2:
        pre = pre[..., None, :]
    # The relu is not idle: a threshold below 0 would let negative values pass.
    return jnp.where(pre > threshold_n, jax.nn.relu(pre), 0)


def gated(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Gates magnitudes, both from enc_dn up to the factor exp(r_mag) (Rajamanoharan et
    al. 2024, arXiv:2404.16014).
    """
    gate_bias_n = _like(sae.gate_bias_n, pre)
    mag_bias_n = _like(sae.mag_bias_n, pre)
    mag_factor_n = jnp.exp(_like(sae.mag_scale_n, pre))
    is_open = pre + gate_bias_n > 0
    return jnp.where(is_open, jax.nn.relu(pre * mag_factor_n + mag_bias_n), 0)


def topk(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Keeps the k largest pre-activations, relu after the selection.

    SAELens selects before the relu, sparsify after it: the codes are the same, since
    only positive values survive.
    """
    return jax.nn.relu(topk_raw(sae, pre, z))


def topk_raw(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Keeps the k largest pre-activations, of either sign."""
    rank, pre = _ranked(sae, pre)
    return _keep(rank, pre, sae.cfg.k or 0)


def abs_topk(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Keeps the k pre-activations of largest absolute value, with their sign."""
    rank, pre = _ranked(sae, pre)
    return _keep(jnp.abs(rank), pre, sae.cfg.k or 0)


def groupmax(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Keeps the largest of each of k groups of neighbouring latents, relu first
    (sparsify).
    """
    rank, pre = _ranked(sae, pre)
    groups = jax.nn.relu(rank).reshape(*rank.shape[:-1], sae.cfg.k or 1, -1)
    # One latent of a group even where several tie, which a comparison with the
    # group's maximum would all keep.
    largest = jax.nn.one_hot(jnp.argmax(groups, axis=-1), groups.shape[-1], dtype=bool)
    return jnp.where(largest.reshape(rank.shape), jax.nn.relu(pre), 0)


class _Pursuit(NamedTuple):
    """Matching pursuit between two rounds: what is left of every token's input `[t,
    d]`, its codes `[t, n]`, and whether it is done `[t]`.
    """

    residual_td: jax.Array
    codes_tn: jax.Array
    done_t: jax.Array
    rounds: jax.Array


def matching_pursuit(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Codes greedily with tied weights, as SAELens does: in each round the best latent
    takes its projection out of the rest of the input.

    A token is done when a round brings no new latent, or less than `residual_threshold`
    is left, or after `max_iterations`. It has no reverse-mode gradient: the number of
    rounds is open.
    """
    cfg = sae.cfg
    dec_nm = sae.dec_nm.astype(z.dtype)
    residual_td = z.reshape(-1, z.shape[-1])
    tokens = len(residual_td)

    def unfinished(state: _Pursuit) -> jax.Array:
        return ~state.done_t.all() & (state.rounds < (cfg.max_iterations or 1))

    def next_round(state: _Pursuit) -> _Pursuit:
        return _pursuit_round(state, dec_nm, cfg)

    start = _Pursuit(
        residual_td,
        codes_tn=jnp.zeros((tokens, len(dec_nm)), z.dtype),
        done_t=jnp.zeros(tokens, bool),
        rounds=jnp.int32(0),
    )
    end = jax.lax.while_loop(unfinished, next_round, start)
    return end.codes_tn.reshape(pre.shape)


def _pursuit_round(state: _Pursuit, dec_nm: jax.Array, cfg: SAEConfig) -> _Pursuit:
    """Adds one latent to every token that is not done."""
    residual_td, codes_tn, done_t, rounds = state
    # Every round builds on the argmax before: at an accelerator's default precision,
    # two near-equal scores could change places and all later rounds with them.
    products_tn = jnp.matmul(residual_td, dec_nm.T, precision="highest")
    scores_tn = jax.nn.relu(products_tn)
    best_t = jnp.argmax(scores_tn, axis=-1)
    score_t = jnp.take_along_axis(scores_tn, best_t[:, None], axis=-1)[:, 0]
    # The loop runs until all tokens are done; those that are stay as they are.
    value_t = jnp.where(done_t, 0, score_t)
    residual_td = residual_td - value_t[:, None] * dec_nm[best_t]
    chosen_tn = jax.nn.one_hot(best_t, len(dec_nm), dtype=codes_tn.dtype)
    next_codes_tn = codes_tn + value_t[:, None] * chosen_tn
    if cfg.stop_on_duplicate_support:
        # A latent chosen twice, or none with a positive score.
        unchanged_tn = (next_codes_tn != 0) == (codes_tn != 0)
        done_t = done_t | unchanged_tn.all(-1)
    residual_threshold = cfg.residual_threshold or 0.0
    if residual_threshold > 0:
        done_t = done_t | (jnp.linalg.norm(residual_td, axis=-1) < residual_threshold)
    return _Pursuit(residual_td, next_codes_tn, done_t, rounds + 1)


def temporal(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Computes relu of the novel part's pre-activations; of the k largest alone where k
    is given.
    """
    codes = jax.nn.relu(pre)
    if sae.cfg.k is None:
        return codes
    return _keep(pre, codes, sae.cfg.k)


GATES: dict[str, Callable[[SAE, jax.Array, jax.Array], jax.Array]] = {
    "relu": relu, "identity": identity, "jumprelu": jumprelu, "gated": gated, "topk": topk, "topk_raw": topk_raw,
    "abs_topk": abs_topk, "groupmax": groupmax, "matching_pursuit": matching_pursuit, "temporal": temporal,
}  # fmt: skip


@jax.jit
def safe_norm(x: jax.Array) -> jax.Array:
    """Computes the norm over the last axis, which keeps size 1; its gradient at zero is
    zero and not NaN.
    """
    # bfloat16 is widened, float64 stays.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    # One `where` outside is not enough: the gradient of sqrt(0) is infinite, and
    # infinite times the 0 of the branch not taken is NaN.
    nonzero_squares = jnp.where(squares > 0, squares, 1)
    return jnp.where(squares > 0, jnp.sqrt(nonzero_squares), 0)


def _ranked(sae: SAE, pre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the values that the selection compares, and those that it keeps."""
    cfg = sae.cfg
    if not (cfg.rescale_by_dec_norm or cfg.select_by_dec_norm):
        return pre, pre
    rank = pre * safe_norm(sae.dec_nm)[..., 0].astype(pre.dtype)
    # SAELens rescales the codes too, llamascopium only compares in these units.
    if cfg.rescale_by_dec_norm:
        return rank, rank
    return rank, pre


def _keep(rank: jax.Array, values: jax.Array, k: int) -> jax.Array:
    # Exactly k also where several tie, which a threshold would all keep.
    _, latents = jax.lax.top_k(rank, k)
    largest = jnp.take_along_axis(values, latents, axis=-1)
    zeros = jnp.zeros_like(values)
    return jnp.put_along_axis(zeros, latents, largest, axis=-1, inplace=False)


def _like(value_n: Any, x: jax.Array) -> jax.Array:
    if value_n is None:
        raise ValueError(
            "the SAE lacks a tensor of its gate: jumprelu needs threshold_n, gated "
            "needs gate_ and mag_ ones"
        )
    return value_n.astype(x.dtype)
