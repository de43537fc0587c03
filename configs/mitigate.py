"""How far the behaviour falls when the first latents of a finished case study are
suppressed together, and what that costs.

    python -m experiments.case_study --config=configs/organism.py --workdir=runs/sparse --config.organism.sae.latents=2048 \\
        --config.effects_by=exact "--config.methods=('delta_attribution','recommended','gradient','delta_activation')"
    python -m experiments.mitigate --config=mitigate --config.study=runs/sparse --workdir=runs/mitigate

    make real
    python -m experiments.mitigate --config=mitigate --config.study=runs/real --config.case=as_it_is \\
        --workdir=runs/mitigate_real --config.draws=3 --config.text_tokens=600 --config.layer_tokens=2000

The study is read and not run again, so that its paths must hold: start from the folder
that it was run in. What the numbers mean: docs/mitigation.md.

Hardware: two CPU cores. Not timed on idle ones: the organism's two cases took 20 minutes
at the lowest priority beside a dozen other runs. Expect there, with one seed: of false
beliefs 71.7 % are validated [71.3, 72.1]; with the first latent by cause set to its mean
39.0 % [38.0, 40.0], with two 24.7 % [23.6, 25.8] at 1 % more perplexity, with eight by
lever 58.4 %, at random 72.6 %. Misaligned answers 55.0 % [49.6, 60.5]; steered against
sixteen latents by lever 34.3 % [28.3, 40.5], at random 53.0 %. The mean-difference
direction projected out at every layer: 72.3 % and 58.7 %, no lower than random ones.
In SmolLM2 as it is, in 4 minutes: four latents by cause set to their mean take the share of
yes from 21.5 % [18.9, 24.0] to 4.4 % [3.9, 4.9], four steered against by lever to .6 %
[.6, .7]; that of yes to true beliefs from 23.9 % to 6.0 % and .8 %.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.mitigation_settings import MitigationSettings

from . import config_of
from .attribute import MESH

INPUTS = {
    "study": "workdir of a finished case study, whose rankings, models, SAE and prompts "
    "are used; run this from the folder that the study was run in.",
    "case": "of the study; empty for all.",
}
SETTINGS = {"": (INPUTS, MESH, MitigationSettings)}


def get_config() -> ConfigDict:
    """Returns the settings with their defaults; `study` is to be given."""
    config = config_of(MitigationSettings)
    config.update({"study": "", "case": "", "mesh": ""})
    return config
