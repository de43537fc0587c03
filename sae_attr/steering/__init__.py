"""Steering: interventions on chosen tokens, how strong they may be, and the rows of a
sweep over latents and strengths.
"""

from sae_attr.steering.interventions import (
    INTERVENTIONS,
    TOKENS,
    Intervention,
    intervention,
    scope,
)
from sae_attr.steering.plan import (
    AWAY,
    NO_LATENT,
    TOWARD,
    UNSTEERED,
    Condition,
    Plan,
    SweepRow,
    every_condition,
    row_keys,
)
from sae_attr.steering.steered import steer
from sae_attr.steering.strengths import StrengthChoice, choose_strengths
from sae_attr.steering.sweep import SampledRow, Sampler, sample_batches, sample_rows

__all__ = [
    "AWAY", "INTERVENTIONS", "NO_LATENT", "TOKENS", "TOWARD", "UNSTEERED", "Condition", "Intervention", "Plan",
    "SampledRow", "Sampler", "StrengthChoice", "SweepRow", "choose_strengths", "every_condition", "intervention",
    "row_keys", "sample_batches", "sample_rows", "scope", "steer",
]  # fmt: skip
