"""Whatever a config.json says, the logits are those of transformers or the key is
refused by name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.lm.model import forward, logits
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore"),
]

COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = {"head_dim": 8, **GROUPED}
GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 8, **WIDE}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, **GROUPED}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Mistral": {"sliding_window": 6, **GROUPED},
    "Qwen2": GROUPED,
    "Qwen3": WIDE,
    "Qwen3Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        **WIDE,
    },
    "Gemma2": GEMMA,
    "Gemma3Text": GEMMA,
    "Olmo2": GROUPED,
    "Phi3": GROUPED,
    "GPTNeoX": {},
    "GPT2": {"n_inner": 24},
    "Mixtral": EXPERTS,
    "GptOss": {"sliding_window": 6, **EXPERTS, "head_dim": 8},
}
STATED: tuple[dict[str, Any], ...] = (
    {},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"sliding_window": 5},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 5,
        "use_sliding_window": True,
    },
    {"partial_rotary_factor": 0.5},
    {"rope_theta": 100.0},
    {"rope_local_base_freq": 50.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    {"hidden_act": "gelu"},
    {"hidden_activation": "relu"},
    {"tie_word_embeddings": True},
    {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    {"use_bidirectional_attention": True},
    {"scale_attn_by_inverse_layer_idx": True},
    {"logits_scaling": 2.0},
    {"mlp_only_layers": [1]},
    {"sliding_window_pattern": 2},
    {"_sliding_window_pattern": 2},
)
TOKENS = np.random.default_rng(0).integers(3, 40, (1, 20)).astype(np.int32)


def theirs(folder: Path, family: str, stated: dict[str, Any]) -> np.ndarray | None:
    """Logits of a random model whose config.json says just what is stated; None where
    transformers refuses it.
    """
    torch.manual_seed(0)
    try:
        # transformers writes into the dicts that it is given
        config = getattr(transformers, f"{family}Config")(**copy.deepcopy(stated))
        model = (
            transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation="eager"
            )
            .eval()
            .float()
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        (folder / "config.json").write_text(
            json.dumps({**stated, "model_type": config.model_type})
        )
        model = (
            transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager"
            )
            .eval()
            .float()
        )
        with torch.no_grad():
            return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    except Exception:  # transformers raises whatever its parts do
        return None


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Lets go of the programs of a family: those of all of them exhaust a process's
    memory maps, and the compiler crashes.
    """
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_or_a_key_is_refused(tmp_path: Path, family: str) -> None:
    taken = 0
    for number, stated in enumerate(STATED):
        folder = tmp_path / str(number)
        want = theirs(folder, family, {**COMMON, **FAMILIES[family], **stated})
        if want is None:
            continue
        try:
            cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
        except ValueError as error:
            assert "config.json" in str(error)  # noqa: PT017 - other configs are taken
            assert not stated or any(key in str(error) for key in stated)  # noqa: PT017
            continue
        taken += 1
        got = logits(
            params, forward(params, jnp.asarray(TOKENS), cfg=cfg).hidden_btd, cfg=cfg
        )
        assert np.abs(np.asarray(got) - want).max() <= 3e-4, stated
    assert taken >= 5
