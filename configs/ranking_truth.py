"""Which score of latents agrees with what steering and ablation really do, where every
latent can be tried.

    python -m experiments.ranking_truth --config=configs/ranking_truth.py --workdir=runs/truth

Builds the model organism for every seed and kind of fine-tune, samples pairs from the
studied model, scores every latent of its SAE in every way, and steers (both ways) and
mean-ablates every latent by exact next-word probabilities. Writes truth.csv, truth.json
and truth.txt (mean ± standard deviation over seeds). A run that was stopped goes on
where it was; --list shows every stage, the organisms' among them, and --only, --until
and --force select some.

Hardware: two CPU cores; three seeds take about half an hour, most of it steering.
"""

from ml_collections import ConfigDict

from sae_attr.organism.recipe import Recipe, SAERecipe
from sae_attr.study.score_ground_truth import EvaluationSettings

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

SETTINGS = {
    "": (EvaluationSettings, MESH),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns three seeds, both kinds, both behaviours."""
    config = config_of(EvaluationSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.mesh = ""
    return config
