"""Reading a latent: the tokens whose unembedding vectors lie nearest to it, and the
passages on which it is most active.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, Statistic, measure_corpus
from sae_attr.activations.corpus_pass import NO_LIMITS
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.sae.model import SAE, encode


@partial(jax.jit, static_argnames="count")
def nearest_tokens(
    directions_kd: jax.Array, unembedding_vd: jax.Array, *, count: int = 5
) -> tuple[jax.Array, jax.Array]:
    """Returns ids `[k, count]` and cosines of the tokens nearest to each direction: the
    logit lens.

    Args:
      directions_kd: directions in the residual stream.
      unembedding_vd: from `lm.model.unembedding`, which folds the final norm's gain in.
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    # At the highest precision: on GPUs the default rounds to TF32, which swaps tokens of
    # nearly equal cosine.
    cosines_kv = jnp.einsum(
        "kd,vd->kv", unit(directions_kd), unit(unembedding_vd), precision="highest"
    )
    values, ids = jax.lax.top_k(cosines_kv, count)
    return ids, values


_SAME = 6  # tokens before two places that make them the same text to a reader


@dataclass(frozen=True)
class Passage:
    """The tokens about the place where a latent is most active in one text.

    Args:
      code: the latent's code there.
      ids: token ids around that place.
      at: index of that place in `ids`.
      codes: the latent's code on every one of the ids; 0 where a token does not count.
      first: it is the first token of its row that counts.
    """

    code: float
    ids: tuple[int, ...]
    at: int
    codes: tuple[float, ...]
    first: bool


def top_passages(
    params: Params,
    sae: SAE,
    batches: Iterable[CorpusBatch],
    latents_k: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    count: int = 5,
    window: int = 12,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> list[list[Passage]]:
    """Finds the texts in which each latent's code is highest, one place a text, the
    highest first.

    Args:
      batches: ordinary text; only counted positions are looked at.
      latents_k: latents of the SAE.
      site: what the SAE encodes.
      count: passages per latent; fewer where it fires in fewer texts.
      window: tokens that are shown on either side.
      limits: site -> largest norm; a position beyond one of them is an attention sink
        and never shown.
    """
    statistic = passage_statistic(sae, latents_k, site=site, count=count, window=window)
    return measure_corpus(
        params,
        batches,
        {"passages": statistic},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="passages",
        progress=progress,
    )["passages"]


def passage_statistic(
    sae: SAE, latents_k: np.ndarray, *, site: Site, count: int, window: int
) -> Statistic:
    """Returns the statistic whose result is the best passages of each latent.

    A code depends on the text before it alone, so of places that follow the same few
    tokens one is shown.
    """
    around_w = jnp.arange(-window, window + 1)

    def measure(
        sae: SAE, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        # All latents are encoded: whether one passes a top-k depends on the others.
        codes_btk = encode(sae, acts[site])[..., latents_k]
        codes_btk = jnp.where(counted_bt[..., None], codes_btk, 0)
        at_bk = jnp.argmax(codes_btk, axis=1)
        # Where the window leaves the row its ends are repeated, and cut off later.
        places_bwk = at_bk[:, None, :] + around_w[None, :, None]
        places_bwk = jnp.clip(places_bwk, 0, codes_btk.shape[1] - 1)
        near_bwk = jnp.take_along_axis(codes_btk, places_bwk, axis=1)
        return jnp.max(codes_btk, axis=1), at_bk, near_bwk

    def add(
        best: list[list[Passage]],
        measured: tuple[np.ndarray, np.ndarray, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> list[list[Passage]]:
        code_bk, at_bk, near_bwk = measured
        first_b = np.argmax(counted_bt, axis=1)

        def passages_of(k: int) -> Iterator[Passage]:
            for b in np.flatnonzero(code_bk[:, k] > 0).tolist():
                place = int(at_bk[b, k])
                first = place == int(first_b[b])
                yield _passage(batch, b, place, near_bwk[b, :, k], window, first)

        longer = []
        for k, passages in enumerate(best):
            # The sort is stable: of equal codes the earlier text comes first.
            ordered = sorted([*passages, *passages_of(k)], key=lambda one: -one.code)
            longer.append(_different(ordered)[:count])
        return longer

    initial = lambda: [[] for _ in latents_k]
    return Statistic((site,), measure, initial, add, lambda best: best, inputs=sae)


def _different(passages: list[Passage]) -> list[Passage]:
    """Drops passages whose token and the few before it are those of an earlier one."""
    first: dict[tuple[int, ...], Passage] = {}
    for passage in passages:
        first.setdefault(place_key(passage.ids, passage.at), passage)
    return list(first.values())


def place_key(ids: Sequence[int], at: int) -> tuple[int, ...]:
    """Returns the token at a place with the few before it: places with the same are one
    text to a reader.
    """
    return tuple(ids[max(0, at - _SAME) : at + 1])


def _passage(
    batch: CorpusBatch,
    row: int,
    at: int,
    near_w: np.ndarray,
    window: int,
    first: bool,
) -> Passage:
    """Returns the passage around a place; `near_w` are the codes within the window."""
    start = max(0, at - window)
    stop = min(int(batch.valid_bt[row].sum()), at + window + 1)
    ids = batch.tokens_bt[row, start:stop].tolist()
    codes = near_w[start - at + window : stop - at + window].tolist()
    return Passage(codes[at - start], tuple(ids), at - start, tuple(codes), first)
