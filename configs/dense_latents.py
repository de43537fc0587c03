"""Dense latents of a finished case study's SAE: which they are, what they stand for, and
whether the study's result holds without them.

    make demo
    python -m experiments.dense_latents --config=dense_latents --config.study=runs/demo \\
        --workdir=runs/dense --config.null_directions=2

    make real
    python -m experiments.dense_latents --config=dense_latents --config.study=runs/real \\
        --workdir=runs/dense_real --config.tokens=20000 --config.sample_tokens=8000

The study is read and not run again, so that its paths must hold: start from the folder
that it was run in. What the numbers mean: docs/dense_latents.md.

Hardware: two CPU cores. The organism's two cases and the test on planted data take 20
seconds; SmolLM2's two cases and that test one minute. Expect for the organism
5 of 2,048 latents dense, none with an antipode, at most one among the best 100 of any
ranking and none among those that are steered. For SmolLM2 14 and 16 of 4,096, none with
an antipode (s is .40 at most), one of them a position's; of the best 100 by
Δ-attribution 1 and 0 are dense, by Δ-activation 6, and every mean change without them
is within 1.1 points of that with them. On planted data: a pair with s above .98, none
without its span, the pair again without a random span.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.dense_settings import DenseSettings, RetrainingSettings

from . import config_of
from .attribute import MESH

INPUTS = {
    "study": "workdir of a finished case study, whose models, SAE, text and rankings "
    "are used; run this from the folder that the study was run in.",
    "case": "of the study; empty for all.",
}
SETTINGS = {
    "": (INPUTS, MESH, DenseSettings),
    "retraining": (RetrainingSettings,),
}


def get_config() -> ConfigDict:
    """Returns the settings with their defaults; `study` is to be given."""
    config = config_of(DenseSettings)
    config.update({"study": "", "case": "", "mesh": ""})
    return config
