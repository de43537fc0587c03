"""Activations of ordinary text at a site and its neighbours, and what splicing
something in there does to the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, measure_corpus
from sae_attr.activations.statistics import activation_statistic
from sae_attr.hooks import Edit, Replace, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import text_nll
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.text.batching import TextBatch
from sae_attr.text.masks import Masks, beyond_limits, norm_limit

_POINTS = (
    "resid_pre",
    "attn_z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
)
_BEFORE_NORMS = (
    "attn_raw",
    "mlp_raw",
)  # where no norm follows they are attn_out and mlp_out
MIN_TOKENS = 100  # explained variance, L0 and dead share of fewer are noise


class SitePair(NamedTuple):
    """Holds what an SAE reads, and what it stands for: the same site, or two of them
    for a transcoder.
    """

    read: Site
    write: Site

    def __str__(self) -> str:
        if self.read == self.write:
            return str(self.write)
        return f"{self.read} to {self.write}"


@dataclass(frozen=True, eq=False)
class TextSample:
    """Tokens with their activations.

    `place` is where the SAE is said to belong, `beside` the places near it.

    Args:
      batches: as they were read; a text batch's valid positions, batch after batch, are
        the tokens of `acts`.
      acts: site -> float32 `[k, d]`; all tokens at the declared site, the first few at
        its neighbours.
      special_k: bool `[K]`, special tokens (BOS among them), for all tokens; they never
        count.
      first_k: bool `[K]`, tokens at the front of a text that the SAE's training left
        out.
      limits: site -> largest norm that counts; empty where outliers count.
    """

    place: SitePair
    beside: tuple[SitePair, ...]
    batches: list[TextBatch]
    acts: dict[Site, np.ndarray]
    special_k: np.ndarray
    first_k: np.ndarray
    limits: Mapping[Site, float]

    def beyond(self, place: SitePair) -> np.ndarray:
        """Tokens whose norm exceeds the limit at a site of the place, bool `[k]`, as
        many as there are activations.
        """
        # Beside the declared site there are the first few alone.
        tokens = min(len(self.acts[site]) for site in place)
        acts = {site: self.acts[site][:tokens] for site in place}
        limits = {site: self.limits[site] for site in acts if site in self.limits}
        return np.asarray(beyond_limits(acts, limits)) | np.zeros(tokens, bool)

    def counted(self, place: SitePair) -> np.ndarray:
        """Tokens that count at a place, bool `[k]`, as many as there are activations."""
        beyond_k = self.beyond(place)
        return ~(
            beyond_k | self.special_k[: len(beyond_k)] | self.first_k[: len(beyond_k)]
        )

    def plain(self, site: Site, limit: int | None = None) -> np.ndarray:
        """Activations at a site of the declared place, of those of the first `limit`
        tokens that count, `[k, d]`.
        """
        acts_kd = self.acts[site][:limit]
        return acts_kd[self.counted(self.place)[: len(acts_kd)]]

    @property
    def counts(self) -> dict[str, int]:
        """Returns reason of `masks.REASONS` -> tokens at the declared place, padding apart."""
        first_k = self.first_k & ~self.special_k
        beyond_k = self.beyond(self.place) & ~self.special_k & ~first_k
        masked = {
            "special": self.special_k,
            "first_k": first_k,
            "norm_outlier": beyond_k,
        }
        counts = {name: int(mask_k.sum()) for name, mask_k in masked.items()}
        return {"kept": len(beyond_k) - sum(counts.values()), **counts}


def neighbours(cfg: LMConfig, place: SitePair) -> tuple[SitePair, ...]:
    """Returns the places near one: other sites of its width in its layer and the layers
    beside it; each activation once.

    A transcoder keeps one of its two sites and changes the other within the layer, or
    moves both by one layer. `resid_pre` of a layer is `resid_post` of the one before,
    and has that name unless it is the site itself.
    """
    if place.read == place.write:
        pairs = _same_site_pairs(cfg, place.read)
    else:
        pairs = _transcoder_pairs(cfg, place)
    # In order, each once: a site may be a neighbour in two ways.
    return tuple(pair for pair in dict.fromkeys(pairs) if pair != place)


def _same_site_pairs(cfg: LMConfig, site: Site) -> list[SitePair]:
    pairs = []
    for layer in range(max(site.layer - 1, 0), min(site.layer + 2, cfg.n_layers)):
        for other in _sites(cfg, layer, site):
            name = _named(other, site)
            pairs.append(SitePair(name, name))
    return pairs


def _transcoder_pairs(cfg: LMConfig, place: SitePair) -> list[SitePair]:
    read, write = place
    pairs = [SitePair(site, write) for site in _sites(cfg, read.layer, read)]
    pairs += [SitePair(read, site) for site in _sites(cfg, write.layer, write)]
    for shift in (-1, 1):
        layers = (read.layer + shift, write.layer + shift)
        if min(layers) >= 0 and max(layers) < cfg.n_layers:
            moved_read = Site(layers[0], read.point)
            pairs.append(SitePair(moved_read, Site(layers[1], write.point)))
    # A pair of one site would be an autoencoder's.
    return [pair for pair in pairs if pair.read != pair.write]


def _sites(cfg: LMConfig, layer: int, like: Site) -> list[Site]:
    """Returns the sites of a layer that have the width of `like`."""
    points = (*_POINTS, *_BEFORE_NORMS) if cfg.post_norm else _POINTS
    sites = []
    for point in points:
        # With parallel blocks the stream has no state between attention and MLP.
        absent = point == "resid_mid" and cfg.parallel_residual
        if cfg.width(point) == cfg.width(like.point) and not absent:
            sites.append(Site(layer, point))
    return sites


def _named(other: Site, site: Site) -> Site:
    """Returns another site under its one name, or under that of `site` where it is the
    same.
    """
    name = _as_resid_post(other)
    return site if name == _as_resid_post(site) else name


def _as_resid_post(site: Site) -> Site:
    if site.point == "resid_pre" and site.layer:
        return Site(site.layer - 1, "resid_post")
    return site


def collect_sample(
    params: Params,
    work: Iterable[TextBatch],
    *,
    cfg: LMConfig,
    site: Site,
    read: Site | None = None,
    mesh: jax.sharding.Mesh,
    beside: int,
    masks: Masks | None = None,
    limits: Mapping[Site, float] | None = None,
) -> TextSample:
    """Collects activations of all valid positions at `site`, and of the first `beside`
    (in whole batches) at its neighbours.

    Args:
      read: what the SAE encodes; None for the site itself.
      masks: of the SAE's training, None for the usual ones; special tokens never count,
        whatever they say.
      limits: site -> largest norm that counts, as training measured it; None measures
        them on these tokens.

    Raises:
      ValueError: no text, no token that counts, or an activation that is NaN or
        infinite.
    """
    batches = [TextBatch(*batch) for batch in work]
    place, masks = SitePair(read or site, site), masks or Masks()
    near = neighbours(cfg, place)
    acts = _activations(params, batches, place, near, beside, cfg=cfg, mesh=mesh)
    special_k = np.concatenate([batch.special_bt[batch.valid_bt] for batch in batches])
    first_k = np.concatenate([_first(batch, masks.first_k) for batch in batches])
    masked_k = special_k | first_k
    if masked_k.all():
        raise ValueError(
            "no token of the corpus counts for the SAE's test; give more text, or "
            "exclude fewer tokens"
        )
    if limits is None:
        limits = _limits(acts, ~masked_k, masks.outlier)
    return TextSample(place, near, batches, acts, special_k, first_k, limits)


def _activations(
    params: Params,
    batches: Sequence[TextBatch],
    place: SitePair,
    near: Sequence[SitePair],
    beside: int,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
) -> dict[Site, np.ndarray]:
    """Returns site -> activations of valid positions; of the neighbours, on the first `beside`
    of them alone, in whole batches.
    """
    ends = np.cumsum([int(batch.valid_bt.sum()) for batch in batches])
    if not len(ends) or not ends[-1]:
        raise ValueError("the corpus gives no token to test the SAE on; give more text")
    head = int(np.searchsorted(ends, beside)) + 1 if beside else 0
    sites = tuple(dict.fromkeys(place))
    all_sites = tuple(dict.fromkeys(site for pair in (place, *near) for site in pair))
    parts: dict[Site, list[np.ndarray]] = {}
    for measured, some in ((all_sites, batches[:head]), (sites, batches[head:])):
        if not some:
            continue
        whole = [CorpusBatch(b.tokens_bt, b.valid_bt, b.valid_bt) for b in some]
        statistics = {"acts": activation_statistic(measured)}
        results = measure_corpus(params, whole, statistics, cfg=cfg, mesh=mesh)
        for site, acts_kd in results["acts"].items():
            parts.setdefault(site, []).append(acts_kd)
    acts = {site: np.concatenate(part) for site, part in parts.items()}
    for site in sites:
        if not np.isfinite(acts[site]).all():
            raise ValueError(
                f"activations at {site} are NaN or infinite on the corpus; try float32 "
                "weights"
            )
    return acts


def _first(batch: TextBatch, first_k: int) -> np.ndarray:
    """Returns which valid positions of a batch are the first of their texts, bool `[k]`."""
    columns_bt = np.broadcast_to(
        np.arange(batch.valid_bt.shape[1]), batch.valid_bt.shape
    )
    return columns_bt[batch.valid_bt] < first_k


def _limits(
    acts: Mapping[Site, np.ndarray], counted_k: np.ndarray, outlier: float | None
) -> dict[Site, float]:
    if outlier is None:
        return {}
    limits = {}
    for site, acts_kd in acts.items():
        norms_k = np.linalg.norm(acts_kd, axis=-1)[counted_k[: len(acts_kd)]]
        if len(norms_k):
            limits[site] = norm_limit(norms_k, outlier)
    return limits


def spliced_losses(
    params: Params,
    sample: TextSample,
    values: Sequence[np.ndarray],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limit: int,
) -> list[float]:
    """Measures mean nats per token with each of `values` in the place of the site's
    activation; the first number is the plain model's.

    Only positions that count are replaced (an SAE that was not trained on BOS need not
    reconstruct it), and only non-special tokens are predicted.

    Args:
      values: `[K, d]`, one row for every token of the sample, or `[d]`.
      limit: tokens, in whole batches; 0 skips all and gives NaN.
    """
    totals, count, start = np.zeros(len(values) + 1), 0, 0
    counted_k = sample.counted(sample.place)
    for tokens_bt, valid_bt, special_bt in sample.batches:
        if start >= limit:
            break
        stop, counted_bt = start + int(valid_bt.sum()), np.zeros_like(valid_bt)
        counted_bt[valid_bt] = counted_k[start:stop]
        aim_bt = valid_bt & ~special_bt & (np.arange(tokens_bt.shape[1]) > 0)
        for i, value in enumerate([None, *values]):
            value_btd = np.zeros((*tokens_bt.shape, cfg.width(site.point)), np.float32)
            if value is not None:
                value_btd[valid_bt] = value[start:stop] if value.ndim == 2 else value
            where_bt = counted_bt if value is not None else np.zeros_like(counted_bt)
            # The plain model too is run with an edit, of no position: one program.
            edit = Replace(jnp.asarray(value_btd), where_bt)
            arrays = shard_batch((tokens_bt, valid_bt, aim_bt, edit), mesh)
            totals[i] += float(to_host(_loss(params, *arrays, cfg=cfg, site=site)))
        count, start = count + int(aim_bt.sum()), stop
    return (totals / count if count else totals * np.nan).tolist()


@functools.partial(jax.jit, static_argnames=("cfg", "site"))
def _loss(
    params: Params,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    aim_bt: jax.Array,
    edit: Edit,
    *,
    cfg: LMConfig,
    site: Site,
) -> jax.Array:
    """Returns summed nats of the tokens at `aim_bt` under an edit."""
    hidden_btd = forward(
        params, tokens_bt, cfg=cfg, valid_bt=valid_bt, edits={site: edit}
    ).hidden_btd
    return text_nll(params, hidden_btd, tokens_bt, aim_bt, cfg=cfg).sum()
