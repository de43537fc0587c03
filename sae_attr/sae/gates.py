"""Gates, from pre-activations to codes: all `(sae, pre, z) -> codes`.

`pre` are the pre-activations `[..., n]`, biases included; `z`, `[..., d]`, is the input
that the encoder matrix multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
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
    pre = pre[..., None, :] if threshold_n.ndim == 2 else pre
    return jnp.where(pre > threshold_n, jax.nn.relu(pre), 0)


def gated(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Gates magnitudes, both from enc_dn up to the factor exp(r_mag) (Rajamanoharan et
    al. 2024, arXiv:2404.16014).
    """
    bias_n, scale_n = _like(sae.mag_bias_n, pre), jnp.exp(_like(sae.mag_scale_n, pre))
    is_open = pre + _like(sae.gate_bias_n, pre) > 0
    return jnp.where(is_open, jax.nn.relu(pre * scale_n + bias_n), 0)


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
    largest = jax.nn.one_hot(jnp.argmax(groups, axis=-1), groups.shape[-1], dtype=bool)
    return jnp.where(largest.reshape(rank.shape), jax.nn.relu(pre), 0)


def matching_pursuit(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Codes greedily with tied weights, as SAELens does: in each round the best latent
    takes its projection out of the rest of the input.

    A token is done when a round brings no new latent, or less than `residual_threshold`
    is left, or after `max_iterations`. It has no reverse-mode gradient: the number of
    rounds is open.
    """
    dec_nm, cfg = sae.dec_nm.astype(z.dtype), sae.cfg
    n, limit = dec_nm.shape[0], cfg.residual_threshold or 0.0

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rest, codes, done, rounds = state
        scores = jax.nn.relu(jnp.matmul(rest, dec_nm.T, precision="highest"))
        best = jnp.argmax(scores, axis=-1)
        score = jnp.take_along_axis(scores, best[:, None], axis=-1)[:, 0]
        value = jnp.where(done, 0, score)
        rest = rest - value[:, None] * dec_nm[best]
        after = codes + value[:, None] * jax.nn.one_hot(best, n, dtype=codes.dtype)
        if cfg.stop_on_duplicate_support:
            done = done | ((after != 0) == (codes != 0)).all(-1)
        if limit > 0:
            done = done | (jnp.linalg.norm(rest, axis=-1) < limit)
        return rest, after, done, rounds + 1

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        _, _, done, rounds = state
        return ~done.all() & (rounds < (cfg.max_iterations or 1))

    rest = z.reshape(-1, z.shape[-1])
    tokens = rest.shape[0]
    codes = jnp.zeros((tokens, n), z.dtype)
    done = jnp.zeros(tokens, bool)
    start = (rest, codes, done, jnp.int32(0))
    _, codes, _, _ = jax.lax.while_loop(unfinished, step, start)
    return codes.reshape(pre.shape)


def temporal(sae: SAE, pre: jax.Array, z: jax.Array) -> jax.Array:
    """Computes relu of the novel part's pre-activations; of the k largest alone where k
    is given.
    """
    codes = jax.nn.relu(pre)
    return codes if sae.cfg.k is None else _keep(pre, codes, sae.cfg.k)


GATES: dict[str, Callable[[SAE, jax.Array, jax.Array], jax.Array]] = {
    "relu": relu, "identity": identity, "jumprelu": jumprelu, "gated": gated, "topk": topk, "topk_raw": topk_raw,
    "abs_topk": abs_topk, "groupmax": groupmax, "matching_pursuit": matching_pursuit, "temporal": temporal,
}  # fmt: skip


def safe_norm(x: jax.Array) -> jax.Array:
    """Computes the norm over the last axis, which keeps size 1; its gradient at zero is
    zero and not NaN.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _ranked(sae: SAE, pre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values that the selection compares, and those that it keeps."""
    if not (sae.cfg.rescale_by_dec_norm or sae.cfg.select_by_dec_norm):
        return pre, pre
    rank = pre * safe_norm(sae.dec_nm)[..., 0].astype(pre.dtype)
    return rank, rank if sae.cfg.rescale_by_dec_norm else pre


def _keep(rank: jax.Array, values: jax.Array, k: int) -> jax.Array:
    _, latents = jax.lax.top_k(rank, k)
    kept = jnp.take_along_axis(values, latents, axis=-1)
    zeros = jnp.zeros_like(values)
    return jnp.put_along_axis(zeros, latents, kept, axis=-1, inplace=False)


def _like(value_n: Any, x: jax.Array) -> jax.Array:
    if value_n is None:
        raise ValueError(
            "the SAE lacks a tensor of its gate: jumprelu needs threshold_n, gated "
            "needs gate_ and mag_ ones"
        )
    return value_n.astype(x.dtype)
