"""Which latents of a crosscoder belong to one of its two models: classes by the relative
norm of their decoder rows (`sae.two_models`), and Latent Scaling (arXiv:2504.02922),
which tells latents that are specific from those that only look it.

    β(y)   = Σ_t f (d_ft · y) / (Σ_t f² |d_ft|²)      least squares of y by f · d_ft
    ν_ε    = β(ε_base) / β(ε_ft),   ε_m = x_m - (x̂_m - f d_m)
    ν_r    = β(x̂_base) / β(x̂_ft)

A high ν_ε is complete shrinkage: the base model has the latent's direction, and the
crosscoder left it out of the reconstruction. A high ν_r is latent decoupling: the base
model has it in other latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.sae.config import SAEConfig
from sae_attr.sae.metrics import bare
from sae_attr.sae.model import SAE, decode, encode
from sae_attr.sae.two_models import (
    BASE,
    FINE_TUNED,
    check_two_models,
    ratio,
    stream_rows,
)

SHARED, FT_ONLY, BASE_ONLY, OTHER = "shared", "ft_only", "base_only", "other"


@dataclass(frozen=True)
class SpecificitySettings:
    """Sets where latents are called shared, or of one model; the published thresholds.

    Args:
      ft_only, base_only: Δ_norm above, and below.
      shared: Δ_norm between.
      error, reconstruction: ν_ε and ν_r below which a latent of the fine-tuned model
        is truly its own.
    """

    ft_only: float = 0.9
    base_only: float = 0.1
    shared: tuple[float, float] = (0.4, 0.6)
    error: float = 0.2
    reconstruction: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.shared
        if not 0 <= self.base_only <= low <= high <= self.ft_only <= 1:
            raise ValueError(
                f"base_only={self.base_only}, shared={self.shared}, "
                f"ft_only={self.ft_only}: give numbers in 0..1 that rise in this order"
            )


@dataclass(frozen=True, eq=False)
class LatentScaling:
    """Latent Scaling of every latent, float64; NaN where a latent never fired or has no
    row in the fine-tuned model.

    Args:
      error_mn, reconstruction_mn: β of the error and of the reconstruction, of the base
        model and of the fine-tuned one.
      active_n: tokens on which each latent fired.
      tokens: how many there were.
    """

    error_mn: np.ndarray
    reconstruction_mn: np.ndarray
    active_n: np.ndarray
    tokens: int

    @property
    def nu_error_n(self) -> np.ndarray:
        """ν_ε of every latent."""
        return ratio(self.error_mn[BASE], self.error_mn[FINE_TUNED])

    @property
    def nu_reconstruction_n(self) -> np.ndarray:
        """ν_r of every latent."""
        return ratio(self.reconstruction_mn[BASE], self.reconstruction_mn[FINE_TUNED])


def latent_classes(
    norm_n: np.ndarray, settings: SpecificitySettings
) -> dict[str, np.ndarray]:
    """Returns class -> bool `[n]`, by Δ_norm alone; each latent is in one class."""
    low, high = settings.shared
    classes = {
        FT_ONLY: norm_n > settings.ft_only,
        SHARED: (norm_n >= low) & (norm_n <= high),
        BASE_ONLY: norm_n < settings.base_only,
    }
    in_any_n = np.any(list(classes.values()), axis=0)
    return {**classes, OTHER: ~in_any_n}


def truly_specific(
    norm_n: np.ndarray, scaling: LatentScaling, settings: SpecificitySettings
) -> np.ndarray:
    """Returns which latents of the fine-tuned model alone are neither complete shrinkage
    nor latent decoupling, bool `[n]`; one that never fired is not.
    """
    # A comparison with NaN is False.
    is_own_n = scaling.nu_error_n < settings.error
    is_own_n &= scaling.nu_reconstruction_n < settings.reconstruction
    return is_own_n & (norm_n > settings.ft_only)


# ---- one pass over tokens ------------------------------------------------------------


class _Sums(NamedTuple):
    """Sums over some tokens: Σ f², Σ f (d_ft · e_m), Σ f (d_ft · x̂_m), tokens that fired; e is
    the error x - x̂.
    """

    squares_n: Any
    error_mn: Any
    reconstruction_mn: Any
    active_n: Any


def latent_scaling(sae: SAE, batches: Iterable[Any]) -> LatentScaling:
    """Measures β of the four targets in one pass; only active latents are multiplied, and
    memory does not depend on the number of tokens.

    Args:
      sae: a crosscoder of two models, the base model's stream first.
      batches: activations of both models on the same tokens, `[b, 2, d]`; batches of
        one size share a compiled program.

    Raises:
      ValueError: no crosscoder of two models (`check_two_models`), activations of
        another shape, or no token.
    """
    check_two_models(sae.cfg)
    plain = bare(sae)
    sums, tokens = None, 0
    for x_bmd in batches:
        x_bmd = jnp.asarray(x_bmd)
        _check_batch(sae.cfg, x_bmd.shape)
        codes_bn, most = _codes(plain, x_bmd)
        # A power of two: sizes of the loop below are few.
        slots = 1 << max(0, int(most) - 1).bit_length()
        part = _batch_sums(plain, x_bmd, codes_bn, slots=min(slots, sae.cfg.n_latents))
        # In float64: millions of tokens are added.
        wide = _Sums(*(np.asarray(value, np.float64) for value in part))
        sums = wide if sums is None else _Sums(*map(np.add, sums, wide))
        tokens += len(x_bmd)
    if sums is None or not tokens:
        raise ValueError("no token to scale latents on; give more text")
    return _scaling(sae, sums, tokens)


def _check_batch(cfg: SAEConfig, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[1:] != (2, cfg.d_in):
        raise ValueError(
            f"a batch has shape {shape}, but the crosscoder reads [tokens, 2, "
            f"{cfg.d_in}]; stack the base model's activations and the fine-tuned one's"
        )


@jax.jit
def _codes(sae: SAE, x_bmd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns codes, and the most that are active on one token."""
    codes_bn = encode(sae, x_bmd)
    return codes_bn, jnp.max(jnp.sum(codes_bn != 0, axis=1))


