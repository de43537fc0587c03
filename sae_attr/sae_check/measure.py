"""What the SAE check measures, as plain numbers; `verdict` judges them, so that bands
can change without measuring again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.sites import norm_gain
from sae_attr.sae.metrics import (
    explained_variance,
    fit,
    fit_sums,
    l0,
    mse,
    reconstruct_tokens,
    summary,
)
from sae_attr.sae.model import SAE
from sae_attr.sae_check.sample import (
    MIN_TOKENS,
    SitePair,
    TextSample,
    collect_sample,
    spliced_losses,
)
from sae_attr.sae_check.sparsity import reconstruct_at
from sae_attr.sae_check.variants import Variant, fit_variants
from sae_attr.text.batching import TextBatch
from sae_attr.text.masks import Masks

TRIAL = 1024  # tokens on which neighbours and variants are compared
LOSS_TOKENS = 2048


@dataclass(frozen=True)
class SiteFit:
    """One row of the table: how the SAE does at a site, on the tokens that count and on
    all of them.

    Beside the declared site, `explained_variance` is at the declared site's L0: what
    fires beyond it is left out. `site` is "A to B" for a transcoder; `read` and `write`
    are the sites themselves.
    """

    site: str
    read: str
    write: str
    explained_variance: float
    l0: float
    mse: float
    explained_variance_with_special: float
    l0_with_special: float


@dataclass(frozen=True)
class SAEMeasurement:
    """The numbers that the SAE check is about.

    Args:
      site: the declared one.
      metrics: `sae.metrics.summary` over all tokens that count at the site.
      masked: reason of `masks.REASONS` -> tokens of the text: what counts, and why the
        others do not.
      special: `tokens`, and `mse` of the reconstruction on them; None where the text
        has no special tokens.
      sites: the declared site first, then its neighbours, all on the same few tokens.
      variants: variants of the SAE on those tokens, the best first.
      loss: mean nats per non-special token: `plain`, with the `sae`'s reconstruction,
        the `mean` activation or `zero` in the place of the site at positions that
        count.
      recovered: (L_ablated − L_sae) / (L_ablated − L_plain) for the ablations `mean`
        and `zero`.
      gate: of the SAE; `threshold_max` of a jumprelu one, else None.
    """

    site: str
    metrics: dict[str, Any]
    masked: dict[str, int]
    special: dict[str, Any] | None
    sites: tuple[SiteFit, ...]
    variants: tuple[Variant, ...]
    loss: dict[str, float]
    recovered: dict[str, float]
    gate: str
    threshold_max: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SAEMeasurement:
        """Reads what `to_dict` returned."""
        sites = tuple(SiteFit(**fields) for fields in values["sites"])
        variants = tuple(Variant(**fields) for fields in values["variants"])
        return SAEMeasurement(**{**values, "sites": sites, "variants": variants})


def measure_sae(
    params: Params,
    sae: SAE,
    work: Iterable[TextBatch],
    *,
    cfg: LMConfig,
    site: Site,
    read: Site | None = None,
    mesh: jax.sharding.Mesh,
    masks: Masks | None = None,
    **options: Any,
) -> SAEMeasurement:
    """Measures an SAE at the site that it declares.

    Args:
      work: text batches (tokens_bt, valid_bt, special_bt), for instance of
        `batching.corpus_batches`; a few thousand tokens.
      read: the site that a transcoder encodes; None for the site itself.
      masks: of the SAE's training (`collect`).
      **options: of `measure_sample`.

    Raises:
      ValueError: fewer than `MIN_TOKENS` tokens that count; activations that are NaN; a
        site whose width is not the SAE's.
    """
    for at, verb, width in (
        (read or site, "reads", sae.cfg.d_in),
        (site, "writes", sae.cfg.d_out),
    ):
        if cfg.width(at.point) != width:
            raise ValueError(
                f"{at} has width {cfg.width(at.point)} but the SAE {verb} {width}; set "
                "site="
            )
    beside = options.get("trial", TRIAL)
    sample = collect_sample(
        params,
        work,
        cfg=cfg,
        site=site,
        read=read,
        mesh=mesh,
        beside=beside,
        masks=masks,
    )
    counted = sample.counts["kept"]
    if counted < MIN_TOKENS:
        raise ValueError(
            f"{counted} tokens of the corpus count, too few to test the SAE on (at "
            f"least {MIN_TOKENS}); give more text, raise sae_check_tokens, or mask "
            "fewer tokens"
        )
    return measure_sample(params, sae, sample, cfg=cfg, mesh=mesh, **options)


def measure_sample(
    params: Params,
    sae: SAE,
    sample: TextSample,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    stated_l0: float | None = None,
    trial: int = TRIAL,
    loss_tokens: int = LOSS_TOKENS,
) -> SAEMeasurement:
    """Does `measure_sae` on activations that were collected before.

    Args:
      stated_l0: what file or path states, to be tried as a top-k.
      trial: tokens on which sites and variants are compared.
      loss_tokens: tokens for the losses, in whole batches; 0 skips them (NaN).
    """
    read, site = sample.place
    recon = reconstruct_tokens(sae, sample.acts[read])
    plain_kd = sample.plain(site)
    plain = fit(sae, sample.plain(read), plain_kd)
    trial_kd, target_kd = sample.plain(read, trial), sample.plain(site, trial)
    gain_d = norm_gain(params, read, cfg=cfg) if read != site else None
    sites = site_fits(sae, sample, trial)
    variants = fit_variants(
        sae,
        trial_kd,
        target_kd,
        active=sites[0].l0,
        stated_l0=stated_l0,
        gain_d=gain_d,
    )
    threshold_max = None
    if sae.threshold_n is not None:
        threshold_max = float(np.max(np.asarray(sae.threshold_n, np.float32)))
    loss, recovered = splice(
        params, sample, recon.recon_kd, cfg=cfg, mesh=mesh, limit=loss_tokens
    )
    return SAEMeasurement(
        site=str(sample.place),
        metrics=summary(sae, plain),
        masked=sample.counts,
        special=_special(sample, site, recon.recon_kd),
        sites=sites,
        variants=tuple(variants),
        loss=loss,
        recovered=recovered,
        gate=sae.cfg.gate,
        threshold_max=threshold_max,
    )


def splice(
    params: Params,
    sample: TextSample,
    recon_kd: np.ndarray,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    limit: int = LOSS_TOKENS,
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures `loss` and `recovered` of `SAEMeasurement`: the model's loss with a
    reconstruction in the place of the site.

    Args:
      recon_kd: one row for every token of the sample.
      limit: tokens, in whole batches; 0 skips all and gives NaN.
    """
    site = sample.place.write
    # Summed in float64: of thousands of float32 tokens the mean would lose digits.
    mean_d = sample.plain(site).astype(np.float64).mean(0).astype(np.float32)
    values = [recon_kd, mean_d, np.zeros_like(mean_d)]
    losses = spliced_losses(
        params, sample, values, cfg=cfg, site=site, mesh=mesh, limit=limit
    )
    plain, with_sae, with_mean, with_zero = losses
    loss = {"plain": plain, "sae": with_sae, "mean": with_mean, "zero": with_zero}
    recovered = {name: _recovered(loss, name) for name in ("mean", "zero")}
    return loss, recovered


