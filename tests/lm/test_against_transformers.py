"""Rope scalings, partial rotation and windows against transformers itself, on random
models that it saves here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.hooks import Replace, Site
from sae_attr.lm.cache import init_cache
from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.model import forward, logits
from sae_attr.lm.rope import Rope
from sae_attr.lm.save import save_lm
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of torch and transformers, which these tests do not judge

TOLERANCE = 2e-4
COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for attention to be far from uniform
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 4.0, 9.0]}


def plain_ropes(cfg: LMConfig) -> LMConfig:
    """The same model without any scaling of its frequencies."""
    return replace(cfg, ropes=tuple(Rope(rope.dim, rope.theta) for rope in cfg.ropes))


def no_windows(cfg: LMConfig) -> LMConfig:
    """The same model with full attention in every layer."""
    return replace(cfg, window_of_layer=(NO_WINDOW,) * cfg.n_layers)


def full_rotation(cfg: LMConfig) -> LMConfig:
    """The same model with all channels of a head rotated."""
    return replace(
        cfg, ropes=tuple(replace(rope, dim=cfg.head_dim) for rope in cfg.ropes)
    )


@dataclass(frozen=True)
class Case:
    """A model of transformers, and the change of our config that must not give the same
    logits.
    """

    family: str
    fields: dict[str, Any]
    without: Callable[[LMConfig], LMConfig]
    lengths: tuple[int, ...] = (48,)


def longrope(**fields: Any) -> dict[str, Any]:
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        **FACTORS,
    }
    return {
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 32,
        "rope_parameters": scaling,
    } | fields


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
HALF = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
GEMMA3: dict[str, Any] = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "num_key_value_heads": 2,
}
GEMMA3 |= {
    "rope_parameters": LINEAR,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

GPT2 = {"n_inner": 48, "scale_attn_by_inverse_layer_idx": True}
MOE: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
MOE |= {"moe_intermediate_size": 20, "norm_topk_prob": True}


def other_base(cfg: LMConfig) -> LMConfig:
    """The same model with another base of its frequencies."""
    return replace(cfg, ropes=tuple(replace(rope, theta=50.0) for rope in cfg.ropes))


def all_chosen(cfg: LMConfig) -> LMConfig:
    """The same model with a single expert for a token."""
    return replace(cfg, n_chosen=1)


CASES = {
    "longrope, short rows": Case("Phi3", longrope(), plain_ropes, (20, 32)),
    "longrope, long rows": Case("Phi3", longrope(), plain_ropes, (33, 48)),
    "longrope, rows of each kind": Case(
        "Phi3", longrope(), plain_ropes, (5, 31, 32, 33, 64)
    ),
    "longrope, half rotated": Case(
        "Phi3",
        longrope(
            num_attention_heads=2,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
                **FACTORS,
            },
        ),
        plain_ropes,
        (20, 48),
    ),
    "longrope in llama": Case(
        "Llama",
        {
            "rope_parameters": {
                **longrope()["rope_parameters"],
                "original_max_position_embeddings": 32,
            }
        },
        plain_ropes,
        (20, 48),
    ),
    "linear in the global layers of gemma 3": Case("Gemma3Text", GEMMA3, plain_ropes),
    "windows of gemma 3": Case("Gemma3Text", GEMMA3, no_windows),
    "linear": Case(
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 3.0,
                "rope_theta": 100.0,
            }
        },
        plain_ropes,
    ),
    "yarn": Case(
        "Llama", {"num_key_value_heads": 2, "rope_parameters": YARN}, plain_ropes
    ),
    "yarn with betas": Case(
        "Llama",
        {
            "rope_parameters": YARN
            | {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}
        },
        plain_ropes,
    ),
    "yarn with mscale": Case(
        "Llama",
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
        plain_ropes,
    ),
    "yarn with its attention factor": Case(
        "Qwen3",
        {
            "head_dim": 8,
            "num_key_value_heads": 2,
            "rope_parameters": YARN | {"attention_factor": 1.7},
        },
        plain_ropes,
    ),
    "llama3": Case(
        "Llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3}, plain_ropes
    ),
    "phi3, half rotated": Case(
        "Phi3", {"num_key_value_heads": 2, "rope_parameters": HALF}, full_rotation
    ),
    "neox, quarter rotated": Case(
        "GPTNeoX",
        {
            "rope_parameters": HALF | {"partial_rotary_factor": 0.25},
            "attention_bias": True,
        },
        full_rotation,
    ),
    "neox, one addition after the other": Case(
        "GPTNeoX",
        {"rope_parameters": HALF, "use_parallel_residual": False},
        lambda cfg: replace(cfg, parallel_residual=True),
    ),
    "windows of qwen 2": Case(
        "Qwen2",
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
        no_windows,
    ),
    "windows of phi 3": Case(
        "Phi3", {"num_key_value_heads": 2, "sliding_window": 8}, no_windows
    ),
    "dynamic, within the trained length": Case(
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "factor": 4.0,
                "rope_theta": 100.0,
            }
        },
        other_base,
        (48, 128),
    ),
    "gpt 2, attention scaled by the layer": Case(
        "GPT2", GPT2, lambda cfg: replace(cfg, inverse_layer_scale=False)
    ),
    "gpt 2, no other scale": Case(
        "GPT2",
        GPT2 | {"scale_attn_weights": False},
        lambda cfg: replace(cfg, query_scale=1 / 3),
    ),
    "experts in every other layer": Case(
        "Qwen3Moe", MOE | {"decoder_sparse_step": 2}, all_chosen
    ),
    "experts but in two layers": Case(
        "Qwen3Moe", MOE | {"mlp_only_layers": [0, 3]}, all_chosen
    ),
    "biases of olmo 2": Case(
        "Olmo2", {"attention_bias": True}, lambda cfg: replace(cfg, norm_eps=0.1)
    ),
    "windows of mistral": Case(
        "Mistral", {"num_key_value_heads": 2, "sliding_window": 8}, no_windows
    ),
}


def save(case: Case, folder: Path) -> Any:
    """A random model of transformers, which also lies in `folder`; norms and biases are
    random too.
    """
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(
        **{**COMMON, **case.fields, "attn_implementation": "eager"}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def padded(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens `[b, t]`, and which are no padding."""
    tokens_bt = (
        np.random.default_rng(0)
        .integers(3, 100, (len(lengths), max(lengths)))
        .astype(np.int32)
    )
    return tokens_bt, np.arange(max(lengths)) < np.asarray(lengths)[:, None]


