"""Which SAE latents caused a bad completion: Δ-attribution, checked by ablation and
steering (see README.md).

The ten names of a first notebook: `load_lm` `load_sae` `forward` `act_and_grad`
`attribute` `rank` `steer`, and `Site` `Replace` `Add`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_attr.attribution import act_and_grad, attribute, rank
    from sae_attr.hooks import Add, Replace, Site
    from sae_attr.lm.model import forward
    from sae_attr.lm.weights import load_lm
    from sae_attr.sae.formats import load_sae
    from sae_attr.steering import steer

__version__ = "0.1.0"

__all__ = [
    "Add",
    "Replace",
    "Site",
    "act_and_grad",
    "attribute",
    "forward",
    "load_lm",
    "load_sae",
    "rank",
    "steer",
]

_HOMES = {
    "Add": "sae_attr.hooks",
    "Replace": "sae_attr.hooks",
    "Site": "sae_attr.hooks",
    "act_and_grad": "sae_attr.attribution",
    "attribute": "sae_attr.attribution",
    "forward": "sae_attr.lm.model",
    "load_lm": "sae_attr.lm.weights",
    "load_sae": "sae_attr.sae.formats",
    "rank": "sae_attr.attribution",
    "steer": "sae_attr.steering",
}


def __getattr__(name: str) -> Any:
    """Imports one of the ten names when it is first used: `--help` of an experiment,
    and whatever needs a single room of the library, wait for no other.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_attr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
