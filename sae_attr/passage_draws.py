"""Passages that test what is said of a latent: texts on which it is active, texts on
which it is not, and texts on which another latent is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, Statistic, measure_corpus
from sae_attr.activations.corpus_pass import NO_LIMITS
from sae_attr.hooks import Site
from sae_attr.interpret import place_key
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.sae.model import SAE, encode

FITS, ORDINARY, OTHER = "fits", "ordinary", "other"
KINDS = (FITS, ORDINARY, OTHER)
_STRONG = 0.5  # part of a latent's highest code from which a text counts as strong


@dataclass(frozen=True, eq=False)
class CodedText:
    """One text with the codes of some latents.

    Args:
      ids_t: token ids.
      counted_t: positions that the masks of the run leave.
      codes_tl: codes of the latents, 0 where a position does not count.
    """

    ids_t: np.ndarray
    counted_t: np.ndarray
    codes_tl: np.ndarray


@dataclass(frozen=True)
class Drawing:
    """Sets how passages are drawn.

    Args:
      count: passages of each kind, at most.
      window: tokens on either side of a place.
      strong: texts that fit are those where the latent is at least half as active as in
        the text where it is most active; else all where it is active.
    """

    count: int
    window: int = 12
    strong: bool = False


def coded_texts(
    params: Params,
    sae: SAE,
    batches: Iterable[CorpusBatch],
    latents_l: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> list[CodedText]:
    """Returns every text of a corpus with the codes of some latents.

    Args:
      site: what the SAE encodes.
      batches, limits: as for `interpret.top_passages`.
    """

    def measure(
        sae: SAE, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> jax.Array:
        codes_btl = encode(sae, acts[site])[..., latents_l]
        return jnp.where(counted_bt[..., None], codes_btl, 0)

    def add(
        texts: list[CodedText],
        codes_btl: np.ndarray,
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> list[CodedText]:
        more = []
        for b, length in enumerate(batch.valid_bt.sum(axis=1).tolist()):
            ids_t, counted_t = batch.tokens_bt[b, :length], counted_bt[b, :length]
            if counted_t.any():
                more.append(CodedText(ids_t, counted_t, codes_btl[b, :length]))
        return [*texts, *more]

    statistic = Statistic((site,), measure, list, add, lambda texts: texts, inputs=sae)
    return measure_corpus(
        params,
        batches,
        {"texts": statistic},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="texts for tests",
        progress=progress,
    )["texts"]


def drawn_passages(
    texts: Sequence[CodedText],
    latent: int,
    other: int,
    drawing: Drawing,
    rng: np.random.Generator,
    *,
    known: Iterable[tuple[int, ...]] = (),
) -> dict[str, list[tuple[int, ...]]]:
    """Draws token ids of passages of each of `KINDS`, none of them twice.

    `fits`: about the place where the latent is most active in a text. `ordinary`: about
    any place. `other`: about the place where the other latent is most active. The latent
    itself is active nowhere in the last two.

    Args:
      latent, other: columns of the texts' codes.
      known: places (`interpret.place_key`) that described the latent: no test of what
        was said of it.
    """
    peaks = [float(text.codes_tl[:, latent].max()) for text in texts]
    least = _STRONG * max(peaks, default=0.0) if drawing.strong else 0.0
    order = rng.permutation(len(texts)).tolist()
    places = {FITS: [], ORDINARY: [], OTHER: []}
    for number in order:
        text = texts[number]
        mine_t, others_t = text.codes_tl[:, latent], text.codes_tl[:, other]
        if peaks[number] > 0 and peaks[number] >= least:
            places[FITS].append((number, int(mine_t.argmax())))
        at = int(rng.choice(np.flatnonzero(text.counted_t)))
        places[ORDINARY].append((number, at))
        if others_t.max() > 0:
            places[OTHER].append((number, int(others_t.argmax())))
    seen = set(known)
    drawn = {}
    for kind, of_kind in places.items():
        passages = _different(texts, of_kind, drawing, seen, latent, fits=kind == FITS)
        drawn[kind] = [ids for ids, _ in zip(passages, range(drawing.count))]
    return drawn


def _different(
    texts: Sequence[CodedText],
    places: Iterable[tuple[int, int]],
    drawing: Drawing,
    seen: set[tuple[int, ...]],
    latent: int,
    *,
    fits: bool,
) -> Iterator[tuple[int, ...]]:
    """Yields the passages about places that were not seen before, and adds them to
    `seen`.
    """
    for number, at in places:
        text = texts[number]
        window = slice(max(0, at - drawing.window), at + drawing.window + 1)
        key = place_key(text.ids_t.tolist(), at)
        is_active = bool(text.codes_tl[window, latent].max() > 0)
        if is_active == fits and key not in seen:
            seen.add(key)
            yield tuple(text.ids_t[window].tolist())
