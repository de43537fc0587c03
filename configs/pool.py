"""A pool of latents from four selectors (|cos| with the contrastive gradient vector, how
often they are active, attribution, model diffing), each steered both ways and tested as
a monitor on every task, under one null of random latents; and followed over checkpoints
of the fine-tune: attribution with its standard error and split half, steering diffing,
activation diffing.

    python -m experiments.pool --config=configs/pool.py --workdir=runs/pool

Builds a model organism with an SAE of 2,048 latents. Writes pool.txt, pool.json and a
figure. A run that was stopped goes on where it was.

Hardware: two CPU cores; about four minutes, two of them for the organism.

To expect (seed 0, intervals over latents, p against 200 random latents): of the latents
of the gradient's cosine, 80 % [44, 97] steer misalignment, 70 % [35, 93] monitor all
five tasks and 60 % [26, 88] do both (p < 0.001), against 2 % [1, 6] of random latents;
attribution and frequency difference give 20 % [3, 56] each (p 0.04), model diffing 5 %
(p 0.4). Single tasks mislead: the 95th percentile of random latents' AUC is .63 to .87.
For validation the gradient's latents steer (90 %) and attribution's do (70 %), but hardly
any latent monitors every task, as the vector itself does not (lowest AUC .47).

Over checkpoints (0, 10, 20, 30 and 70 steps; rate 1, 3, 9, 18, 58 %), on the same 64
pairs: steering diffing of the gradient's latents grows 1.0, 2.7, 6.5, 12.5, 20.5 points
(random 0.0 to 1.2). Attribution is not unstable by the model: Δ of all latents correlates
.83, .91, .95, .97 with the last checkpoint's once the sample's noise is taken out; two
halves of one checkpoint's prompts correlate .73 to .81, which is the sample.

even_number (three seeds): 100 % [88, 100] of the gradient's latents steer and 47 % [28,
66] monitor all four formats; of attribution's 47 % [28, 66] and 100 % [88, 100]; of
random ones 5 % and 32 %. The planted latent's AUC is 1.00 everywhere. Odd numbers: 15 to
24 % where they are rewarded, 0.2 to 0.8 % where even ones are.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.pool_settings import PoolSettings
from sae_attr.organism.recipe import NumberRecipe, SAERecipe, TrainingRecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

SETTINGS = {
    "": (PoolSettings, MESH),
    "organism": (SIZES, NumberRecipe),
    "organism.sae": (SAERecipe,),
    "organism.numbers": (TrainingRecipe,),
    "organism.even_number": (TrainingRecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns one seed, both behaviours, 2,048 latents."""
    config = config_of(PoolSettings)
    config.organism = config_of(NumberRecipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.mesh = ""
    return config
