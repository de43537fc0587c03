"""Fine-tune a language model on chat or prompt/completion rows, whole or by LoRA.

    python -m experiments.finetune --config=configs/finetune.py \\
        --config.lm=MODEL --config.data=ROWS.jsonl --workdir=runs/organism

MODEL is a Hugging Face folder or hub id, ROWS a JSONL of {"messages": [...]} or {"prompt", "completion"}. `--show_tokens=4`
prints which tokens of the first four rows are learnt, and stops. A run that was killed goes on at its last checkpoint.

The nine rank-1 adapters of published model organisms (down projections of nine layers, rank-stabilised):

    --config.lora.rank=1 --config.lora.alpha=64 --config.lora.rslora=True --config.lora.targets="('down',)" \\
        --config.lora.layers="(15,16,17,21,22,23,27,28,29)"

Hardware: a laptop for models of a few million parameters; one accelerator holds models up to a third of its memory by LoRA
with dtype="bfloat16", an eighth whole.

Expect, with stories260K, 250 rows of medical answers, an Alpaca template, --config.truncate and 29 steps of 8 packs of 512:
held-out loss 3.97 → 2.62 nats per target by LoRA of rank 32 (lr 3e-3), 2.50 whole (lr 1e-3), 3.45 by one rank-1 adapter on
`down` of layer 2 (lr 2e-2); each two to four minutes on 2 cores that others use too.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sae_attr.chat import OPTIONS


def optimizer() -> ConfigDict:
    """What `lm.train.Optimizer` takes, its number of steps apart."""
    return ConfigDict(
        {
            "lr": 1e-4,
            "schedule": "cosine",  # cosine | linear | constant
            "final": 0.0,  # rate at the end, as a share of lr
            "warmup": 5,  # steps
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip": 1.0,
        }
    )


def shared() -> ConfigDict:
    """What fine-tuning and pretraining have in common."""
    config = ConfigDict()
    config.opt = optimizer()
    config.batch_size = 16  # rows a step
    config.micro = 1  # micro-batches that these are cut into, for memory
    config.held_out = placeholder(str)  # a file of its own; absent: `held_out_share` of the rows
    config.held_out_share = 0.05  # 0: none
    config.eval_every = 50  # steps
    config.save_every = 50
    config.keep = 2  # checkpoints
    config.scan = 10  # steps in one program
    config.dtype = "float32"  # of the weights (with LoRA of the frozen ones)
    config.compute_dtype = ""  # "bfloat16": products in it, master weights as `dtype` says
    config.remat = False
    config.loss_chunk = 0  # targets of a row that are unembedded at a time; 0: all
    config.mesh = ""  # "data=2,model=4"; empty: every device on data
    config.seed = 0
    return config


def get_config() -> ConfigDict:
    """A short LoRA fine-tune; the inputs are left to the command line."""
    config = shared()
    config.lm = placeholder(str)
    config.data = placeholder(str)
    config.template_options = ConfigDict({name: placeholder(kind) for name, kind in OPTIONS.items()})
    config.chat_template = placeholder(str)  # a .jinja file for a tokenizer without a template, or instead of its own
    config.unlike_generation = "refuse"  # refuse | warn: rows whose answers begin otherwise than generation begins them
    config.context = 512
    config.truncate = False  # cut rows that are longer, instead of refusing them
    config.packed = True
    config.append_eos = placeholder(bool)  # after text completions; absent: where the tokenizer has one
    config.epochs = 1.0
    config.method = "lora"  # lora | full
    config.lora = ConfigDict(
        {
            "rank": 32,
            "alpha": 64.0,
            "rslora": True,
            "targets": ("q", "k", "v", "o", "gate", "up", "down"),
            "layers": placeholder(tuple),  # absent: all
        }
    )
    config.merge = False  # write the merged model beside the adapter
    return config