@partial(jax.jit, static_argnames="slots")
def _batch_sums(
    sae: SAE, x_bmd: jax.Array, codes_bn: jax.Array, *, slots: int
) -> _Sums:
    n, d = sae.cfg.n_latents, sae.cfg.d_out
    tuned_nd = sae.dec_nm.reshape(n, 2, d)[:, FINE_TUNED]
    recon_bmd = decode(sae, codes_bn)
    error_bmd = x_bmd - recon_bmd
    _, latents_bk = jax.lax.top_k(jnp.abs(codes_bn), slots)
    values_bk = jnp.take_along_axis(codes_bn, latents_bk, axis=1)

    def add(sums: _Sums, slot: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        value_b, latent_b = slot
        row_bd = tuned_nd[latent_b]
        dot = partial(jnp.einsum, "bd,bmd->mb", row_bd, precision="highest")
        error_mb = value_b * dot(error_bmd)
        recon_mb = value_b * dot(recon_bmd)
        fired_b = (value_b != 0).astype(jnp.float32)
        return _Sums(
            sums.squares_n.at[latent_b].add(value_b * value_b),
            sums.error_mn.at[:, latent_b].add(error_mb),
            sums.reconstruction_mn.at[:, latent_b].add(recon_mb),
            sums.active_n.at[latent_b].add(fired_b),
        ), None

    zero_n, zero_mn = jnp.zeros(n), jnp.zeros((2, n))
    start = _Sums(zero_n, zero_mn, zero_mn, zero_n)
    # A slot at a time: what is gathered at once is [b, d], not [b, slots, d].
    return jax.lax.scan(add, start, (values_bk.T, latents_bk.T))[0]


def _scaling(sae: SAE, sums: _Sums, tokens: int) -> LatentScaling:
    """Returns β from the sums over all tokens."""
    rows_mnd = stream_rows(sae)
    tuned_nd = rows_mnd[FINE_TUNED]
    length_n = sums.squares_n * np.sum(tuned_nd**2, axis=1)
    # ε leaves the latent's own part f d_m in: it adds d_ft · d_m for every f².
    own_mn = np.einsum("nd,mnd->mn", tuned_nd, rows_mnd) * sums.squares_n
    return LatentScaling(
        error_mn=ratio(sums.error_mn + own_mn, length_n),
        reconstruction_mn=ratio(sums.reconstruction_mn, length_n),
        active_n=sums.active_n.astype(np.int64),
        tokens=tokens,
    )
