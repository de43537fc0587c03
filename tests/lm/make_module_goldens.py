"""Writes tests/lm/module_goldens.npz: what the modules of a block put out and take in,
by forward hooks of transformers.

Command: python -m tests.lm.make_module_goldens, with torch and transformers (here 2.14
and 5.24). The weights are drawn by numpy (`write_family`), so that the file holds the
hooks' activations alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.miniatures import llama_config, llama_tensors, write_model

GOLDENS = Path(__file__).with_name("module_goldens.npz")
LAYER = 1
TOKENS = np.random.default_rng(5).integers(3, 40, (1, 9)).astype(np.int32)

_BOTH_NORMS = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8, "sliding_window": 4} | _BOTH_NORMS,
    "gemma3_text": {"head_dim": 8, "sliding_window": 4} | _BOTH_NORMS,
    "olmo2": {},
}
# Paths below the layer, each of which means one place; `.input` is what the module is
# called with.
MODULES = (
    *(
        "",
        "input",
        "self_attn",
        "self_attn.o_proj",
        "self_attn.o_proj.input",
        "post_attention_layernorm",
    ),
    *(
        "post_attention_layernorm.input",
        "mlp",
        "mlp.input",
        "mlp.down_proj",
        "mlp.down_proj.input",
    ),
)
NORMS_BEHIND = ("post_feedforward_layernorm", "post_feedforward_layernorm.input")
NORMS_BEFORE = ("pre_feedforward_layernorm", "pre_feedforward_layernorm.input")


def paths_of(family: str) -> tuple[str, ...]:
    """The paths that a family has."""
    if family == "llama":
        return MODULES
    return MODULES + NORMS_BEHIND + (() if family == "olmo2" else NORMS_BEFORE)


def write_family(folder: Path, family: str) -> Path:
    """A folder with a model of two layers."""
    config = llama_config(model_type=family, **FAMILIES[family])
    return write_model(folder, config, llama_tensors(config))


def record(family: str, folder: Path) -> dict[str, np.ndarray]:
    """Path below the layer -> activation `[1, t, c]`, as transformers' forward hooks
    see it.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    acts: dict[str, np.ndarray] = {}

    def hook(path: str) -> Any:
        def keep(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
        ) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            value = given if path.endswith("input") else out
            value = value[0] if isinstance(value, tuple) else value
            acts[path] = value.detach().numpy().copy()

        return keep

    for path in paths_of(family):
        module = model.model.layers[LAYER].get_submodule(
            path.removesuffix("input").removesuffix(".")
        )
        module.register_forward_hook(hook(path), with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor(TOKENS, dtype=torch.long), use_cache=False)
    return acts


def main() -> None:
    goldens: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            acts = record(family, write_family(Path(folder), family))
        goldens |= {f"{family}/{path}": value for path, value in acts.items()}
    np.savez_compressed(GOLDENS, **goldens)


if __name__ == "__main__":
    main()
