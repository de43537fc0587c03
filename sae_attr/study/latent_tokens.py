"""Tokens by which a latent is read: nearest by cosine, and those whose logits it changes
most.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_attr.attribution.presets import DecoderRows, decoder_rows
from sae_attr.hooks import Site
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import unembedding
from sae_attr.logit_effects import STRIDE, final_states, logit_effects
from sae_attr.study.setup import Setup
from sae_attr.text.tokenizer import token_strings

SHOWN = 5  # tokens a latent raises, and as many that it lowers


def nearest_of(
    setup: Setup, source: DecoderRows, latents: np.ndarray
) -> dict[str, list[str]]:
    """Returns latent -> tokens whose unembedding vectors have the largest cosine."""
    dec_kd = decoder_rows(source, latents)
    ids_kc, _ = nearest_tokens(dec_kd, unembedding(setup.params, cfg=setup.cfg))
    nearest = {}
    for latent, ids_c in zip(latents.tolist(), np.asarray(ids_kc), strict=True):
        nearest[str(latent)] = token_strings(setup.tokenizer, ids_c)
    return nearest


def effects_on_tokens(
    setup: Setup,
    source: DecoderRows,
    latents: np.ndarray,
    *,
    count: int,
    limits: Mapping[Site, float],
) -> dict[str, dict[str, list[Any]]]:
    """Returns latent -> `raised` and `lowered`, lists of (token, change of its logit in
    nats): where the latent's direction is added directly before the final norm, to first
    order, per mean norm of the residuals there.

    Args:
      source: of the latents' decoder rows.
      count: tokens of ordinary text over which the effect is averaged.
      limits: as for `final_states`.
    """
    states_xd = final_states(
        setup.params,
        setup.corpus.batches(count * STRIDE),
        cfg=setup.cfg,
        mesh=setup.mesh,
        count=count,
        limits=limits,
        progress=setup.progress,
    )
    dec_kd = decoder_rows(source, latents)
    effects = jax.jit(partial(logit_effects, cfg=setup.cfg))
    per_unit_kv = effects(setup.params, dec_kd, states_xd)
    unit = float(np.linalg.norm(states_xd, axis=-1).mean())
    sides = {"raised": per_unit_kv, "lowered": -per_unit_kv}
    of_latents: dict[str, dict[str, list[Any]]] = {}
    for side, effect_kv in sides.items():
        sign = 1 if side == "raised" else -1
        values_kc, ids_kc = jax.lax.top_k(effect_kv, min(SHOWN, effect_kv.shape[1]))
        rows = zip(
            latents.tolist(),
            np.asarray(ids_kc),
            sign * unit * np.asarray(values_kc, np.float64),
            strict=True,
        )
        for latent, ids_c, values_c in rows:
            tokens = token_strings(setup.tokenizer, ids_c)
            pairs = list(map(list, zip(tokens, values_c.tolist(), strict=True)))
            of_latents.setdefault(str(latent), {})[side] = pairs
    return of_latents
