"""Every key of a config.json is of its type and range, understood or without effect,
before anything is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_families import FAMILIES
from sae_attr.lm.hf_schema import KEYS
from tests.miniatures import llama_config

BASE: dict[str, Any] = llama_config()
QWEN = BASE | {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}
GEMMA = BASE | {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window": 8,
    "hidden_activation": "gelu_pytorch_tanh",
}
MOE = BASE | {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts": 4,
    "moe_intermediate_size": 8,
}
MOE |= {"num_experts_per_tok": 2, "norm_topk_prob": True}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}

WRONG: list[tuple[dict[str, Any], Any, str]] = [
    *[
        ({key: True}, BASE, key)
        for key in ("num_hidden_layers", "hidden_size", "vocab_size", "rope_theta")
    ],
    *[
        ({key: "12"}, BASE, key)
        for key in (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "rms_norm_eps",
        )
    ],
    *[
        ({key: -1}, BASE, key)
        for key in (
            "vocab_size",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
    ],
    *[
        ({key: None}, BASE, key)
        for key in ("hidden_size", "rms_norm_eps", "num_hidden_layers", "vocab_size")
    ],
    *[
        ({"rope_theta": x}, BASE, "rope_theta")
        for x in (float("inf"), float("nan"), 0, -1.0, "1e4", [1e4])
    ],
    *[
        ({"rms_norm_eps": x}, BASE, "rms_norm_eps")
        for x in (float("nan"), float("inf"), -1e-5, 0, 2.0)
    ],
    *[
        ({"tie_word_embeddings": x}, BASE, "tie_word_embeddings")
        for x in (1, 0, "true")
    ],
    ({"num_hidden_layers": 10**9}, BASE, "num_hidden_layers"),
    ({"num_hidden_layers": 2.0}, BASE, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, BASE, "num_hidden_layers"),
    ({"vocab_size": 10**12}, BASE, "vocab_size"),
    (
        {"num_attention_heads": 3},
        BASE,
        "hidden_size 16 is not a multiple of num_attention_heads 3",
    ),
    (
        {"num_key_value_heads": 3},
        BASE,
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    ({"hidden_act": 3}, BASE, "hidden_act"),
    ({"eos_token_id": "2"}, BASE, "eos_token_id"),
    ({"eos_token_id": [2, True]}, BASE, "eos_token_id"),
    ({"sliding_window": -8}, QWEN, "sliding_window"),
    ({"sliding_window": True}, QWEN, "sliding_window"),
    ({"max_window_layers": -1}, QWEN, "max_window_layers"),
    ({"layer_types": "full_attention"}, QWEN, "layer_types"),
    ({"layer_types": [1, 2]}, QWEN, "layer_types"),
    ({"query_pre_attn_scalar": 0}, GEMMA, "query_pre_attn_scalar"),
    ({"final_logit_softcapping": -30}, GEMMA, "final_logit_softcapping"),
    ({"sliding_window_pattern": 0}, GEMMA, "sliding_window_pattern"),
    ({"rope_scaling": [1]}, BASE, "rope_scaling"),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
        BASE,
        r"rope_scaling.factor is '2'",
    ),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        BASE,
        r"rope_scaling.factor is 0",
    ),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": float("inf")}},
        BASE,
        r"rope_scaling.factor is inf",
    ),
    (
        {"rope_scaling": {"rope_type": 3, "factor": 2.0}},
        BASE,
        r"rope_scaling.rope_type is 3",
    ),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
        BASE,
        r"rope_parameters.rope_theta is nan",
    ),
    (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        BASE,
        r"partial_rotary_factor is 0.5, but a llama model rotates",
    ),
    ({"decoder_sparse_step": 0}, MOE, "decoder_sparse_step"),
    ({"num_experts_per_tok": 5}, MOE, "a token goes to 5 of 4 experts"),
    (
        {"num_experts": 60_000, "num_hidden_layers": 4000},
        MOE,
        "more than 200,000 matrices",
    ),
    ({"mlp_only_layers": ["0"]}, MOE, "mlp_only_layers"),
    ({"n_head": 3}, GPT2, "n_embd 16 is not a multiple of n_head 3"),
    ({"n_positions": 0}, GPT2, "n_positions"),
    ({"text_config": 3}, BASE, "text_config is 3; expected an object"),
]


@pytest.mark.parametrize(
    ("change", "base", "message"),
    WRONG,
    ids=lambda x: str(x)[:40] if "model_type" not in x else "",
)
def test_values_that_cannot_be(
    tmp_path: Path, change: dict[str, Any], base: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(base | change))
    with pytest.raises(ValueError, match=message) as error:
        load_config(str(tmp_path))
    assert "config.json" in str(error.value)


UNREAD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # what changes the computation of Granite, Cohere, MiniCPM and others
    *[
        (BASE, {key: 2.0})
        for key in (
            "logits_scaling",
            "residual_multiplier",
            "embedding_multiplier",
            "logit_scale",
        )
    ],
    (BASE, {"attention_multiplier": 0.0078}),
    (BASE, {"scale_emb": 12, "scale_depth": 1.4}),
    (BASE, {"use_bidirectional_attention": True}),
    (BASE, {"is_causal": False}),
    (BASE, {"rope_interleaved": True}),
    (BASE, {"clip_qkv": 8.0}),
    (BASE, {"use_qk_norm": True}),
    (BASE, {"norm_type": "layernorm"}),
    (GEMMA, {"use_bidirectional_attention": True}),
    (
        GEMMA,
        {"attn_logit_softcapping": 50.0},
    ),  # transformers applies it in Gemma 2 alone
    (GEMMA, {"_sliding_window_pattern": 2}),
    # fields of other families
    (BASE, {"sliding_window": 8}),
    (BASE, {"layer_types": ["full_attention", "sliding_attention"]}),
    (BASE, {"rope_local_base_freq": 100.0}),
    (BASE, {"partial_rotary_factor": 0.5}),
    (BASE, {"attn_logit_softcapping": 50.0}),
    (BASE, {"final_logit_softcapping": 30.0}),
    (BASE, {"query_pre_attn_scalar": 64}),
    (BASE, {"hidden_activation": "gelu"}),
    (BASE, {"num_local_experts": 8}),
    (BASE | {"model_type": "mistral"}, {"attention_bias": True}),
    (BASE | {"model_type": "phi3"}, {"mlp_bias": True}),
    (
        BASE | {"model_type": "mixtral", "num_local_experts": 2},
        {"mlp_only_layers": [0]},
    ),
    (GPT2, {"rope_theta": 10000.0}),
    (GPT2, {"add_cross_attention": True}),
]


@pytest.mark.parametrize(("base", "change"), UNREAD, ids=lambda x: next(iter(x)))
def test_keys_that_are_not_understood_are_refused_by_name(
    base: dict[str, Any], change: dict[str, Any]
) -> None:
    config_from_hf(base)
    with pytest.raises(
        ValueError, match=r"are not read for a .* model and may change what it computes"
    ) as error:
        config_from_hf(base | change)
    assert all(f"\n{key}: " in str(error.value) for key in change)


HARMLESS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "dtype": "float16",
    "use_cache": True,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "transformers_version": "4.50.0",
    "pad_token_id": -1,
    "pretraining_tp": 2,
    "_name_or_path": "x",
    "auto_map": {"AutoModel": "x.y"},
    "unsloth_fixed": True,
    "task_specific_params": {"a": 1},
    "id2label": {"0": "a"},
    "output_router_logits": False,
    "max_length": 20,
    "rope_interleaved": False,
    "is_llama_config": True,
    "use_mrope": False,
    "logits_scaling": 1.0,
    "clip_qkv": None,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
    "head_dim": 4,
    "layer_types": ["full_attention"] * 2,
    "query_pre_attn_scalar": None,
    "tokenizer_class": "X",
    "is_causal": True,
    "attention_multiplier": 0.5,
}


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_without_effect_are_no_matter(key: str) -> None:
    assert config_from_hf(BASE | {key: HARMLESS[key]}) == config_from_hf(BASE)


DISAGREE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        BASE,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        r"rope_parameters \(.*\) and rope_scaling \(.*\) disagree",
    ),
    (
        BASE,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_theta": 1e4,
        },
        r"rope_theta is 1.*rope_para",
    ),
    (MOE, {"num_local_experts": 8}, r"num_experts 4 and num_local_experts 8 disagree"),
    (GPT2, {"n_ctx": 32}, r"n_positions 64 and n_ctx 32 disagree"),
    (
        QWEN,
        {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": False},
        r"layer_types has .* use_sliding_window",
    ),
    (
        {
            "model_type": "gemma3",
            "tie_word_embeddings": False,
            "text_config": GEMMA | {"tie_word_embeddings": True},
        },
        {},
        r"tie_word_embeddings is False but text_config.tie_word_embeddings is True",
    ),
]


@pytest.mark.parametrize(
    ("base", "change", "message"),
    DISAGREE,
    ids=lambda x: x[:20] if isinstance(x, str) else "",
)
def test_keys_that_disagree_are_both_named(
    base: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf(base | change)


def test_both_spellings_of_one_rope_are_no_disagreement() -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    both = BASE | {
        "rope_parameters": new,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 10000.0,
    }
    assert config_from_hf(both) == config_from_hf(BASE | {"rope_parameters": new})


def test_a_familys_default_base_is_no_disagreement() -> None:
    config = BASE | {"model_type": "mixtral", "num_local_experts": 2}
    new = config_from_hf(
        config | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    )
    assert new == config_from_hf(config | {"rope_theta": 100.0})


def test_phi_3_calls_longrope_yarn() -> None:
    factors = {"short_factor": [1.0, 1.1], "long_factor": [1.0, 4.0]}
    config = BASE | {"model_type": "phi3", "original_max_position_embeddings": 32}
    both = [
        config_from_hf(config | {"rope_scaling": {"type": kind} | factors})
        for kind in ("yarn", "su", "longrope")
    ]
    assert both[0] == both[1] == both[2]
    assert both[0].ropes[0].kind == "longrope"


STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        3,
        -1,
        10**9,
        10**30,
        0.5,
        -2.0,
        float("nan"),
        float("inf"),
        "",
        "16",
        "silu",
        [],
        [1],
        [None],
    ),
    *(
        {},
        {"a": 1},
        {"rope_type": "yarn"},
        {"full_attention": {"factor": "x"}},
        {"full_attention": None},
        [[1]],
        {"type": []},
    ),
    *(
        {"rope_type": "longrope", "factor": 2.0},
        {"rope_type": "yarn", "factor": 1e-300},
        {"type": "dynamic", "factor": 2},
    ),
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_value_of_any_key_gives_anything_but_one_message(family: str) -> None:
    base = (
        GPT2 if family == "gpt2" else BASE | {"head_dim": 8, "intermediate_size": 24}
    ) | {"model_type": family}
    if family == "gpt_neox":
        del base["head_dim"], base["num_key_value_heads"], base["rms_norm_eps"]
    if family.startswith("gemma"):
        del base["hidden_act"]
    if family in ("mixtral", "gpt_oss", "qwen3_moe"):
        base |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    config_from_hf(base)
    for key in {*KEYS, *base, "text_config", "quantization_config", "new_key"}:
        for value in STRANGE:
            try:
                cfg = config_from_hf(base | {key: value})
            except ValueError as error:
                assert "config.json" in str(error)  # noqa: PT017 - other values may be right, and then nothing is raised
            else:
                [rope.inv_freq() for rope in cfg.ropes]
