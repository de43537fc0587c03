"""Trains a small language model from scratch, or continues training one, on text or on a token
file.

    python -m experiments.pretrain --config=configs/pretrain.py \\
        --config.corpus=TEXTS --config.tokenizer=FOLDER --workdir=runs/base

TEXTS is whatever `read_corpus` reads (.json, .jsonl, .txt, parquet, a dataset folder)
or a folder that `write_tokens` made; FOLDER holds tokenizer.json. `config.model` are
the fields of a Hugging Face config.json. A run that was killed goes on at its last
checkpoint.

Hardware: 2 cores for a model of half a million parameters.

Expect, with 1,000 TinyStories and the tokenizer of stories260K, --config.steps=150
--config.context=128: held-out loss 6.25 → 3.77 nats per token in three minutes on 2
cores that others use too.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.lm.next_token import ComputeOptions
from sae_attr.lm.optimizer import Optimizer
from sae_attr.store.metrics_log import MetricsOptions
from sae_attr.text.chat import OPTIONS
from sae_attr.text.packed_rows import Packing
from sae_attr.training import LoopOptions

from . import any_keys, config_of, finetune
from .attribute import MESH, TEMPLATE


@dataclass(frozen=True)
class Pretrain:
    """What is trained on what.

    Args:
      corpus: text, or a folder that `write_tokens` made.
      tokenizer: folder of tokenizer.json; None: that of `lm`.
      model_json: a config.json of any family, instead of `model`.
      column: of tables.
      split: of dataset folders.
      append_eos: to documents.
      max_tokens: of the corpus.
      steps: of the optimiser.
    """

    corpus: str | None = None
    tokenizer: str | None = None
    model_json: str | None = None
    column: str = "text"
    split: str | None = None
    append_eos: bool = False
    max_tokens: int | None = None
    steps: int = 1000


MODEL = {"vocab_size": "None: the tokenizer's."}
SETTINGS = {
    "": (
        Pretrain,
        finetune.Training,
        Packing,
        LoopOptions,
        ComputeOptions,
        MetricsOptions,
        MESH,
        {"model": "fields of a Hugging Face config.json."},
    ),
    "model": (MODEL,),
    "template_options": (TEMPLATE,),
    "opt": (Optimizer,),
}


def get_config() -> ConfigDict:
    """Returns a Llama of 4 layers of width 96, as the embedded model organism has."""
    config = finetune.shared()
    config.update(config_of(Pretrain))
    config.update(config_of(Packing, leave_out=("row_bos",)))
    config.template_options = any_keys(OPTIONS)
    config.context = 256
    config.batch_size = 16
    config.model = ConfigDict(
        {
            "model_type": "llama",
            "architectures": ("LlamaForCausalLM",),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
    )
    config.model.vocab_size = placeholder(int)
    config.opt.update({"lr": 3e-3, "weight_decay": 0.1, "final": 0.1, "b2": 0.95})
    finetune.left_open(config.opt, "warmup", int)  # 20 steps, at most a quarter
    return config
