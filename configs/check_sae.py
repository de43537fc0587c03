"""Tests whether an SAE fits its model where it is said to fit: explained variance, L0,
loss, neighbouring sites, usual mistakes.

    python -m experiments.check_sae --config=configs/check_sae.py \\
        --config.lm=MODEL --config.sae=SAE --config.corpus=TEXTS [--config.site=layer2.resid_post] [--workdir=runs/check]

Exit status 1 where a finding is out of its band. Bands are in
`sae_attr/sae_check/verdict.py`.

Hardware: a laptop for models of a few million parameters (stories260K, 512 latents:
half a minute on 2 cores). Expect, for an SAE at its own site: explained variance and L0
within about 0.01 and 3 % of what its makers measured on such text.
"""

from ml_collections import ConfigDict

from sae_attr.sae_check import CheckBands

from . import attribute, config_of

SHARED = (
    "lm",
    "adapter",
    "sae",
    "sae_format",
    "sae_options",
    "corpus",
    "column",
    "split",
    "template_options",
    "site",
    "site_in",
    "exclude",
    "first_k",
    "outlier",
    "prepend_bos",
    "context",
    "corpus_context",
)
SHARED += ("mesh", "dtype", "resid_dtype")

SETTINGS = attribute.SETTINGS | {"bands": (CheckBands,)}


def get_config() -> ConfigDict:
    """Returns those keys of configs/attribute.py that the test needs, and the bands
    that may be set.
    """
    config = attribute.get_config()
    for name in set(config) - set(SHARED):
        del config[name]
    config.sae_check_tokens = 8192
    config.corpus_batch = 8
    config.bands = config_of(CheckBands, unset=True)
    return config
