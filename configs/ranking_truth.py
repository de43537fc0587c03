"""Which score of latents agrees with what steering and ablation really do, where every
latent can be tried.

    python -m experiments.ranking_truth --config=configs/ranking_truth.py --workdir=runs/truth

Builds the model organism for every seed and kind of fine-tune, samples pairs from the
studied model, scores every latent of its SAE in every way, and steers (both ways) and
mean-ablates every latent by exact next-word probabilities. Writes truth.csv, truth.json
and truth.txt (mean ± standard deviation over seeds). A run that was stopped goes on
where it was.

Hardware: two CPU cores; three seeds take about half an hour, most of it steering.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from sae_attr.organism.recipe import Recipe, SAERecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS


@dataclass(frozen=True)
class RankingTruth:
    """Which organisms, and how much is asked of them.

    Args:
      seeds: an organism each.
      kinds: of the misaligned fine-tune (mixed, calm, confounded); validation has one
        kind.
      behaviours: of misalignment, validation.
      pair_prompts: prompts that are asked; pairs are of those that gave both sides.
      samples: completions of each.
      pairs: at most so many.
      strength_prompts, effect_prompts: at most so many prompts of either split.
      grid: strengths that are tried, in mean lengths; at 0.7 hardly a latent leaves so
        small a model coherent.
      budget: of coherence, as a share.
      top: latents whose recall and mean effect are told.
      corpus_tokens: of ordinary text, for means and firing rates.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = ("mixed", "confounded")
    behaviours: tuple[str, ...] = ("misalignment", "validation")
    pair_prompts: int = 160
    samples: int = 8
    pairs: int = 64
    strength_prompts: int = 18
    effect_prompts: int = 36
    grid: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5)
    budget: float = 0.10
    top: int = 20
    corpus_tokens: int = 30_000
    batch_size: int = 64


SETTINGS = {
    "": (RankingTruth, MESH),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns three seeds, both kinds, both behaviours."""
    config = config_of(RankingTruth)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.mesh = ""
    return config