def older(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers wrote it before version 5: what belongs to ropes and
    layers lay in keys of its own.
    """
    new, types = config.pop("rope_parameters"), config.pop("layer_types", ())
    main = dict(new.get("full_attention", new))
    config |= {
        "rope_theta": main.pop("rope_theta"),
        "partial_rotary_factor": main.pop("partial_rotary_factor", 1.0),
    }
    if config["model_type"] == "gpt_neox":
        config["rotary_pct"] = config.pop("partial_rotary_factor")
    if "sliding_attention" in new:
        config |= {
            "rope_local_base_freq": new["sliding_attention"]["rope_theta"],
            "sliding_window_pattern": 2,
        }
    if config["model_type"] == "qwen2" and config["sliding_window"]:
        config |= {
            "use_sliding_window": True,
            "max_window_layers": types.index("sliding_attention"),
        }
    kind = main.pop("rope_type")
    if config["model_type"] == "phi3":
        main.pop("original_max_position_embeddings", None)
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **main}
    return config


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.family != "GPT2"]
)  # which has one
def test_the_older_spelling_means_the_same(tmp_path: Path, name: str) -> None:
    save(CASES[name], tmp_path)
    new = load_config(str(tmp_path))
    config = older(json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_config(str(tmp_path)) == new


@pytest.mark.parametrize("name", CASES)
def test_logits(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = save(case, tmp_path)
    cfg, params = load_lm(str(tmp_path), mesh=make_mesh("data=1"), progress=False)
    tokens_bt, valid_bt = padded(case.lengths)

    def ours(cfg: LMConfig) -> np.ndarray:
        run = jax.jit(
            lambda p: logits(
                p,
                forward(
                    p, jnp.asarray(tokens_bt), cfg=cfg, valid_bt=valid_bt
                ).hidden_btd,
                cfg=cfg,
            )
        )
        return np.asarray(run(params))

    got, other = ours(cfg), ours(case.without(cfg))
    gaps, effects = [], []
    for row, length in enumerate(
        case.lengths
    ):  # each by itself: transformers decides by the longest row of a batch
        with torch.no_grad():
            want = (
                model(torch.tensor(tokens_bt[row : row + 1, :length], dtype=torch.long))
                .logits[0]
                .numpy()
            )
        gaps.append(np.abs(got[row, :length] - want).max())
        effects.append(np.abs(other[row, :length] - want).max())
    assert max(gaps) <= TOLERANCE, gaps
    assert max(effects) > 100 * TOLERANCE, effects


def gpt2_of(folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**COMMON, n_inner=48, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).eval()
    for name in (
        "transformer.ln_f",
        *(f"transformer.h.{i}.{ln}" for i in range(4) for ln in ("ln_1", "ln_2")),
    ):
        norm = torch.nn.RMSNorm(32, eps=1e-5)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        model.set_submodule(name, norm)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("renamed", [False, True])
def test_learned_positions_with_rms_norm_by_a_config_of_its_own(
    tmp_path: Path, renamed: bool
) -> None:
    """No config.json describes such a model; the parts are known, so an LMConfig does."""
    model = gpt2_of(tmp_path)
    cfg = replace(load_config(str(tmp_path)), norm="rms")
    if renamed:
        tensors = load_file(tmp_path / "model.safetensors")
        tensors["positions"] = tensors.pop("transformer.wpe.weight")
        tensors |= {
            f"blocks.{i}.g": tensors.pop(f"transformer.h.{i}.ln_2.weight")
            for i in range(4)
        }
        save_file(tensors, tmp_path / "model.safetensors")
        cfg = replace(
            cfg, names=(("pos/table", "positions"), ("mlp_norm/scale", "blocks.{}.g"))
        )
    got_cfg, params = load_lm(
        str(tmp_path), cfg=cfg, mesh=make_mesh("data=1"), progress=False
    )
    assert got_cfg == cfg
    tokens_bt, _ = padded((20,))
    got = logits(
        params, forward(params, jnp.asarray(tokens_bt), cfg=cfg).hidden_btd, cfg=cfg
    )
    with torch.no_grad():
        want = model(torch.tensor(tokens_bt, dtype=torch.long)).logits.numpy()
    assert np.abs(np.asarray(got) - want).max() <= TOLERANCE


def test_rows_beyond_the_trained_length_of_a_dynamic_rope_are_refused(
    tmp_path: Path,
) -> None:
    save(CASES["dynamic, within the trained length"], tmp_path)
    cfg, params = load_lm(str(tmp_path), mesh=make_mesh("data=1"), progress=False)
    tokens_bt, _ = padded((129,))
    with pytest.raises(
        ValueError,
        match=r"rows of 129 tokens are longer than the 128 .* 'dynamic' is implemented",
    ):
        forward(params, jnp.asarray(tokens_bt), cfg=cfg)
    cache = init_cache(cfg, rows=1, slots=129, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"rows of 129 tokens are longer than the 128"):
        forward(
            params,
            jnp.asarray(tokens_bt[:, :4]),
            cfg=cfg,
            cache=cache,
            pos_bt=jnp.arange(4)[None],
        )


@pytest.mark.slow
def test_a_model_of_both_kinds_of_layers_is_edited_differentiated_and_written(
    tmp_path: Path,
) -> None:
    save(CASES["experts but in two layers"], tmp_path / "a")
    cfg, params = load_lm(
        str(tmp_path / "a"), mesh=make_mesh("data=2,model=2"), progress=False
    )
    tokens = jnp.asarray(padded((8, 8))[0])
    sites = (Site(0, "mlp_out"), Site(2, "mlp_out"))
    whole = jax.jit(lambda p: forward(p, tokens, cfg=cfg).hidden_btd)(params)
    acts = jax.jit(lambda p: forward(p, tokens, cfg=cfg, keep=sites).acts)(params)
    edits = {site: Replace(value) for site, value in acts.items()}
    edited = jax.jit(lambda p: forward(p, tokens, cfg=cfg, edits=edits).hidden_btd)(
        params
    )
    np.testing.assert_allclose(edited, whole, atol=1e-4)
    slope = jax.jit(
        jax.grad(lambda p: forward(p, tokens, cfg=cfg).hidden_btd[..., 0].sum())
    )(params)
    assert all(
        np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(slope["blocks"])
    )
    save_lm(
        tmp_path / "b", json.loads((tmp_path / "a/config.json").read_text()), params
    )
    _, again = load_lm(str(tmp_path / "b"), mesh=make_mesh("data=1"), progress=False)
    jax.tree.map(np.testing.assert_array_equal, again, params)
