"""Reading a latent by what it does to the next token: the first-order effect on every
logit, and on the entropy, of a direction that is added to the residual stream directly
before the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, Statistic, measure_corpus
from sae_attr.activations.corpus_pass import NO_LIMITS
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules
from sae_attr.lm.mlp import wide
from sae_attr.lm.model import Params, final_norm, output_table
from sae_attr.lm.model import logits as next_logits

# Of neighbouring positions one is taken: they say nearly the same.
STRIDE = 8


def logit_effects(
    params: Params, directions_kd: jax.Array, states_xd: jax.Array, *, cfg: LMConfig
) -> jax.Array:
    """Returns the change of every logit per unit of a direction, `[k, v]`, without the
    part that all logits of a direction share: that part changes no probability.

    It is the mean over states of the derivative of the logits, W J(x) d: through the
    final norm, whose Jacobian J depends on the state, and through the soft-cap where the
    model has one. What layers between a latent's site and the final norm make of it is
    not in it.

    Args:
      directions_kd: directions in the residual stream.
      states_xd: residuals that enter the final norm, of ordinary tokens.
    """
    # Not in the weights' type: the effects of small changes would be rounded away.
    table_vd = wide(output_table(params, cfg=cfg))
    directions_kd = jnp.asarray(directions_kd, table_vd.dtype)

    def normed(x_d: jax.Array) -> jax.Array:
        return final_norm(params, x_d, cfg=cfg, dtype=table_vd.dtype)

    def logits(normed_kd: jax.Array) -> jax.Array:
        return jnp.einsum("kd,vd->kv", normed_kd, table_vd, precision="highest")

    def of_state(total: jax.Array, x_d: jax.Array) -> tuple[jax.Array, None]:
        normed_d, push = jax.linearize(normed, x_d)
        moved_kd = jax.vmap(push)(directions_kd)
        if not cfg.final_softcap:
            return total + moved_kd, None
        capped_v = jnp.tanh(logits(normed_d[None])[0] / cfg.final_softcap)
        return total + logits(moved_kd) * (1 - capped_v**2), None

    # Without a soft-cap the logits are linear in the norm's output: they are taken once,
    # of its mean change.
    width = table_vd.shape[0] if cfg.final_softcap else table_vd.shape[1]
    total = jnp.zeros((len(directions_kd), width), table_vd.dtype)
    total, _ = jax.lax.scan(of_state, total, wide(states_xd))
    mean = total / len(states_xd)
    effects_kv = mean if cfg.final_softcap else logits(mean)
    return effects_kv - jnp.mean(effects_kv, axis=-1, keepdims=True)


def entropy_effects(
    params: Params,
    directions_kd: jax.Array,
    states_xd: jax.Array,
    *,
    cfg: LMConfig,
    rules: Rules = PLAIN,
) -> jax.Array:
    """Returns the change of the next token's entropy per unit of a direction that is
    added directly before the final norm, in nats, to first order and as a mean over
    states, `[k]`.

    Args:
      directions_kd: directions in the residual stream.
      states_xd: residuals that enter the final norm, of ordinary tokens.
      rules: `norm` holds the scale of the final norm: what is left is the effect
        through the logits' differences alone.
    """

    def entropy(x_d: jax.Array) -> jax.Array:
        log_v = jax.nn.log_softmax(next_logits(params, x_d, cfg=cfg, rules=rules))
        return -jnp.sum(jnp.exp(log_v) * log_v)

    def of_state(total_d: jax.Array, x_d: jax.Array) -> tuple[jax.Array, None]:
        return total_d + jax.grad(entropy)(x_d), None

    states_xd = wide(states_xd)
    total_d, _ = jax.lax.scan(of_state, jnp.zeros_like(states_xd[0]), states_xd)
    mean_d = total_d / len(states_xd)
    return jnp.einsum("kd,d->k", directions_kd, mean_d, precision="highest")


def final_states(
    params: Params,
    batches: Iterable[CorpusBatch],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    count: int,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> np.ndarray:
    """Returns residuals that enter the final norm, float32 `[x, d]`: of every eighth
    position of ordinary text that counts, at most `count` of them.

    Args:
      batches, limits: as for `interpret.top_passages`.

    Raises:
      ValueError: no position counts.
    """
    site = Site(cfg.n_layers - 1, "resid_post")

    def measure(
        _: object, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return acts[site][:, ::STRIDE].astype(jnp.float32), counted_bt[:, ::STRIDE]

    def add(
        states: list[np.ndarray],
        measured: tuple[np.ndarray, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> list[np.ndarray]:
        states_bsd, counts_bs = measured
        return [*states, states_bsd[counts_bs]]

    statistic = Statistic((site,), measure, list, add, lambda states: states)
    states = measure_corpus(
        params,
        batches,
        {"states": statistic},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="final states",
        progress=progress,
    )["states"]
    states_xd = np.concatenate([np.zeros((0, cfg.d_model), np.float32), *states])
    if not len(states_xd):
        raise ValueError(
            "no position of the corpus counts, so that effects on logits have no state "
            "to start from; exclude fewer tokens, or give another corpus"
        )
    return states_xd[:count]
