"""The limits that an SAE must keep to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GAINS = {
    "scale_off": 0.05, "scales_apart": 0.05, "wrong_site": 0.03, "decoder_norms": 0.03, "norm_missing": 0.025,
    "encoder_mismatch": 0.02, "norm_gain": 0.02, "gate_lost": 0.01, "b_dec_input": 0.01,
    "gate_norms": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class CheckBands:
    """Limits of the SAE check; the defaults let every correctly loaded SAE of the tests'
    fixtures pass.

    Args:
      min_explained_variance: at the declared site, non-special tokens.
      gains: by code, how much more variance a neighbouring site or a variant must
        explain to name a mistake. The wrong setting of b_dec never gains.
      shrinkage: the gain for code scales_apart where the gate is a plain relu: an L1
        penalty shrinks codes, so that scaling them gains for a correct SAE too (0.055
        for one of the tests' fixtures).
      min_scaled: explained variance that a change of scale must reach to count: some
        scale improves any wrong SAE a little.
      tie: findings this close to the best one are all named.
      l0_factor: L0 may be this many times the stated one, or that fraction of it.
        Training aims (`target_l0`) are missed by factors of almost 2.
      max_below_stated: how far explained variance may lie below the stated one.
      min_ce_recovered: against mean ablation; not required where ablation costs less
        than `min_damage` nats.
      min_cosine: median cosine of encoder and decoder of a latent.
      max_dead: share of latents without a firing, required only if tokens x L0 is
        `dead_tokens` times the latents.
      max_norm_ratio: largest decoder norm over the median one; only a warning.
      max_special_ratio: squared error on special tokens over that on others, where the
        run counts special tokens.
    """

    min_explained_variance: float = 0.5
    gains: Mapping[str, float] = field(default_factory=lambda: dict(GAINS))
    shrinkage: float = 0.12
    min_scaled: float = 0.7
    tie: float = 0.01
    l0_factor: float = 2.5
    max_below_stated: float = 0.05
    min_ce_recovered: float = 0.5
    min_damage: float = 0.05
    min_cosine: float = 0.1
    max_dead: float = 0.95
    dead_tokens: float = 20.0
    max_norm_ratio: float = 10.0
    max_special_ratio: float = 3.0
