"""Ranks every latent of an SAE by what it did to completions (Δ-attribution, faithful
preset).

    python -m experiments.attribute --config=configs/attribute.py \\
        --config.lm=MODEL --config.sae=SAE --config.pairs=PAIRS.jsonl --config.corpus=TEXTS --workdir=runs/first

MODEL is a Hugging Face folder or hub id, SAE a folder, file or hf:// address in any
layout that docs/inputs.md lists, PAIRS a JSONL with prompt, positive and negative, TEXTS a
.json, .jsonl or .txt of ordinary text. Every field of
`sae_attr.study.attribution_settings.Settings` is a key; `--help` lists them with their
defaults and meaning.

Hardware: a laptop for models of a few million parameters (stories260K, 48 pairs, 512
latents: about a minute on 2 cores); one accelerator holds models up to its memory;
`mesh="data=2,model=4"` spreads a larger one.
"""

from ml_collections import ConfigDict

from sae_attr.sae.formats.parts import LoadOptions
from sae_attr.study.attribution_settings import Settings
from sae_attr.text.chat import OPTIONS

from . import any_keys, config_of

MESH = {
    "mesh": '"data=2,model=4" spreads rows over data and heads, widths and latents over model; "" puts every device on data.'
}
TEMPLATE = {
    "date": "YYYY-MM-DD that the template writes for today; None: the day of the workdir's first run.",
    "enable_thinking": "of Qwen 3 and its like.",
    "thinking": "of Granite, DeepSeek and their like.",
    "reasoning_effort": "of gpt-oss.",
    "date_string": "of Llama 3.",
    "tools": "JSON text of a list, or a .json file.",
    "documents": "JSON text of a list, or a .json file.",
    "more": "JSON text of an object with further options; single ones as --config.template_options.NAME=VALUE too.",
}
SETTINGS = {
    "": (Settings, MESH),
    "sae_options": (LoadOptions,),
    "template_options": (TEMPLATE,),
}


def get_config() -> ConfigDict:
    """Defaults of `Settings`, with the inputs left to the command line."""
    config = config_of(
        Settings, sae_options=config_of(LoadOptions), template_options=any_keys(OPTIONS)
    )
    config.mesh = ""
    return config
