"""Which score of latents agrees with what steering and ablation really do, where every latent can be tried.

    python -m experiments.ranking_truth --config=configs/ranking_truth.py --workdir=runs/truth

Builds the model organism for every seed and kind of fine-tune, samples pairs from the studied model, scores every latent of its
SAE in every way, and steers (both ways) and mean-ablates every latent by exact next-word probabilities. Writes truth.csv,
truth.json and truth.txt (mean ± standard deviation over seeds). A run that was stopped goes on where it was.

Hardware: two CPU cores; three seeds take about half an hour, most of it steering.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Three seeds, both kinds, both behaviours."""
    config = ConfigDict()
    config.seeds = (0, 1, 2)
    config.kinds = ("mixed", "confounded")  # of the misaligned fine-tune; validation has one kind
    config.behaviours = ("misalignment", "validation")
    config.organism = ConfigDict({"size": "full"})  # or miniature, for a test of the stages
    config.pair_prompts = 160  # asked, samples each; pairs are of those that gave both sides
    config.samples = 8
    config.pairs = 64
    config.strength_prompts = 18
    config.effect_prompts = 36
    config.grid = (0.2, 0.3, 0.4, 0.5)  # in mean lengths; at 0.7 hardly a latent leaves so small a model coherent
    config.budget = 0.10  # of coherence
    config.top = 20
    config.corpus_tokens = 30_000
    config.batch_size = 64
    config.mesh = ""
    return config
