"""The demo: attribution on a miniature with one planted cause (experiments/make_miniature.py), found first among 256 latents.

    make demo

which is

    python -m experiments.make_miniature --out=runs/demo/miniature
    python -m experiments.attribute --config=configs/demo.py --workdir=runs/demo

Hardware: any; 40 seconds on 2 cores. Expect: latent 77 at rank 1 in both presets.
"""

from ml_collections import ConfigDict

from configs import attribute


def get_config() -> ConfigDict:
    """The attribution config with the miniature's files filled in."""
    config = attribute.get_config()
    config.lm = "runs/demo/miniature/model"
    config.sae = "runs/demo/miniature/sae"
    config.pairs = "runs/demo/miniature/pairs.jsonl"
    config.corpus = "runs/demo/miniature/corpus.json"
    # The 256 random directions of the miniature's SAE mean something only as directions: they reconstruct nothing, and the
    # self-test rightly says so.
    config.trust_sae = True
    config.top = 30
    config.batch_size = 32
    config.corpus_batch = 32
    return config
