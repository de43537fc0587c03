"""Steers chosen latents of an SAE, or chosen vectors of a file, and prints what the model
says beside what it says by itself.

    python -m experiments.steer --config=configs/steer.py --config.lm=MODEL --config.sae=SAE --config.latents=77,12 \\
        --config.strengths=-1,1 --config.prompts=PROMPTS.jsonl --workdir=runs/steer

MODEL and SAE as for configs/attribute.py; PROMPTS a JSONL with prompt (a string or
messages) and optionally id. Instead of the SAE `--config.vectors=FILE` takes directions
from a .safetensors or .npz file ([d], [n, d], or several of them, counted in the order
of their names) and needs `--config.site`.

One unit of strength is the mean length of the site's activations over the corpus, or
over the prompts where none is given. Hardware: a laptop for models of a few million
parameters (stories260K, 2 latents, 2 strengths, 4 prompts, 64 tokens: 15 seconds on 2
cores); one accelerator holds models up to its memory; `mesh="data=2,model=4"` spreads a
larger one.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.lm.draw import Sampling
from sae_attr.sae.formats.parts import LoadOptions
from sae_attr.steering import INTERVENTIONS
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.steering_settings import SteerSettings

from . import attribute, config_of
from .attribute import MESH, TEMPLATE

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
)
SHARED += (
    "exclude",
    "first_k",
    "outlier",
    "prepend_bos",
    "context",
    "corpus_tokens",
    "dtype",
    "resid_dtype",
    "seed",
)


SAMPLING = {
    "stop_ids": "a row ends with the first of these that it draws; None: what the model's files say ends a turn."
}
MODES = "; ".join(f"{mode} {way.meaning}" for mode, way in INTERVENTIONS.items())
IN_NORMS = ", ".join(mode for mode, way in INTERVENTIONS.items() if way.in_norms)
TEXTS = {
    "corpus": "ordinary text for the unit of strength; None: the prompts.",
    "mode": f"{MODES}.",
    "unit": f"None: the mean length at the site ({IN_NORMS}), 1 (other modes).",
}
SETTINGS = {
    "": (
        TEXTS,
        SteerSettings,
        Settings,
        MESH,
    ),
    "sampling": (SAMPLING, Sampling),
    "sae_options": (LoadOptions,),
    "template_options": (TEMPLATE,),
}


def get_config() -> ConfigDict:
    """Defaults of a sweep, with the inputs left to the command line."""
    config, shared = config_of(SteerSettings), attribute.get_config()
    for name in SHARED:
        if name in shared:
            config[name] = (
                shared.get_ref(name) if shared[name] is None else shared[name]
            )
    config.corpus_tokens = 100_000
    config.sampling = config_of(Sampling, leave_out=("stop_ids",))
    config.sampling.stop_ids = placeholder(tuple)
    config.mesh = ""
    return config
