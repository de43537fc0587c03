"""Dictionaries of several sites at once: one backward pass for all, one ranking of
(site, latent); and transcoders' sites.

Each site's gradient is a total derivative, so one cause may appear at several layers:
scores of different sites share a unit (nats per token) and may be ordered together, but
they must not be added up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.gradients import act_and_grad
from sae_attr.attribution.scores import score_moment
from sae_attr.attribution.token_table import (
    TokenTable,
    table_from_batches,
    table_moment,
    token_weights,
)
from sae_attr.files.row_source import RowSource
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules
from sae_attr.lm.model import Params
from sae_attr.lm.sites import norm_gain
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import SAE, scaled_input
from sae_attr.site_names import parse_site
from sae_attr.text.batching import batches
from sae_attr.text.rows import TokenRow

ERROR = -1  # in the place of a latent: what the SAE of that site does not reconstruct


class SiteLatent(NamedTuple):
    """One entry of a ranking over sites; `latent` is `ERROR` for the reconstruction
    error.
    """

    site: Site
    latent: int


@dataclass(frozen=True, eq=False)
class SiteRanking:
    """The best entries of several dictionaries, best first, with their scores `[k]` and
    every choice behind them.
    """

    name: str
    entries: tuple[SiteLatent, ...]
    scores_k: np.ndarray
    options: Mapping[str, Any] = field(default_factory=dict)

    def latents(self, site: Site) -> np.ndarray:
        """Returns the latents of one site in their order, errors left out."""
        latents = []
        for entry in self.entries:
            if entry.site == site and entry.latent != ERROR:
                latents.append(entry.latent)
        return np.array(latents, int)


def rank_sites(
    name: str,
    scores: Mapping[Site, Any],
    top: int,
    *,
    errors: Mapping[Site, float] | None = None,
    **options: Any,
) -> SiteRanking:
    """Ranks the latents of several sites together by SIGNED score, descending; NaN never
    among the best.

    Args:
      scores: per site one number per latent `[n]`; dictionaries may differ in size.
      top: entries that are kept.
      errors: per site the score of the reconstruction error (Δ_err), ranked as an entry
        of its own.

    Raises:
      ValueError: no score is finite.
    """
    entries: list[SiteLatent] = []
    values: list[np.ndarray] = []
    for site, scores_n in scores.items():
        entries.extend(SiteLatent(site, latent) for latent in range(len(scores_n)))
        values.append(np.asarray(scores_n, np.float64))
    for site, error in (errors or {}).items():
        entries.append(SiteLatent(site, ERROR))
        values.append(np.array([error], np.float64))
    scores_k = np.concatenate(values)

    # NaN and infinity become the last ones, and are cut off if they are among the top.
    # The sort is stable, so that ties have one order on every machine.
    finite_k = np.isfinite(scores_k)
    order = np.argsort(np.where(finite_k, -scores_k, np.inf), kind="stable")[:top]
    order = order[finite_k[order]]
    if not len(order):
        raise ValueError(
            f"ranking {name!r} has no finite score at any of its {len(scores)} sites"
        )
    best = tuple(entries[k] for k in order)
    return SiteRanking(name, best, scores_k[order], options)


def collect_sites(
    params: Params,
    rows: Sequence[TokenRow],
    *,
    cfg: LMConfig,
    sites: Mapping[Site, Site] | Sequence[Site],
    mesh: jax.sharding.Mesh,
    loss: str = "sum",
    batch_size: int = 8,
    rules: Rules = PLAIN,
    remat: bool = False,
) -> dict[Site, TokenTable]:
    """Computes tables of several sites from ONE forward and one backward pass a row.

    Args:
      sites: sites that are scored; as a mapping, each with the site that its SAE
        encodes (transcoders).
    """
    if isinstance(sites, Mapping):
        reads = dict(sites)
    else:
        reads = {site: site for site in sites}
    scored = tuple(reads)
    # What a transcoder encodes needs no gradient, so it does not lengthen the backward
    # pass.
    only_read = tuple(sorted(set(reads.values()) - set(reads)))
    step = jax.jit(
        partial(
            act_and_grad,
            cfg=cfg,
            sites=scored,
            read=only_read,
            loss=loss,
            rules=rules,
            remat=remat,
        )
    )
    results: dict[Site, list[dict[str, np.ndarray]]] = {site: [] for site in scored}
    for batch, row_b in batches(rows, batch_size=batch_size):
        out = step(params, shard_batch(batch, mesh))
        acts = {site: to_host(acts_btd) for site, acts_btd in out.acts.items()}
        # float64: a float32 sum would round more, the longer the completion.
        nll_b = to_host(out.nll_bc).astype(np.float64).sum(1)
        for site, read in reads.items():
            result = {
                "row_b": row_b,
                "acts_btd": acts[site],
                "grads_btd": to_host(out.grads[site]),
                "nll_b": nll_b,
            }
            if read != site:
                result["inputs_btd"] = acts[read]
            results[site].append(result)

    tables = {}
    for site, site_results in results.items():
        tables[site] = table_from_batches(rows, site_results)
    return tables


def score_sites(
    tables: Mapping[Site, TokenTable],
    decoders: Mapping[Site, jax.Array | RowSource],
    means: Mapping[Site, np.ndarray],
    *,
    scope: str = "prompt",
    exclude: frozenset[str] = frozenset(),
) -> dict[Site, np.ndarray]:
    """Computes Δ of every latent of every site, through each site's own moment.

    Raises ValueError naming a site that lacks a decoder or a mean.
    """
    scores = {}
    for site, table in tables.items():
        for name, by_site in (("decoder", decoders), ("mean", means)):
            if site not in by_site:
                raise ValueError(
                    f"site {site} has gradients but no {name}; give one, or leave the "
                    "site out"
                )
        weights_k = token_weights(table.rows, scope, exclude)
        mean_d = jnp.asarray(means[site], jnp.float32)
        site_moment = table_moment(table, weights_k)
        scores[site] = np.asarray(score_moment(site_moment, mean_d, decoders[site]))
    return scores


# ---- what a transcoder reads ---------------------------------------------------------

_BEFORE_GAIN = re.compile(r"blocks\.(\d+)\.ln2\.hook_normalized")


def read_site(name: str, *, norms_behind: bool | None = None) -> tuple[Site, bool]:
    """Reads the site that an SAE's file says it encodes, and whether that is before the
    norm's gain.

    TransformerLens calls the MLP's input `ln2.hook_normalized`, which for an RMSNorm is
    the input before the gain. `norms_behind` as `parse_site` takes it.
    """
    match = _BEFORE_GAIN.fullmatch(name)
    if match:
        return Site(int(match[1]), "mlp_in"), True
    return parse_site(name, norms_behind=norms_behind), False


def after_gain(sae: SAE, params: Params, layer: int, *, cfg: LMConfig) -> SAE:
    """Returns the same SAE for an input that carries the gain of the MLP's norm: x W =
    (x · gain)(W / gain).

    Raises ValueError for a LayerNorm, where it depends on how the model was processed
    for training.
    """
    gain_d = norm_gain(params, Site(layer, "mlp_in"), cfg=cfg)
    if gain_d is None:
        raise ValueError(
            f"the SAE reads ln2.hook_normalized of a {cfg.family} model, whose "
            "LayerNorm may or may not have been folded; "
            f"say which by site_in: layer{layer}.mlp_in reads after gain and bias"
        )
    return scaled_input(sae, 1 / gain_d)
