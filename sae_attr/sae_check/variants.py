"""The usual ways in which an SAE is loaded wrongly, undone one at a time: which of them
makes it fit?

An honest SAE is the best of its variants. Where one variant explains much more than the
SAE as it was loaded, that variant names the mistake. All variants see the same tokens,
and none may fire more latents than the SAE as it was loaded: opening the gate explains
more of any SAE, so what fires beyond that is left out (`sparsity`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
class Repair:
    """A variant of the SAE: what it would mean (`code`), in words, and the explained
    variance that it reaches.
    """

    code: str
    what: str
    explained_variance: float


def repairs(
    sae: SAE,
    acts_kd: np.ndarray,
    target_kd: np.ndarray | None = None,
    *,
    active: float,
    expected: float | None,
    gain_d: jax.Array | None = None,
) -> list[Repair]:
    """Every variant that applies to this SAE, on tokens `[k, d]`; the best first.

    Args:
      target_kd: what it stands for, `[k, d_out]`; None: what it reads.
      active: its L0 as loaded, on these tokens.
      expected: the L0 that its file or path promises.
      gain_d: of the norm whose output it reads, where an SAE may be meant for the input
        before that gain.
    """
    target_kd = acts_kd if target_kd is None else target_kd
    found = [
        best_scale(sae, acts_kd, target_kd, active),
        *_gates(sae, acts_kd, target_kd, active, expected),
    ]
    found += _gate_norms(sae, acts_kd, target_kd, active, expected)
    for code, what, variant in [*_variants(sae), *_gains(sae, gain_d)]:
        found.append(
            Repair(code, what, variance_at(variant, acts_kd, target_kd, active))
        )
    return sorted(found, key=lambda r: -r.explained_variance)


def scaled(sae: SAE, scale: float) -> SAE:
    """The SAE that was trained on `scale` · x, made to read x: encoder times s, decoder
    and its bias over s.

    This is how `norm_scale=` folds the factor of SAELens' `expected_average_only_in`.
    """
    return replace(
        sae,
        enc_dn=sae.enc_dn * scale,
        dec_nm=sae.dec_nm / scale,
        dec_bias_m=sae.dec_bias_m / scale,
    )


def best_scale(
    sae: SAE, acts_kd: np.ndarray, target_kd: np.ndarray, active: float
) -> Repair:
    """The best of a grid of factors, on input and output (a missing `norm_scale`), on
    the encoder or on the decoder alone.

    The grid holds the powers of two from 1/32 to 32 and sqrt(d) / E|x|, then finer
    steps about the best of them. The decoder's factor is the least-squares one.
    """
    norm = float(np.linalg.norm(acts_kd.astype(np.float64), axis=1).mean())
    usual = math.sqrt(sae.cfg.d_in) / norm if norm else 1.0
    tried = {
        s: _scale_fit(sae, acts_kd, target_kd, s, active) for s in (*COARSE, usual)
    }
    centre = max(tried, key=lambda s: tried[s][0])
    tried |= {
        s: _scale_fit(sae, acts_kd, target_kd, s, active)
        for s in (centre * f for f in FINE)
    }
    best = max(tried, key=lambda s: tried[s][0])
    value, gain = tried[best]
    if gain is not None:
        return Repair(
            "scales_apart", f"encoder times {best:.3g}, decoder times {gain:.3g}", value
        )
    known = " = sqrt(d_in) / E|x|" if best == usual else ""
    return Repair(
        "scale_off",
        f"input times {best:.3g}{known} and output over it (norm_scale=)",
        value,
    )


def _scale_fit(
    sae: SAE, acts_kd: np.ndarray, target_kd: np.ndarray, s: float, active: float
) -> tuple[float, float | None]:
    """Explained variance at a factor s, and the decoder's own factor where scaling
    encoder and decoder apart fits better.
    """
    folded = (
        variance_at(scaled(sae, s), acts_kd, target_kd, active)
        if s != 1.0
        else -math.inf
    )
    out = reconstruct_at(replace(sae, enc_dn=sae.enc_dn * s), acts_kd, active).recon
    bias_d = np.asarray(sae.dec_bias_m, np.float64)
    target = target_kd.astype(np.float64) - bias_d
    written = out.recon_kd.astype(np.float64) - bias_d
    # With a norm per token the output is no sum of bias and codes; there the decoder
    # keeps its scale.
    gain = (
        1.0
        if sae.cfg.norm != "none"
        else float(np.sum(target * written) / max(np.sum(written**2), 1e-30))
    )
    value = explained_variance(
        fit_sums(target_kd, out._replace(recon_kd=bias_d + gain * written))
    )
    return (folded, None) if folded >= value else (value, gain)


def _gates(
    sae: SAE,
    acts_kd: np.ndarray,
    target_kd: np.ndarray,
    active: float,
    expected: float | None,
) -> Iterator[Repair]:
    """Fewer latents per token: dropping most of what fires helps only where the gate
    lets through what it should not.
    """
    if (
        sae.cfg.gate == "gated"
    ):  # its gate and its magnitudes are different numbers: a top-k would be of neither
        return
    limit = min(active / 1.5, sae.cfg.n_latents)
    tops = [k for k in sorted({round(expected or 0), *TOPS}) if 1 <= k < limit]
    best: Repair | None = None
    for k in tops:
        kept = replace(
            sae, cfg=replace(sae.cfg, gate="topk", k=k, rescale_by_dec_norm=False)
        )
        repair = Repair(
            "gate_lost",
            f"only the top {k} latents of a token",
            explained_variance(fit(kept, acts_kd, target_kd)),
        )
        best = (
            repair
            if best is None or repair.explained_variance > best.explained_variance
            else best
        )
    if best:
        yield best


def _gate_norms(
    sae: SAE,
    acts_kd: np.ndarray,
    target_kd: np.ndarray,
    active: float,
    expected: float | None,
) -> Iterator[Repair]:
    """Thresholds in units of pre-activation times decoder norm, as Llama Scope's are.

    Lower thresholds alone explain more, so it counts only where it also comes nearer to
    the promised L0.
    """
    if (
        sae.cfg.gate != "jumprelu"
        or sae.threshold_n is None
        or not (expected and active)
    ):
        return
    norms_n = safe_norm(sae.dec_nm)[:, 0]
    other = replace(
        sae, threshold_n=jnp.where(norms_n > 0, sae.threshold_n / norms_n, jnp.inf)
    )
    sums = fit(other, acts_kd, target_kd)
    away = lambda found: abs(math.log(max(found, 1e-9) / expected))
    if away(l0(sums)) < away(active):
        what = "thresholds compared with pre-activations times the decoder norms"
        yield Repair("gate_norms", what, explained_variance(sums))


def _variants(sae: SAE) -> Iterator[tuple[str, str, SAE]]:
    """(code, words, variant) for the mistakes that need no search."""
    cfg, flipped = sae.cfg, not sae.cfg.subtract_b_dec
    if cfg.d_in == cfg.d_out and bool(jnp.any(sae.dec_bias_m != 0)):
        words = (
            "b_dec subtracted from the input"
            if flipped
            else "b_dec not subtracted from the input"
        )
        yield (
            "b_dec_input",
            words,
            replace(sae, cfg=replace(cfg, subtract_b_dec=flipped)),
        )
    yield (
        "decoder_norms",
        "decoder rows scaled to unit norm",
        replace(sae, dec_nm=unit_decoder(sae.dec_nm)),
    )
    if cfg.gate == "topk":
        other = not cfg.rescale_by_dec_norm
        words = f"top-k on pre-activations {'times' if other else 'without'} the decoder norms"
        yield (
            "decoder_norms",
            words,
            replace(sae, cfg=replace(cfg, rescale_by_dec_norm=other)),
        )
    d, n = sae.enc_dn.shape
    yield (
        "encoder_mismatch",
        "encoder read in the other memory order",
        replace(sae, enc_dn=sae.enc_dn.reshape(n, d).T),
    )
    order = sae.dec_nm.reshape(sae.dec_nm.shape[::-1]).T
    yield (
        "encoder_mismatch",
        "decoder read in the other memory order",
        replace(sae, dec_nm=order),
    )
    if cfg.norm == "none":
        yield (
            "norm_missing",
            "input layer-normalised",
            replace(sae, cfg=replace(cfg, norm="layer_norm")),
        )
        rescaled = replace(sae, cfg=replace(cfg, norm="constant_norm_rescale"))
        yield "norm_missing", "input rescaled to norm sqrt(d)", rescaled
    else:
        yield (
            "norm_missing",
            f"{cfg.norm} left out",
            replace(sae, cfg=replace(cfg, norm="none")),
        )


def _gains(sae: SAE, gain_d: jax.Array | None) -> Iterator[tuple[str, str, SAE]]:
    """Variants that read on the other side of a norm's gain; TransformerLens'
    `hook_normalized` is before it.
    """
    if gain_d is None or sae.cfg.norm != "none" or sae.cfg.subtract_b_dec:
        return
    for side, factor_d in (("before", 1 / gain_d), ("after", gain_d)):
        yield (
            "norm_gain",
            f"its input taken {side} the norm's gain (site_in=)",
            scaled_input(sae, factor_d),
        )
