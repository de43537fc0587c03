"""Models and tokenizers small enough to be made inside a test, in the layout of Hugging
Face folders.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)


def write_lines(path: Path, *records: Any) -> Path:
    """A JSONL file; a string is a line as it stands, anything else becomes JSON."""
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records),
        encoding="utf-8",
    )
    return path


def write_tokenizer(
    folder: Path, *, post: bool = False, pieces: tuple[str, ...] = (), **config: Any
) -> Path:
    """A character tokenizer: one token a character and one for each of `pieces`, four
    special tokens, BOS id 0.
    """
    characters = sorted(set(string.printable) - {"?"})
    vocab = {
        token: i for i, token in enumerate((*SPECIAL, "?", *characters, "é", *pieces))
    }
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex("|".join([*pieces, r"[\s\S]"])), "isolated"
    )
    backend.add_special_tokens(list(SPECIAL))
    if post:
        backend.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def llama_config(
    *,
    n_layers: int = 2,
    d: int = 16,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    d_mlp: int = 24,
    vocab: int = 40,
    **keys: Any,
) -> dict[str, Any]:
    """config.json of a small Llama; `keys` override and add."""
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": d,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": d_mlp,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | keys


def llama_tensors(
    config: Mapping[str, Any], *, seed: int = 0, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Random weights for a config of the Llama kind under the names of its checkpoints,
    N(0, 0.1), norms near 1.
    """
    rng = np.random.default_rng(seed)
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or d // config["num_attention_heads"]
    q = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    layer = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "post_attention_layernorm": (d,),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    if config["model_type"].startswith("gemma"):
        layer |= {"pre_feedforward_layernorm": (d,), "post_feedforward_layernorm": (d,)}
    if config["model_type"].startswith("gemma3"):
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    if config["model_type"] == "olmo2":
        del layer["input_layernorm"]
        layer |= {
            "post_feedforward_layernorm": (d,),
            "self_attn.q_norm": (q,),
            "self_attn.k_norm": (kv,),
        }
    shapes = {"model.embed_tokens": (v, d), "model.norm": (d,)}
    shapes |= {
        f"model.layers.{i}.{n}": s
        for i in range(config["num_hidden_layers"])
        for n, s in layer.items()
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head"] = (v, d)
    draw = lambda shape: 0.1 * rng.standard_normal(shape) + (len(shape) == 1)
    return {
        f"{name}.weight": draw(shape).astype(dtype) for name, shape in shapes.items()
    }


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Path:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def write_llama(
    folder: Path, *, seed: int = 0, dtype: Any = np.float32, **config: Any
) -> Path:
    """A Llama folder with random weights: `n_layers`, `d`, ... as in `llama_config`, or
    any key of config.json.
    """
    made = llama_config(**config)
    return write_model(folder, made, llama_tensors(made, seed=seed, dtype=dtype))
