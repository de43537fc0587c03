"""The transition of a rank-1 adapter over its fine-tune: where the path of B turns, where
the gradient's norm peaks and where the behaviour rises, with our Δ, directions and
steering on the same axis.

    python -m experiments.transition --config=transition --workdir=runs/transition

Builds a model organism, fine-tunes it eight times for each behaviour by an adapter of
rank 1 on one matrix, and keeps A and B of every step. Writes transition.txt,
transition.json and a figure. A run that was stopped goes on where it was.

Hardware: two CPU cores; two minutes for the organism, and two for the rest.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.transition_settings import EventSettings, TransitionSettings
from sae_attr.lm.lora import Lora
from sae_attr.organism.recipe import Recipe, SAERecipe, TrainingRecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

SETTINGS = {
    "": (TransitionSettings, MESH),
    "adapter": (Lora,),
    "training": (TrainingRecipe,),
    "events": (EventSettings,),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns one organism, both behaviours, eight fine-tunes of each."""
    config = config_of(TransitionSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.mesh = ""
    return config
