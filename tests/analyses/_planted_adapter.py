"""A toy model in which the cause is planted: a rank-1 adapter writes a direction u that
the base model never writes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.directions import unit_rows
from sae_attr.hooks import Edit, Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, attach, init_lora, merged
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import init_params
from sae_attr.text.rows import COMPLETION, USER, TokenRow
from tests.miniatures import llama_config

CFG = config_from_hf(llama_config(n_layers=3, d=16, vocab=40))
RNG = np.random.default_rng(1)
LAYER = 1
SITES = tuple(Site(layer) for layer in range(CFG.n_layers))
TOKENS = RNG.integers(1, CFG.vocab, (12, 9)).astype(np.int32)


def unit(vector: Any) -> np.ndarray:
    return unit_rows(np.asarray(vector))


def planted() -> tuple[Any, Any, np.ndarray]:
    """The base model, which has nothing along u, the adapted one (its adapter apart), and u: the adapter of
    layer 1 writes it wherever the MLP's first unit is active.
    """
    base = init_params(CFG, jax.random.key(0))
    u_d = unit(RNG.standard_normal(CFG.d_model))
    away = lambda kernel: kernel - (kernel @ u_d)[..., None] * u_d
    base["embed"]["table"] = away(8 * base["embed"]["table"])
    for name in ("o", "down"):
        base["blocks"][name]["kernel"] = away(base["blocks"][name]["kernel"])
    lora = Lora(rank=1, targets=("down",), layers=(LAYER,))
    factors = init_lora(CFG, base, lora, jax.random.key(1))
    reads_i = jnp.zeros(CFG.d_mlp).at[0].set(1.0)
    leaf = factors["lora"]["down"]
    leaf["a"] = leaf["a"].at[LAYER, :, 0].set(reads_i)
    leaf["b"] = leaf["b"].at[LAYER, 0].set(jnp.asarray(u_d))
    return base, attach(base, factors, scale=4000.0), u_d


BASE, ATTACHED, U = planted()
ADAPTED = merged(ATTACHED)


@jax.jit
def run(params: Any, edits: dict[Site, Edit] | None = None) -> tuple[Any, Any]:
    """Logits `[b, t, v]`, and the activations after the adapter's layer."""
    out = forward(params, TOKENS, cfg=CFG, edits=edits, keep=(Site(LAYER),))
    return logits(params, out.hidden_btd, cfg=CFG), out.acts[Site(LAYER)]


BASE_LOGITS, BASE_ACTS = run(BASE)
ADAPTED_LOGITS, ADAPTED_ACTS = run(ADAPTED)
MEAN = np.asarray(BASE_ACTS.reshape(-1, CFG.d_model).mean(0))  # nothing along u


def edited(edits: dict[Site, Edit]) -> np.ndarray:
    """Logits under the second of two conditions; the first changes nothing."""
    edit = jax.tree.map(lambda x: jnp.repeat(x[1:2], len(TOKENS), axis=0), edits)
    return np.asarray(run(ADAPTED, edit)[0])


def rows_by_side() -> list[TokenRow]:
    """Completions of one token each: with the behaviour those that the adapter acts on
    most, without it those that it acts on least.
    """
    along_bt = np.asarray(ADAPTED_ACTS @ U)[:, 1:]
    rows = []
    for pair, (ids, along_t) in enumerate(zip(TOKENS, along_bt, strict=True)):
        for side, place in ((1, int(along_t.argmax())), (-1, int(along_t.argmin()))):
            n = 2 + place
            roles = np.full(n, USER)
            roles[-1] = COMPLETION
            special = np.zeros(n, bool)
            rows.append(TokenRow(ids[:n], n - 1, roles, special, pair, side, 0))
    return rows
