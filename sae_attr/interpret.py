"""Reading a latent: the tokens whose unembedding vectors lie nearest to it, the
passages in which it is strongest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import SAE, encode
from sae_attr.text.masks import beyond_limits


def nearest_tokens(
    directions_kd: jax.Array, unembedding_vd: jax.Array, *, count: int = 5
) -> tuple[jax.Array, jax.Array]:
    """Ids `[k, count]` and cosines of the tokens nearest to each direction (method,
    section 6: the logit lens).

    Args:
      directions_kd: directions in the residual stream.
      unembedding_vd: from `lm.model.unembedding`, which folds the final norm's gain in.
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    cosines_kv = jnp.einsum(
        "kd,vd->kv", unit(directions_kd), unit(unembedding_vd), precision="highest"
    )
    values, ids = jax.lax.top_k(cosines_kv, count)
    return ids, values


@dataclass(frozen=True)
class Passage:
    """Where a latent was strongest in one text.

    Args:
      code: the latent's code there.
      ids: token ids around that place.
      at: index of that place in `ids`.
    """

    code: float
    ids: tuple[int, ...]
    at: int


def top_passages(
    params: Params,
    sae: SAE,
    work: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    latents_k: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    count: int = 5,
    window: int = 12,
    limits: Mapping[Site, float] = MappingProxyType({}),
    progress: bool = False,
) -> list[list[Passage]]:
    """The texts in which each latent's code is highest, one place per text, best first
    (method, section 6).

    A code depends on the text before it, so of places that are led to by the same
    tokens one is shown.

    Args:
      work: (tokens_bt, valid_bt, counted_bt) batches of ordinary text; only counted
        positions are looked at.
      latents_k: which latents.
      site: what the SAE encodes.
      count: passages per latent; fewer where it fires in fewer texts.
      window: tokens that are shown on either side.
      limits: site -> largest norm; a position beyond one of them is an attention sink
        and never shown.
    """
    sites = tuple(dict.fromkeys((site, *limits)))
    span = (0, max(s.layer for s in sites) + 1)

    def best(
        params: Params, tokens_bt: Any, valid_bt: Any, counted_bt: Any
    ) -> tuple[jax.Array, jax.Array]:
        acts = forward(
            params, tokens_bt, cfg=cfg, valid_bt=valid_bt, keep=sites, span=span
        ).acts
        shown_bt = counted_bt & ~beyond_limits(acts, limits) if limits else counted_bt
        codes_btk = jnp.where(
            shown_bt[..., None], encode(sae, acts[site])[..., latents_k], 0
        )
        return jnp.max(codes_btk, axis=1), jnp.argmax(codes_btk, axis=1)

    step = jax.jit(best)
    found: list[list[Passage]] = [[] for _ in latents_k]
    for batch in tqdm(work, desc="passages", unit="batch", disable=not progress):
        value_bk, at_bk = (to_host(x) for x in step(params, *shard_batch(batch, mesh)))
        for k, passages in enumerate(found):
            for b in np.flatnonzero(value_bk[:, k] > 0):
                passages.append(
                    _passage(
                        batch[0][b],
                        batch[1][b],
                        int(at_bk[b, k]),
                        float(value_bk[b, k]),
                        window,
                    )
                )
            passages.sort(
                key=lambda p: -p.code
            )  # stable: of equal codes the earlier text comes first
            passages[:] = _different(passages)[:count]
    return found


def _different(passages: list[Passage]) -> list[Passage]:
    """The first of those that are led to by the same tokens."""
    first: dict[tuple[int, ...], Passage] = {}
    for passage in passages:
        first.setdefault(passage.ids[: passage.at + 1], passage)
    return list(first.values())


def _passage(
    tokens_t: np.ndarray, valid_t: np.ndarray, at: int, code: float, window: int
) -> Passage:
    start, stop = max(0, at - window), min(int(valid_t.sum()), at + window + 1)
    return Passage(code, tuple(int(i) for i in tokens_t[start:stop]), at - start)
