"""Writes tests/lm/goldens/: random miniatures of transformers with random LoRA
adapters, and the logits that peft gives.

Command: python -m tests.lm.make_lora_goldens, with torch, transformers and peft (here
  2.13, 5.23 and 0.21).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

GOLDENS = Path(__file__).parent / "goldens"
COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT2 = {**COMMON, "n_inner": 24, "n_positions": 32, "num_hidden_layers": 2}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama_all": ("Llama", GROUPED, {"r": 8, "lora_alpha": 16, "target_modules": ALL}),
    "llama_rslora_down": (
        "Llama",
        GROUPED,
        {
            "r": 1,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": ["down_proj"],
            "layers_to_transform": [0, 2],
        },
    ),
    "llama_patterns_bin": (
        "Llama",
        GROUPED,
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {"q_proj": 9, r"layers\.[02]\.self_attn\.v_proj": 5},
        },
    ),
    "gpt2": (
        "GPT2",
        GPT2,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["c_attn", "c_proj", "c_fc"],
            "fan_in_fan_out": True,
        },
    ),
    "phi3": (
        "Phi3",
        GROUPED,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"],
        },
    ),
    "gpt_neox": (
        "GPTNeoX",
        COMMON,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query_key_value", "dense_h_to_4h"],
        },
    ),
    "mixtral_attention": (
        "Mixtral",
        {**GROUPED, "num_local_experts": 3, "num_hidden_layers": 2},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]},
    ),
}


def redraw(model: torch.nn.Module, adapted: bool) -> None:
    """Norms and biases near 1 and 0; B of an adapter, which starts at zero, N(0, 0.3)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adapted and "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif not adapted and parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))


def make(name: str) -> None:
    """One folder: the base model, `adapter/` and golden.npz."""
    family, fields, lora = CASES[name]
    folder = GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **fields, attn_implementation="eager"
    )
    model = (
        getattr(
            transformers,
            "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM",
        )(config)
        .eval()
        .float()
    )
    redraw(model, adapted=False)
    model.save_pretrained(folder)
    ids = torch.randint(3, fields["vocab_size"], (2, 16))
    with torch.no_grad():
        base = model(ids).logits
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", **lora)
        ).eval()
        redraw(adapted, adapted=True)
        logits = adapted(ids).logits
    adapted.save_pretrained(
        folder / "adapter", safe_serialization=not name.endswith("bin")
    )
    if (
        name.endswith("bin") and not (folder / "adapter/adapter_model.bin").exists()
    ):  # newer peft writes safetensors only
        torch.save(
            peft.get_peft_model_state_dict(adapted),
            folder / "adapter/adapter_model.bin",
        )
        (folder / "adapter/adapter_model.safetensors").unlink()
    for file in (folder / "generation_config.json", folder / "adapter/README.md"):
        file.unlink(missing_ok=True)
    np.savez(
        folder / "golden.npz",
        input_ids=ids.numpy().astype(np.int32),
        logits=logits.numpy(),
    )
    print(name, "adapter moves logits by", float((logits - base).abs().max()))


if __name__ == "__main__":
    for case in CASES:
        make(case)
