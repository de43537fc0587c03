"""Directions of three narrow fine-tunes of an organism's chat model, each by nine rank-1
adapters: the mean difference of answers with and without the behaviour, the contrastive
gradient, the moment's best direction, what the fine-tune added; how alike they are, what
projecting them out of their own and of the other fine-tunes does, and what each adapter
reads.

    python -m experiments.directions --config=configs/directions.py --workdir=runs/directions

    make real
    python -m experiments.directions --config=configs/directions.py --config.study=runs/real \\
        --config.draws=3 --config.corpus_tokens=2000 --config.batch_size=8 --workdir=runs/directions_real

The first makes a model organism (a minute and a half of a core) and its fine-tunes. The
second reads a finished study, whose paths must hold: start from the folder that it was
run in. What the numbers mean: docs/directions.md.

Hardware: two CPU cores; beside the organism 36 seconds of a core. Expect with seed 0: of
medical advice 58.6 % [53.8, 64.1] is harmful, with its own mean difference projected out
at every layer 50.1 % [43.6, 57.0], with that of the financial fine-tune 51.0 %, with
random ones 50 to 65 %; with what the fine-tune added 33.9 % [27.9, 40.3], with what the
financial one added 37.4 %. The mean differences of the two have a cosine of .93 to .98,
with that of the sycophantic one −.12 to −.54.
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
