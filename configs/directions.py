"""Directions of three narrow fine-tunes of an organism's chat model, each by nine rank-1
adapters: the mean difference of answers with and without the behaviour, the contrastive
gradient, the moment's best direction, what the fine-tune added; how alike they are, what
projecting them out of their own and of the other fine-tunes does, and what each adapter
reads.

    python -m experiments.directions --config=configs/directions.py --workdir=runs/directions

What the numbers mean: docs/directions.md.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.direction_settings import DirectionSettings
from sae_attr.lm.lora import Lora
from sae_attr.organism.recipe import Recipe, SAERecipe, TrainingRecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

INPUTS = {
    "study": "workdir of a finished case study, whose cases are compared instead of an "
    "organism's fine-tunes; run this from the folder that the study was run in.",
    "case": "of the study; empty for all.",
}
SETTINGS = {
    "": (INPUTS, DirectionSettings, MESH),
    "adapter": (Lora,),
    "training": (TrainingRecipe,),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns one seed, three fine-tunes, 2,048 latents."""
    config = config_of(DirectionSettings)
    config.organism = config_of(Recipe, leave_out=("seed",), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.update({"study": "", "case": "", "mesh": ""})
    return config
