"""Trains SAEs (or a transcoder) on the activations of a language model.

    python -m experiments.train_sae --config=configs/train_sae.py \\
        --config.lm=MODEL --config.corpus=TEXTS --config.site=layer2.resid_post --workdir=runs/sae

TEXTS is whatever `read_corpus` reads (.json, .jsonl, .txt, parquet, a dataset folder)
or a folder that `write_tokens` made. `site` may name several, separated by commas:
their activations come from one pass, and each gets an SAE of its own in WORKDIR/SITE.
`site_out` makes a transcoder. `config.sae` are the fields of
`sae_attr.sae.train_config.TrainConfig`; `--help` lists all keys.
`--config=configs/train_sae.py:jumprelu` (gemma_scope_2, batch_topk, matryoshka,
crosscoder, crosscoder_l1) trains as the paper does: its settings take the place of ours
(docs/training.md). A run that was killed goes on at its last checkpoint with the same
result.

`lm_base` is the model that `lm` was fine-tuned from: with the objectives crosscoder and
crosscoder_l1 both are reconstructed (WORKDIR/crosscoder), with any other one the
difference of their activations (docs/crosscoders.md). `adapter` is merged into `lm`.

Written: `sae/` (SAELens' layout, read by `load_sae`, by SAELens and by
experiments.attribute), `dictionary_learning/`, `mean.npz` (ā over the training text),
`metrics.jsonl` (every record as it is measured, and `tensorboard/` where tensorboardX is
installed), `curves.csv`, `figures/`, `result.json` with explained variance, L0, CE recovered, dead
share and firing rates on held-out documents and the verdict of the SAE check.

Hardware: 2 cores for models of a few million parameters; data × latents over a mesh for
others.

Expect explained variance 0.95 and CE recovered 0.97 of held-out stories, with
stories260K, 1,000 TinyStories and

    --config.sae.n_latents=512 --config.sae.k=16 --config.tokens=500_000 --config.batch_size=512 --config.sae.lr=6e-3
"""

from ml_collections import ConfigDict

from sae_attr.activations import Masks
from sae_attr.sae.published import PUBLISHED
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store.metrics_log import MetricsOptions
from sae_attr.study.sae_jobs import SAETrainingSettings
from sae_attr.text.chat import OPTIONS
from sae_attr.text.packed_rows import Packing
from sae_attr.training import LoopOptions

from . import any_keys, config_of, one_of
from .attribute import MESH, TEMPLATE

# Fields of TrainConfig that follow from the rest.
DERIVED = ("d_in", "d_out", "steps", "transcoder", "streams", "seed")

SETTINGS = {
    "": (SAETrainingSettings, LoopOptions, MetricsOptions, Masks, Packing, MESH),
    "template_options": (TEMPLATE,),
    "sae": (TrainConfig,),
}


def get_config(as_published: str = "") -> ConfigDict:
    """Returns BatchTopK on a cache of activations; the inputs are left to the command
    line.

    Args:
      as_published: jumprelu | gemma_scope_2 | batch_topk | matryoshka | crosscoder |
        crosscoder_l1, with the paper's settings in the place of ours.
    """
    config = config_of(SAETrainingSettings)
    config.update(config_of(LoopOptions, leave_out=("scan",)))
    config.log_every, config.eval_every, config.save_every = 50, 500, 500
    config.update(config_of(MetricsOptions))
    config.update(config_of(Masks))
    config.update(config_of(Packing, leave_out=("row_bos",)))
    config.context = 128
    config.template_options = any_keys(OPTIONS)
    config.sae = config_of(TrainConfig, leave_out=DERIVED)
    config.sae.n_latents = 4096
    if as_published:
        one_of("as_published", as_published, tuple(PUBLISHED))
        with config.sae.ignore_type():
            config.sae.update(PUBLISHED[as_published])
    config.mesh = ""
    return config
