"""Rank every latent of an SAE by what it did to completions (Δ-attribution, faithful preset).

    python -m experiments.attribute --config=configs/attribute.py \\
        --config.lm=MODEL --config.sae=SAE --config.pairs=PAIRS.jsonl --config.corpus=TEXTS --workdir=runs/first

MODEL is a Hugging Face folder or hub id, SAE a folder, file or hf:// address in any layout that the README lists, PAIRS a JSONL
with prompt, positive and negative, TEXTS a .json, .jsonl or .txt of ordinary text. What each key means stands in
`sae_attr/attribution/settings.py`.

Hardware: a laptop for models of a few million parameters (stories260K, 48 pairs, 512 latents: about a minute on 2 cores);
one accelerator holds models up to its memory; `mesh="data=2,model=4"` spreads a larger one.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.chat import OPTIONS

SAE_OPTIONS = {
    "norm_scale": float, "norm_scale_out": float, "gate": str, "k": int, "threshold": float, "dict_class": str, "site": str,
    "layer": int, "model": str, "code_normalization": str, "pre_bias": bool, "centre": bool, "affine": str,
    "subtract_b_dec": bool, "orientation": str, "mean": str, "norm": str, "decoder_norm": str, "inside": str, "ignore": str,
}  # fmt: skip


def get_config() -> ConfigDict:
    """Defaults of `Settings`, with the inputs left to the command line."""
    config = ConfigDict()
    config.lm = placeholder(str)
    config.adapter = placeholder(str)  # a PEFT LoRA adapter of lm
    config.lm_aligned = placeholder(str)  # second model of Δ-activation; absent: that rival is skipped, and said
    config.sae = placeholder(str)
    config.sae_format = "auto"
    config.sae_options = ConfigDict(
        {name: placeholder(kind) for name, kind in SAE_OPTIONS.items()}
    )  # what the SAE's file leaves open
    config.pairs = placeholder(str)
    config.corpus = placeholder(str)
    config.column = "text"  # of the corpus: the field that holds the text or the messages
    config.split = placeholder(str)  # of a corpus folder with several
    config.template_options = ConfigDict({name: placeholder(kind) for name, kind in OPTIONS.items()})

    config.site = placeholder(str)  # absent: the one that the SAE's file names
    config.site_in = placeholder(str)  # of a transcoder: what it encodes
    config.preset = "faithful"
    config.tokens = placeholder(str)  # overrides the preset: prompt | completion | all
    config.sides = placeholder(str)  # overrides the preset: both | active | gated | quadrant
    config.gradient = "plain"  # plain | integrated | lrp | norm+attention+...
    config.gradient_steps = 10
    config.loss = "sum"
    config.exclude = placeholder(tuple)  # of "bos", "special"; absent: what the SAE was not trained on
    config.first_k = placeholder(int)  # of each text; absent: as the SAE was trained
    config.outlier = placeholder(
        float
    )  # times the median norm: attention sinks; 0 keeps them; absent: 10, or as trained
    config.prepend_bos = placeholder(bool)  # absent: as the SAE was trained
    config.context = placeholder(int)

    config.top = 100
    config.batch_size = 8
    config.corpus_tokens = 1_000_000
    config.firing_tokens = 100_000
    config.fitness_tokens = 4096  # the SAE's self-test; 0 leaves it out
    config.trust_sae = False  # True: go on with an SAE that fails it
    config.corpus_batch = 16
    config.corpus_context = placeholder(int)
    config.dense_limit = 2**32
    config.ablate = 20
    config.ablate_rows = 128
    config.ablate_positions = 256
    config.bootstrap = 1000

    config.mesh = ""  # "data=2,model=4"; empty: every device on data
    config.dtype = "float32"
    config.resid_dtype = placeholder(str)
    config.remat = False
    config.seed = 0
    return config
