"""Train SAEs (or a transcoder) on the activations of a language model.

    python -m experiments.train_sae --config=configs/train_sae.py \\
        --config.lm=MODEL --config.corpus=TEXTS --config.site=layer2.resid_post --workdir=runs/sae

TEXTS is whatever `read_corpus` reads (.json, .jsonl, .txt, parquet, a dataset folder) or a folder that `write_tokens` made.
`site` may name several, separated by commas: their activations come from one pass, and each gets an SAE of its own in
WORKDIR/SITE. `site_out` makes a transcoder. `config.sae` are the fields of `sae_attr.sae.train_config.TrainConfig`. A run that
was killed goes on at its last checkpoint with the same result.

Written: `sae/` (SAELens' layout, read by `load_sae`, by SAELens and by experiments.attribute), `dictionary_learning/`,
`mean.npz` (ā over the training text), `curves.csv`, `figures/`, `result.json` with explained variance, L0, CE recovered, dead
share and firing rates on held-out documents and the verdict of the self-test.

Hardware: 2 cores for models of a few million parameters; data × latents over a mesh for others.

Expect, with stories260K, 1,000 TinyStories and --config.sae.n_latents=512 --config.sae.k=16 --config.tokens=500_000 \\
--config.batch_size=512 --config.sae.lr=6e-3: explained variance 0.95 and CE recovered 0.97 of held-out stories.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.chat import OPTIONS
from sae_attr.sae.train_config import TrainConfig

TYPES = {
    "aux_k": int,
    "target_l0": float,
    "threshold_init": float,
    "enc_scale": float,
    "lr": float,
    "clip": float,
}  # of fields that may be None
DERIVED = ("d_in", "d_out", "steps", "transcoder", "seed")


def sae_fields() -> ConfigDict:
    """The fields of `TrainConfig` that a config may set, with their defaults."""
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig) if f.name not in DERIVED}
    fields["n_latents"] = 4096
    return ConfigDict({k: placeholder(TYPES[k]) if k in TYPES else v for k, v in fields.items()})


def get_config() -> ConfigDict:
    """BatchTopK on a cache of activations; the inputs are left to the command line."""
    config = ConfigDict()
    config.lm = placeholder(str)
    config.corpus = placeholder(str)
    config.site = placeholder(str)
    config.site_out = placeholder(str)  # of a transcoder
    config.sae = sae_fields()
    config.tokens = 10_000_000  # that are trained on; more than the corpus has: several epochs
    config.batch_size = 4096

    config.column = "text"  # of tables
    config.split = placeholder(str)
    config.template_options = ConfigDict(
        {name: placeholder(kind) for name, kind in OPTIONS.items()}
    )  # of conversations
    config.append_eos = False
    config.prepend_bos = placeholder(bool)  # to documents; absent: as the tokenizer does
    config.max_tokens = placeholder(int)  # of the corpus
    config.context = 128
    config.documents = "continue"  # continue | cut
    config.separate = True  # documents of a row do not see each other
    config.exclude = ("bos", "special")
    config.first_k = 0
    config.outlier = 10.0  # times the median norm; 0 keeps all
    config.held_out_share = 0.05  # of the rows, at the end; they are what the results are measured on
    config.eval_tokens = 8192

    config.cache = True  # activations on disk; False: the model runs while the SAE trains
    config.buffer_tokens = 1 << 18
    config.shard_tokens = 1 << 16
    config.batch_rows = 16  # rows of a forward pass
    config.act_dtype = "float32"  # of cached activations: float32 | bfloat16 | float16

    config.log_every = 50
    config.eval_every = 500
    config.save_every = 500
    config.keep = 2  # checkpoints
    config.mesh = ""  # "data=2,model=4"; empty: every device on data
    config.dtype = "float32"  # of the language model
    config.seed = 0
    return config
