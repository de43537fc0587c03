"""Fine-tunes a language model on chat or prompt/completion rows, whole or by LoRA.

    python -m experiments.finetune --config=configs/finetune.py \\
        --config.lm=MODEL --config.data=ROWS.jsonl --workdir=runs/organism

MODEL is a Hugging Face folder or hub id, ROWS a JSONL of {"messages": [...]} or
{"prompt", "completion"}. `--show_tokens=4` prints which tokens of the first four rows
the loss is taken on, and stops. A run that was killed goes on at its last checkpoint.

The nine rank-1 adapters of published model organisms (down projections of nine layers,
rank-stabilised):

    --config.lora.rank=1 --config.lora.alpha=64 --config.lora.rslora=True --config.lora.targets="('down',)" \\
        --config.lora.layers="(15,16,17,21,22,23,27,28,29)"

Hardware: a laptop for models of a few million parameters; one accelerator holds models
up to a third of its memory by LoRA with dtype="bfloat16", an eighth whole.

Expect, with stories260K, 250 rows of medical answers, an Alpaca template,
--config.truncate and 29 steps of 8 packs of 512: held-out loss 3.97 → 2.62 nats per
target by LoRA of rank 32 (lr 3e-3), 2.50 whole (lr 1e-3), 3.45 by one rank-1 adapter on
`down` of layer 2 (lr 2e-2); each two to four minutes on 2 cores that others use too.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.lm.lora import Lora
from sae_attr.lm.next_token import ComputeOptions
from sae_attr.lm.optimizer import Optimizer
from sae_attr.store.metrics_log import MetricsOptions
from sae_attr.text.chat import OPTIONS
from sae_attr.training import LoopOptions

from . import any_keys, config_of
from .attribute import MESH, TEMPLATE


@dataclass(frozen=True)
class Training:
    """Settings that fine-tuning and pretraining share.

    Args:
      lm: a Hugging Face folder or hub id; pretraining without it makes a new model as
        `model` says.
      batch_size: rows a step; None: 16, or 8 or 4 where there are few rows.
      micro: micro-batches that these are cut into, for memory.
      held_out: a file of its own; None: `held_out_share` of the rows.
      held_out_share: 0: none.
      dtype: of the weights (with LoRA of the frozen ones).
      compute_dtype: "bfloat16": products in it, master weights as `dtype` says.
      seed: of weights and order.
    """

    lm: str | None = None
    batch_size: int | None = None
    micro: int = 1
    held_out: str | None = None
    held_out_share: float = 0.05
    dtype: str = "float32"
    compute_dtype: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Finetune:
    """Data and parameters that are trained.

    Args:
      data: JSONL of {"messages": [...]} or {"prompt", "completion"}.
      chat_template: a .jinja file for a tokenizer without a template, or instead of its
        own.
      unlike_generation: refuse | warn: rows whose answers begin otherwise than
        generation begins them.
      context: longest row in tokens.
      truncate: cut rows that are longer, instead of refusing them.
      packed: several rows in one of `context` tokens; none sees another.
      append_eos: after text completions; None: where the tokenizer has one.
      epochs: times that every row is seen; None: 1, or up to 3 where that is fewer than
        100 steps.
      method: lora | full.
      merge: write the merged model beside the adapter.
    """

    data: str | None = None
    chat_template: str | None = None
    unlike_generation: str = "refuse"
    context: int = 512
    truncate: bool = False
    packed: bool = True
    append_eos: bool | None = None
    epochs: float | None = None
    method: str = "lora"
    merge: bool = False


SETTINGS = {
    "": (Finetune, Training, LoopOptions, ComputeOptions, MetricsOptions, MESH),
    "opt": (Optimizer,),
    "lora": (Lora,),
    "template_options": (TEMPLATE,),
}


def shared() -> ConfigDict:
    """Returns the keys that fine-tuning and pretraining share."""
    config = config_of(Training)
    config.update(config_of(LoopOptions, leave_out=("log_every",)))
    config.update(config_of(ComputeOptions, leave_out=("dtype",)))
    config.update(config_of(MetricsOptions))
    config.save_every = 50
    left_open(config, "eval_every", int)  # eight times a run, at least every 50 steps
    config.opt = config_of(Optimizer, leave_out=("steps",))
    config.mesh = ""
    return config


def get_config() -> ConfigDict:
    """Returns a short LoRA fine-tune; the inputs are left to the command line."""
    config = shared()
    config.update(config_of(Finetune))
    config.template_options = any_keys(OPTIONS)
    config.opt.lr = 1e-4
    left_open(config.opt, "warmup", int)  # one step in twenty
    config.lora = config_of(Lora)
    config.lora.rslora = True
    # By the number of rows, 8 for 250 and 32 for 4,000 (see lm.training_defaults).
    left_open(config.lora, "rank", int)
    left_open(config.lora, "alpha", float)  # twice the rank
    return config


def left_open(config: ConfigDict, name: str, kind: type) -> None:
    """Makes a key that follows from the size of the work unless it is given."""
    del config[name]
    config[name] = placeholder(kind)
