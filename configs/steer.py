"""Steer chosen latents of an SAE, or chosen vectors of a file, and print what the model says beside what it says by itself.

    python -m experiments.steer --config=configs/steer.py --config.lm=MODEL --config.sae=SAE --config.latents=77,12 \\
        --config.strengths=-1,1 --config.prompts=PROMPTS.jsonl --workdir=runs/steer

MODEL and SAE as for configs/attribute.py; PROMPTS a JSONL with prompt (a string or messages) and optionally id. Instead of the
SAE `--config.vectors=FILE` takes directions from a .safetensors or .npz file ([d], [n, d], or several of them, counted in the
order of their names) and needs `--config.site`.

One unit of strength is the mean length of the site's activations over the corpus, or over the prompts where none is given.
Hardware: a laptop for models of a few million parameters (stories260K, 2 latents, 2 strengths, 4 prompts, 64 tokens: 15 seconds
on 2 cores); one accelerator holds models up to its memory; `mesh="data=2,model=4"` spreads a larger one.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.attribute import SAE_OPTIONS
from sae_attr.chat import OPTIONS


def get_config() -> ConfigDict:
    """Defaults of a sweep, with the inputs left to the command line."""
    config = ConfigDict()
    config.lm = placeholder(str)
    config.adapter = placeholder(str)
    config.sae = placeholder(str)
    config.sae_format = "auto"
    config.sae_options = ConfigDict({name: placeholder(kind) for name, kind in SAE_OPTIONS.items()})
    config.vectors = placeholder(str)  # instead of an SAE; scaled to unit length
    config.latents = placeholder(tuple)  # absent: all vectors of the file
    config.prompts = placeholder(str)
    config.corpus = placeholder(str)  # ordinary text for the unit of strength; absent: the prompts
    config.column = "text"  # of the corpus: the field that holds the text or the messages
    config.split = placeholder(str)  # of a corpus folder with several
    config.template_options = ConfigDict({name: placeholder(kind) for name, kind in OPTIONS.items()})

    config.site = placeholder(str)  # absent: the one that the SAE's file names
    config.mode = "add"  # add | set | project_out | clamp
    config.strengths = (-1.0, 1.0)
    config.unit = placeholder(float)  # absent: the mean length at the site (add, set), 1 (project_out, clamp)
    config.tokens = ("all",)  # of all, prompt, generated
    config.skip = 0  # first positions of a row that are never changed; 1 spares BOS

    config.samples = 1
    config.temperature = 1.0
    config.top_p = 1.0
    config.top_k = 0
    config.max_new = 64
    config.min_new = 0
    config.stop_ids = placeholder(tuple)  # absent: all that the model's files, tokenizer and template say

    config.first_k = placeholder(int)
    config.outlier = placeholder(float)  # times the median norm; 0 keeps all; absent: 10, or as the SAE was trained
    config.exclude = placeholder(tuple)  # positions that do not count in the unit, of "bos", "special"
    config.prepend_bos = placeholder(bool)
    config.context = placeholder(int)
    config.batch_size = 16
    config.corpus_tokens = 100_000
    config.mesh = ""
    config.dtype = "float32"
    config.resid_dtype = placeholder(str)
    config.seed = 0
    return config
