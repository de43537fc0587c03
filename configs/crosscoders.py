"""Crosscoders (BatchTopK and L1) and an SAE of the difference, on an organism's misaligned
fine-tune and the chat model before it: which latents are the fine-tune's own, by the
norms of their rows and by Latent Scaling; what they explain of the fine-tuned model's
predictions; and what steering with them does, beside random latents.

    python -m experiments.crosscoders --config=configs/crosscoders.py --workdir=runs/crosscoders

Builds a model organism. Writes crosscoders.txt, crosscoders.json and a figure. A run that
was stopped goes on where it was. What the numbers mean: docs/crosscoders.md.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.crosscoder_settings import CrosscoderSettings
from sae_attr.analyses.latent_scaling import SpecificitySettings
from sae_attr.analyses.planted_models import PlantedSettings
from sae_attr.organism.recipe import Recipe, SAERecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

SETTINGS = {
    "": (CrosscoderSettings, MESH),
    "specificity": (SpecificitySettings,),
    "planted": (PlantedSettings,),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns one seed and 512 latents."""
    config = config_of(CrosscoderSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.mesh = ""
    return config
