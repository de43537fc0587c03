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
    NONE,
    TOWARD,
    Cost,
    Plan,
    Row,
    again,
    batches,
    make_plan,
    row_keys,
    stable_hash,
)
from sae_attr.steering.steered import steer
from sae_attr.steering.strengths import StrengthChoice, choose_strengths
from sae_attr.steering.sweep import Done, sweep

__all__ = [
    "AWAY", "INTERVENTIONS", "NONE", "TOKENS", "TOWARD", "Cost", "Done", "Intervention", "Plan", "Row",
    "StrengthChoice", "again", "batches", "choose_strengths", "intervention", "make_plan", "row_keys", "scope",
    "stable_hash", "steer", "sweep",
]  # fmt: skip
