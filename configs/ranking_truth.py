"""Which score of latents agrees with what steering and ablation really do, where every
latent can be tried.

    python -m experiments.ranking_truth --config=configs/ranking_truth.py --workdir=runs/truth

Builds the model organism for every seed and kind of fine-tune, samples pairs from the
studied model, scores every latent of an SAE of 256 and of one of 2,048 latents in every
way, and steers (both ways) and mean-ablates every latent by exact next-word
probabilities. Writes truth.csv, truth.json and truth.txt: means over seeds, with
intervals by a bootstrap over seeds and prompts. A run that was stopped goes on where it
was; --list shows every stage, the organisms' among them, and --only, --until and
--force select some. docs/ranking_truth.{json,txt} are those of

    python -m experiments.ranking_truth --config=configs/ranking_truth.py \\
        --workdir=runs/truth --config.publish=docs/ranking_truth

Hardware: one CPU core. On a busy machine the table took 67 minutes, half of them exact
effects, with the organisms of three of the five seeds made before, which are another six
minutes of a core. Expect of 2,048 latents, mean over cases, the best 20 by the gradient to lower
the rate by 13.5 points when steered away (possible: 16.1), and the best 20 by Δ (both,
all tokens) by 10.6 points at their mean (possible: 11.3).
"""

from ml_collections import ConfigDict

from sae_attr.organism.recipe import Recipe, SAERecipe
from sae_attr.study.evaluation import EvaluationSettings

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

PUBLISH = {"publish": 'begins the paths of a second .json and .txt; "" for none.'}
SETTINGS = {
    "": (EvaluationSettings, MESH, PUBLISH),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns five seeds, three kinds, both behaviours, both sizes."""
    config = config_of(EvaluationSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.mesh = ""
    config.publish = ""
    return config
