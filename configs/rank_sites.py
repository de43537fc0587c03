"""Ranks the latents of several SAEs (layers, or MLP and attention outputs) together,
from one backward pass a completion.

    python -m experiments.rank_sites --config=configs/rank_sites.py --config.lm=MODEL --config.saes=SAE1,SAE2 \\
        --config.pairs=PAIRS.jsonl --config.corpus=TEXTS --workdir=runs/sites

Scores of all sites are in nats per token and stand in one order; one cause may appear
at several layers, so they must not be added up. `error` in the place of a latent is
what the SAE of that site does not reconstruct.

Hardware: as configs/attribute.py; activations and gradients of all sites are in memory,
tokens × sites × 2 d numbers. Expect, for two SAEs of stories260K: two minutes on 2 cores.
"""

from ml_collections import ConfigDict

from . import attribute

SAES = {
    "saes": "paths or addresses, separated by commas; SAE?site_in=layer2.mlp_in overrides what a file says."
}
SETTINGS = attribute.SETTINGS | {"": (SAES, *attribute.SETTINGS[""])}

UNUSED = (
    "sae",
    "site",
    "site_in",
    "gradient_steps",
    "dense_limit",
    "ablate",
    "ablate_rows",
    "ablate_positions",
)


def get_config() -> ConfigDict:
    """Returns the attribution config with `saes` in the place of `sae`, less what
    concerns a single one.
    """
    config = attribute.get_config()
    for name in UNUSED:
        del config[name]
    config.saes = ""
    config.preset = "faithful"
    return config
