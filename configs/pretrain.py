"""Train a small language model from nothing, or go on with one, on text or on a token file.

    python -m experiments.pretrain --config=configs/pretrain.py \\
        --config.corpus=TEXTS --config.tokenizer=FOLDER --workdir=runs/base

TEXTS is whatever `read_corpus` reads (.json, .jsonl, .txt, parquet, a dataset folder) or a folder that `write_tokens` made;
FOLDER holds tokenizer.json. `config.model` are the fields of a Hugging Face config.json. A run that was killed goes on at its
last checkpoint.

Hardware: 2 cores for a model of half a million parameters.

Expect, with 1,000 TinyStories and the tokenizer of stories260K, --config.steps=150 --config.context=128: held-out loss 6.25 →
3.77 nats per token in three minutes on 2 cores that others use too.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import finetune
from sae_attr.chat import OPTIONS


def get_config() -> ConfigDict:
    """A Llama of 4 layers of width 96, as the embedded model organism has."""
    config = finetune.shared()
    config.corpus = placeholder(str)
    config.tokenizer = placeholder(str)  # absent: that of `lm`
    config.lm = placeholder(str)  # a model to go on with; absent: a new one as `model` says
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
    config.model.vocab_size = placeholder(int)  # absent: the tokenizer's
    config.model_json = placeholder(str)  # a config.json of any family, instead of `model`
    config.column = "text"  # of tables
    config.split = placeholder(str)
    config.template_options = ConfigDict(
        {name: placeholder(kind) for name, kind in OPTIONS.items()}
    )  # of conversations
    config.context = 256
    config.documents = "continue"  # continue | cut
    config.separate = True  # documents of a row do not see each other
    config.append_eos = False
    config.max_tokens = placeholder(int)  # of the corpus
    config.steps = 1000
    config.opt.lr = 3e-3
    config.opt.warmup = 20
    config.opt.weight_decay = 0.1
    config.opt.final = 0.1
    config.opt.b2 = 0.95
    return config
