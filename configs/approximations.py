"""Approximations of Δ beside exact joint mean ablation of the same latents: plain,
encoder-true, integrated, LRP rules, bf16.

    python -m experiments.approximations --config=configs/approximations.py \\
        --config.lm=MODEL --config.sae=SAE --config.pairs=PAIRS.jsonl --config.corpus=TEXTS --out=runs/approximations.json

Hardware: stories260K, its 48 pairs and the top-k dictionary of 512 (resid_post of layer
2 of 5): 3 minutes on 2 shared cores, half of it the per-latent form. Expect there, over
40 + 40 latents (Pearson / Spearman with exact ablation): plain 0.85 / 0.87, integrated
joint 0.83 / 0.84, integrated per latent 1.00 / 1.00, LRP's rule for norms 0.86 / 0.86,
all of LRP 0.52 / 0.57, encoder-true 0.06 / 0.19 (0.79 / 0.97 with ablation of the code
itself); bfloat16: Spearman 0.999 of all Δ.
"""

from ml_collections import ConfigDict

from . import attribute

COMPARE = {
    "latents": "best by plain Δ that are compared.",
    "random": "random latents of like firing rate beside them.",
    "rows": "completions, whole prompts at a time.",
    "steps": "points of integrated gradients.",
    "latent_steps": "points of its form for each latent alone.",
    "top": "whose overlap is printed.",
    "bfloat16": "also in that precision.",
}
SETTINGS = attribute.SETTINGS | {"compare": (COMPARE,)}


def get_config() -> ConfigDict:
    """Returns the attribution config, and under `compare` what is compared."""
    config = attribute.get_config()
    config.batch_size = 32
    config.corpus_tokens = 100_000
    config.compare = ConfigDict(
        {
            "latents": 40,  # best by plain Δ
            "random": 40,  # of like firing rate
            "rows": 96,  # completions, whole prompts at a time
            "steps": 10,  # of integrated gradients
            "latent_steps": 4,  # of the per-latent form
            "top": 20,  # whose overlap is printed
            "bfloat16": True,
        }
    )
    return config
