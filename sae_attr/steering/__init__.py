"""Steering: interventions on chosen tokens, how strong they may be, and what a sweep over latents consists of."""

from sae_attr.steering.interventions import MODES, TOKENS, intervention, scoped
from sae_attr.steering.steered import steer

__all__ = ["MODES", "TOKENS", "intervention", "scoped", "steer"]
