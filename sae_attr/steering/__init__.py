"""Steering: interventions on chosen tokens, how strong they may be, and the rows of a
sweep over latents and strengths.
"""

from sae_attr.steering.interventions import MODES, TOKENS, intervention, scope, scoped
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
from sae_attr.steering.strengths import Chosen, choose_strengths, strength_grid
from sae_attr.steering.sweep import Done, sweep

__all__ = [
    "AWAY", "MODES", "NONE", "TOKENS", "TOWARD", "Chosen", "Cost", "Done", "Plan", "Row", "again", "batches",
    "choose_strengths", "intervention", "make_plan", "row_keys", "scope", "scoped", "stable_hash", "steer",
    "strength_grid", "sweep",
]  # fmt: skip
