"""Variants of an SAE, each of which undoes one usual mistake of loading.

An SAE that was loaded correctly is the best of its variants. Where one variant explains
much more than the SAE as loaded, that variant names the mistake. All variants see the
same tokens, and none may fire more latents than the SAE as loaded: an open gate explains
more of any SAE, so what fires beyond that is left out (`sparsity`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.sae.gates import safe_norm
from sae_attr.sae.metrics import explained_variance, fit, fit_sums, l0
from sae_attr.sae.model import SAE, scaled_input, unit_decoder
from sae_attr.sae_check.sparsity import reconstruct_at, variance_at

COARSE = tuple(2.0**k for k in range(-5, 6))
FINE = tuple(2.0**k for k in (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75))
TOPS = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Variant:
    """A variant of the SAE: its `code` names the mistake that it undoes, `what` says how
    it differs, and `explained_variance` how well it fits.
    """

    code: str
    what: str
    explained_variance: float


class _Tokens(NamedTuple):
    """The tokens that all variants are fitted on.

    Args:
      acts_kd: what the SAE reads.
      target_kd: what it stands for.
      active: its L0 as loaded, the most that a variant may have.
    """

    acts_kd: np.ndarray
    target_kd: np.ndarray
    active: float

    def variance(self, sae: SAE) -> float:
        """Returns the share of the variance that an SAE explains on these tokens."""
        return variance_at(sae, self.acts_kd, self.target_kd, self.active)


def fit_variants(
    sae: SAE,
    acts_kd: np.ndarray,
    target_kd: np.ndarray | None = None,
    *,
    active: float,
    stated_l0: float | None,
    gain_d: jax.Array | None = None,
) -> list[Variant]:
    """Fits every variant that applies to this SAE on tokens `[k, d]`; the best first.

    Args:
      target_kd: what it stands for, `[k, d_out]`; None: what it reads.
      active: its L0 as loaded, on these tokens.
      stated_l0: the L0 that its file or path states.
      gain_d: of the norm whose output it reads, where an SAE may be meant for the input
        before that gain.
    """
    tokens = _Tokens(acts_kd, acts_kd if target_kd is None else target_kd, active)
    variants = [
        best_scale(sae, *tokens),
        *_fewer_latents(sae, tokens, stated_l0),
        *_gate_norms(sae, tokens, stated_l0),
    ]
    for code, what, changed in [*_changes(sae), *_gains(sae, gain_d)]:
        variants.append(Variant(code, what, tokens.variance(changed)))
    return sorted(variants, key=lambda variant: -variant.explained_variance)


# ---- scales --------------------------------------------------------------------------


def scaled(sae: SAE, scale: float) -> SAE:
    """Returns the SAE that was trained on `scale` · x, made to read x: encoder times s,
    decoder and its bias over s.

    This is how `norm_scale=` folds the factor of SAELens' `expected_average_only_in`.
    """
    return replace(
        sae,
        enc_dn=sae.enc_dn * scale,
        dec_nm=sae.dec_nm / scale,
        dec_bias_m=sae.dec_bias_m / scale,
    )


class _ScaleFit(NamedTuple):
    """A factor s of the encoder, and what it reaches: with the decoder over s (`gain`
    None), or with the decoder times a gain of its own where that fits better.
    """

    scale: float
    explained_variance: float
    gain: float | None


def best_scale(
    sae: SAE, acts_kd: np.ndarray, target_kd: np.ndarray, active: float
) -> Variant:
    """Finds the best of a grid of factors, on input and output (a missing `norm_scale`),
    on the encoder or on the decoder alone.

    The grid holds the powers of two from 1/32 to 32 and sqrt(d) / E|x|, then finer
    steps about the best of them. The decoder's factor is the least-squares one.
    """
    tokens = _Tokens(acts_kd, target_kd, active)
    norm = float(np.linalg.norm(acts_kd.astype(np.float64), axis=1).mean())
    usual = math.sqrt(sae.cfg.d_in) / norm if norm else 1.0
    by_variance = lambda scale_fit: scale_fit.explained_variance
    fits = [_scale_fit(sae, tokens, scale) for scale in (*COARSE, usual)]
    centre = max(fits, key=by_variance).scale
    fits += [_scale_fit(sae, tokens, centre * factor) for factor in FINE]
    best = max(fits, key=by_variance)
    if best.gain is not None:
        what = f"encoder times {best.scale:.3g}, decoder times {best.gain:.3g}"
        return Variant("scales_apart", what, best.explained_variance)
    formula = " = sqrt(d_in) / E|x|" if best.scale == usual else ""
    what = f"input times {best.scale:.3g}{formula} and output over it (norm_scale=)"
    return Variant("scale_off", what, best.explained_variance)


def _scale_fit(sae: SAE, tokens: _Tokens, scale: float) -> _ScaleFit:
    folded = -math.inf
    if scale != 1.0:
        folded = tokens.variance(scaled(sae, scale))
    encoder_scaled = replace(sae, enc_dn=sae.enc_dn * scale)
    out = reconstruct_at(encoder_scaled, tokens.acts_kd, tokens.active).recon
    bias_d = np.asarray(sae.dec_bias_m, np.float64)
    target_kd = tokens.target_kd.astype(np.float64) - bias_d
    written_kd = out.recon_kd.astype(np.float64) - bias_d
    # With a norm per token the output is no sum of bias and codes; there the decoder
    # keeps its scale.
    gain = 1.0
    if sae.cfg.norm == "none":
        power = max(np.sum(written_kd**2), 1e-30)
        gain = float(np.sum(target_kd * written_kd) / power)
    gained = out._replace(recon_kd=bias_d + gain * written_kd)
    apart = explained_variance(fit_sums(tokens.target_kd, gained))
    if folded >= apart:
        return _ScaleFit(scale, folded, None)
    return _ScaleFit(scale, apart, gain)


# ---- gates ---------------------------------------------------------------------------


def _fewer_latents(
    sae: SAE, tokens: _Tokens, stated_l0: float | None
) -> Iterator[Variant]:
    """Yields the best of several top-k gates: dropping most of what fires helps only where the
    gate lets through what it should not.
    """
    # A gated SAE's gate and magnitudes are different numbers: a top-k would be of
    # neither.
    if sae.cfg.gate == "gated":
        return
    limit = min(tokens.active / 1.5, sae.cfg.n_latents)
    tops = [k for k in sorted({round(stated_l0 or 0), *TOPS}) if 1 <= k < limit]
    variants = []
    for k in tops:
        cfg = replace(sae.cfg, gate="topk", k=k, rescale_by_dec_norm=False)
        sums = fit(replace(sae, cfg=cfg), tokens.acts_kd, tokens.target_kd)
        what = f"only the top {k} latents of a token"
        variants.append(Variant("gate_lost", what, explained_variance(sums)))
    if variants:
        yield max(variants, key=lambda variant: variant.explained_variance)


def _gate_norms(
    sae: SAE, tokens: _Tokens, stated_l0: float | None
) -> Iterator[Variant]:
    """Tries thresholds in units of pre-activation times decoder norm, as Llama Scope's are.

    Lower thresholds alone explain more, so it counts only where it also comes nearer to
    the stated L0.
    """
    if sae.cfg.gate != "jumprelu" or sae.threshold_n is None:
        return
    if not stated_l0 or not tokens.active:
        return
    norms_n = safe_norm(sae.dec_nm)[:, 0]
    # A latent without a decoder row writes nothing: it may as well never fire.
    threshold_n = jnp.where(norms_n > 0, sae.threshold_n / norms_n, jnp.inf)
    sums = fit(replace(sae, threshold_n=threshold_n), tokens.acts_kd, tokens.target_kd)
    distance = lambda active: abs(math.log(max(active, 1e-9) / stated_l0))
    if distance(l0(sums)) < distance(tokens.active):
        what = "thresholds compared with pre-activations times the decoder norms"
        yield Variant("gate_norms", what, explained_variance(sums))


# ---- other changes -------------------------------------------------------------------


def _changes(sae: SAE) -> Iterator[tuple[str, str, SAE]]:
    """Yields code, words and changed SAE of the mistakes that need no search."""
    cfg = sae.cfg
    if cfg.d_in == cfg.d_out and bool(jnp.any(sae.dec_bias_m != 0)):
        verb = "not subtracted" if cfg.subtract_b_dec else "subtracted"
        other = replace(cfg, subtract_b_dec=not cfg.subtract_b_dec)
        yield "b_dec_input", f"b_dec {verb} from the input", replace(sae, cfg=other)
    unit = replace(sae, dec_nm=unit_decoder(sae.dec_nm))
    yield "decoder_norms", "decoder rows scaled to unit norm", unit
    if cfg.gate == "topk":
        preposition = "without" if cfg.rescale_by_dec_norm else "times"
        words = f"top-k on pre-activations {preposition} the decoder norms"
        other = replace(cfg, rescale_by_dec_norm=not cfg.rescale_by_dec_norm)
        yield "decoder_norms", words, replace(sae, cfg=other)
    # Same shape, other order: what a file in column-major order gives without an error.
    d, n = sae.enc_dn.shape
    encoder = replace(sae, enc_dn=sae.enc_dn.reshape(n, d).T)
    yield "encoder_mismatch", "encoder read in the other memory order", encoder
    decoder = replace(sae, dec_nm=sae.dec_nm.reshape(sae.dec_nm.shape[::-1]).T)
    yield "encoder_mismatch", "decoder read in the other memory order", decoder
    if cfg.norm != "none":
        bare = replace(sae, cfg=replace(cfg, norm="none"))
        yield "norm_missing", f"{cfg.norm} left out", bare
        return
    for norm, words in (
        ("layer_norm", "input layer-normalised"),
        ("constant_norm_rescale", "input rescaled to norm sqrt(d)"),
    ):
        yield "norm_missing", words, replace(sae, cfg=replace(cfg, norm=norm))


def _gains(sae: SAE, gain_d: jax.Array | None) -> Iterator[tuple[str, str, SAE]]:
    """Yields variants that read on the other side of a norm's gain; TransformerLens'
    `hook_normalized` is before it.
    """
    if gain_d is None or sae.cfg.norm != "none" or sae.cfg.subtract_b_dec:
        return
    for side, factor_d in (("before", 1 / gain_d), ("after", gain_d)):
        words = f"its input taken {side} the norm's gain (site_in=)"
        yield "norm_gain", words, scaled_input(sae, factor_d)