def _special(
    sample: TextSample, site: Site, recon_kd: np.ndarray
) -> dict[str, Any] | None:
    if not sample.special_k.any():
        return None
    acts_kd = sample.acts[site][sample.special_k].astype(np.float64)
    gap_kd = acts_kd - recon_kd[sample.special_k]
    return {"tokens": len(gap_kd), "mse": float(np.mean(gap_kd**2))}


def site_fits(sae: SAE, sample: TextSample, limit: int) -> tuple[SiteFit, ...]:
    """Fits the SAE at its declared site and at those beside it, on the first `limit`
    tokens.
    """
    here = _site_fit(sae, sample, sample.place, limit, most=float(sae.cfg.n_latents))
    fits = [here]
    for place in sample.beside:
        # At the declared site's L0: a site where more latents fire would else win.
        fits.append(_site_fit(sae, sample, place, limit, most=here.l0))
    return tuple(fits)


def _site_fit(
    sae: SAE, sample: TextSample, place: SitePair, limit: int, *, most: float
) -> SiteFit:
    target_kd = sample.acts[place.write][:limit]
    read_kd = sample.acts[place.read][:limit]
    both = fit_sums(target_kd, reconstruct_tokens(sae, read_kd))
    keep_k = sample.counted(place)[: len(target_kd)]
    sparse = reconstruct_at(sae, read_kd[keep_k], most)
    without = fit_sums(target_kd[keep_k], sparse.recon)
    numbers = (
        explained_variance(without),
        sparse.l0,
        mse(without),
        explained_variance(both),
        l0(both),
    )
    return SiteFit(str(place), str(place.read), str(place.write), *numbers)


def _recovered(loss: dict[str, float], ablated: str) -> float:
    damage = loss[ablated] - loss["plain"]
    return (loss[ablated] - loss["sae"]) / damage if damage else float("nan")
