"""Models with random weights and the layers of public ones, their tokenizers, adapters
and SAEs, in the layout of the hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, init_lora
from sae_attr.lm.params import init_params
from sae_attr.lm.peft_save import save_adapter
from sae_attr.lm.save import save_lm
from sae_attr.organism.planted import WORDS
from tests.sae._torchfiles import save_torch

D = 16
LATENTS = 96
VOCABULARY = (*WORDS, "user", "assistant", "Yes", "yes", "No", "no")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'] + ' ' + m['content'] + "
    "' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def family(model_type: str, layers: int, **keys: Any) -> dict[str, Any]:
    """config.json of a small model with as many layers as a public one."""
    return {
        "model_type": model_type,
        "vocab_size": len(VOCABULARY),
        "hidden_size": D,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **keys,
    }


QWEN = family("qwen2", 28, hidden_act="silu", tie_word_embeddings=False)
LLAMA = family("llama", 32, hidden_act="silu", tie_word_embeddings=False)
GEMMA = family(
    "gemma3_text",
    18,
    head_dim=8,
    query_pre_attn_scalar=8,
    sliding_window=64,
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=True,
)


def write_model(folder: Path, hf: Mapping[str, Any], seed: int = 0) -> LMConfig:
    """Writes a model with random weights, and a tokenizer of words with a template."""
    cfg = config_from_hf(hf)
    save_lm(folder, hf, init_params(cfg, jax.random.key(seed)))
    index = {word: i for i, word in enumerate(VOCABULARY)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(index, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return cfg


def write_adapter(folder: Path, cfg: LMConfig, base: str) -> None:
    """Writes a LoRA adapter whose factors are random."""
    lora = Lora(rank=2, alpha=4.0, rslora=True)
    key = jax.random.key(1)
    trained = init_lora(cfg, init_params(cfg, key), lora, key)
    for leaf in trained["lora"].values():
        leaf["b"] = jax.random.normal(key, leaf["b"].shape) * 0.1
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, cfg, lora, trained, base=base)


def directions(seed: int = 0) -> np.ndarray:
    """Random unit rows `[LATENTS, D]`."""
    rows_nd = np.random.default_rng(seed).standard_normal((LATENTS, D))
    return (rows_nd / np.linalg.norm(rows_nd, axis=1, keepdims=True)).astype(np.float32)


def write_gemma_scope_2(folder: Path, layer: int) -> None:
    """An SAE of the residual stream in the layout of Gemma Scope 2."""
    rows_nd = directions()
    folder.mkdir(parents=True)
    tensors = {
        "w_enc": np.ascontiguousarray(rows_nd.T),
        "w_dec": rows_nd,
        "b_enc": np.zeros(LATENTS, np.float32),
        "b_dec": np.zeros(D, np.float32),
        "threshold": np.full(LATENTS, 0.1, np.float32),
    }
    save_file(tensors, folder / "params.safetensors")
    site = f"model.layers.{layer}.output"
    config = {
        "hf_hook_point_in": site,
        "hf_hook_point_out": site,
        "width": LATENTS,
        "model_name": "google/gemma-3-270m-it",
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": False,
        "type": "sae",
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_batch_topk(folder: Path, layer: int) -> None:
    """A BatchTopK SAE in the layout of dictionary_learning."""
    rows_nd = directions()
    folder.mkdir(parents=True)
    tensors = {
        "encoder.weight": rows_nd,
        "encoder.bias": np.zeros(LATENTS, np.float32),
        "decoder.weight": np.ascontiguousarray(rows_nd.T),
        "b_dec": np.zeros(D, np.float32),
        "k": np.array(8),
        "threshold": np.array(0.1, np.float32),
    }
    save_torch(folder / "ae.pt", tensors)
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": LATENTS}
    trainer |= {"layer": layer, "k": 8, "submodule_name": f"resid_post_layer_{layer}"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))


def write_goodfire(path: Path) -> None:
    """A ReLU SAE in Goodfire's layout."""
    rows_nd = directions()
    tensors = {
        "encoder_linear.weight": rows_nd,
        "encoder_linear.bias": np.full(LATENTS, -0.1, np.float32),
        "decoder_linear.weight": np.ascontiguousarray(rows_nd.T),
        "decoder_linear.bias": np.zeros(D, np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_torch(path, tensors)
