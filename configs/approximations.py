"""Approximations of Δ beside exact joint mean ablation of the same latents: plain, encoder-true, integrated, LRP rules, bf16.

    python -m experiments.approximations --config=configs/approximations.py \\
        --config.lm=MODEL --config.sae=SAE --config.pairs=PAIRS.jsonl --config.corpus=TEXTS --out=runs/approximations.json

Hardware: stories260K with its 48 pairs and a dictionary of 512: about MINUTES on 2 cores. Expect there: NUMBERS
"""

from ml_collections import ConfigDict

from configs import attribute


def get_config() -> ConfigDict:
    """The attribution config, and under `compare` what is compared."""
    config = attribute.get_config()
    config.batch_size = 32
    config.corpus_tokens = 100_000
    config.compare = ConfigDict(
        {
            "latents": 40,  # best by plain Δ
            "random": 40,  # of like firing rate
            "rows": 96,  # completions, whole prompts at a time
            "steps": 10,  # of integrated gradients
            "latent_steps": 10,  # of the per-latent form
            "top": 20,  # whose overlap is printed
            "bfloat16": True,
        }
    )
    return config
