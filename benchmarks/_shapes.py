"""Models of real shapes with random weights, here and in transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params
from sae_attr.lm.params import init_params

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
}
SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
SHAPES = {"gpt2-small": GPT2, "smollm2-135m": SMOLLM2}


def block_weights(cfg: LMConfig) -> int:
    """Returns the number of weights in the matrices of one block."""
    of_heads = cfg.head_dim * (cfg.n_heads + cfg.n_kv_heads)
    matrices = 3 if cfg.gated_mlp else 2
    return cfg.d_model * (2 * of_heads + matrices * cfg.d_mlp)


def random_model(shape: str) -> tuple[LMConfig, Params]:
    """Returns the config and random float32 weights of a shape of `SHAPES`."""
    cfg = config_from_hf(SHAPES[shape])
    return cfg, jax.jit(partial(init_params, cfg))(jax.random.key(0))


def torch_model(shape: str) -> Any:
    """Returns a model of the same shape in transformers; None without transformers."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.manual_seed(0)
    fields = dict(SHAPES[shape])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return transformers.AutoModelForCausalLM.from_config(config).eval()
