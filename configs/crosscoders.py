"""Crosscoders (BatchTopK and L1) and an SAE of the difference, on an organism's misaligned
fine-tune and the chat model before it: which latents are the fine-tune's own, by the
norms of their rows and by Latent Scaling; what they explain of the fine-tuned model's
predictions; and what steering with them does, beside random latents.

    python -m experiments.crosscoders --config=configs/crosscoders.py --workdir=runs/crosscoders

Builds a model organism. Writes crosscoders.txt, crosscoders.json and a figure. A run that
was stopped goes on where it was. What the numbers mean: docs/crosscoders.md.

Hardware: two CPU cores; a minute for the organism, and one minute of both cores for the
rest (94 seconds in all). Expect no latent of the fine-tune's own (Δ_norm .30 to .67),
explained variances of .985, .967 and .982, a KL in answers of .099, and .064 with the
half of low ν of the 64 latents of largest Δ_norm; 1 to 4 of 20 latents beyond random.
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
