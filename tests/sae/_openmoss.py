"""Miniatures of the formats of OpenMOSS and of single-file releases, each with its
source's formula; see `_layouts`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.sae._formulas import (
    Case,
    D,
    K,
    Maker,
    N,
    keep,
    linear,
    relu,
    rows,
    standard_tensors,
    wide,
)
from tests.sae._torchfiles import save_torch


def llama_scope(folder: Path, m: Maker, **config: Any) -> dict[str, np.ndarray]:
    folder = folder / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    t = linear(m)
    save_file(t, folder / "checkpoints/final.safetensors")
    said = {
        "d_model": D,
        "d_sae": N,
        "hook_point_in": "blocks.15.hook_resid_post",
        "act_fn": "topk",
        "top_k": K,
        "hook_point_out": "blocks.15.hook_resid_post",
        "jump_relu_threshold": 2.5,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True,
    }
    (folder / "hyperparams.json").write_text(json.dumps(said | config))
    (folder / "lm_config.json").write_text("{}")
    return t


def official_llama_scope(
    t: dict[str, np.ndarray], x: np.ndarray, norm_in: float, norm_out: float
) -> tuple:
    we, be, wd, bd, z = wide(*t.values(), x)
    s_in, s_out = D**0.5 / norm_in, D**0.5 / norm_out
    be, bd, wd = be / s_in, bd / s_out, wd * s_in / s_out
    norms = np.linalg.norm(wd, axis=0)
    we, be, wd = we * norms[:, None], be * norms, wd / norms
    pre = z @ we.T + be
    codes = np.where(pre > 2.5, pre, 0)
    return codes, codes @ wd.T + bd


def write_llama_scope(folder: Path) -> Case:
    m = Maker(14)
    t, x = llama_scope(folder, m), m.x()
    return Case(
        folder / "Llama3_1-8B-Base-L15R-8x", x, *official_llama_scope(t, x, 5.0, 5.0)
    )


def write_llama_scope_transcoder(folder: Path) -> Case:
    m = Maker(15)
    norms = {
        "hook_point_out": "blocks.15.hook_mlp_out",
        "dataset_average_activation_norm": {"in": 5.0, "out": 0.7},
    }
    t, x = llama_scope(folder, m, **norms), m.x()
    return Case(
        folder / "Llama3_1-8B-Base-L15R-8x", x, *official_llama_scope(t, x, 5.0, 0.7)
    )


def llamascopium(folder: Path, m: Maker, **config: Any) -> dict[str, np.ndarray]:
    t = {"W_E": m(D, N), "b_E": m(N), "W_D": m(N, D), "b_D": m(D)}
    hook = "blocks.4.hook_resid_post"
    said = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": N / D,
        "act_fn": "topk",
        "top_k": K,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_decoder_bias": True,
    }
    (folder / "config.json").write_text(json.dumps(said | config))
    return t


def write_llamascopium_topk(folder: Path) -> Case:
    m = Maker(16)
    t, x = llamascopium(folder, m), m.x()
    # A buffer that training never set: whatever lay in memory.
    buffer = {
        "dataset_average_activation_norm.blocks.4.hook_resid_post": np.array(
            np.nan, np.float32
        )
    }
    save_torch(folder / "sae_weights.pt", {"sae": t | buffer, "version": "2.0"})
    we, be, wd, bd, z = wide(*t.values(), x)
    pre = z @ we + be
    codes = relu(keep(pre, pre * rows(wd), K))
    return Case(folder, x, codes, codes @ wd + bd)


def write_llamascopium_jumprelu(folder: Path) -> Case:
    m, hook = Maker(17), "blocks.4.hook_resid_post"
    t = llamascopium(folder, m, act_fn="jumprelu", norm_activation="dataset-wise")
    x = m.x()
    log = m(N)
    extra = {"activation_function.log_jumprelu_threshold": log}
    extra |= {f"dataset_average_activation_norm.{hook}": np.array(4.0, np.float32)}
    save_file(t | extra, folder / "sae_weights.safetensors")
    we, be, wd, bd, z = wide(*t.values(), x)
    s = D**0.5 / 4
    pre = z * s @ we + be
    codes = np.where(pre * rows(wd) > np.exp(log.astype(np.float64)), pre, 0)
    return Case(folder, x, codes, (codes @ wd + bd) / s)


def write_r1_distill(folder: Path) -> Case:
    m = Maker(18)
    llamascopium(folder, m, act_fn="jumprelu", sparsity_include_decoder_norm=False)
    t, log, x = linear(m), m(N), m.x()
    save_file(t | {"log_jumprelu_threshold": log}, folder / "sae_weights.safetensors")
    we, be, wd, bd, z = wide(*t.values(), x)
    pre = z @ we.T + be
    codes = relu(pre) * (pre > np.exp(log.astype(np.float64)))
    return Case(folder, x, codes, codes @ wd.T + bd)


def write_goodfire(folder: Path) -> Case:
    m = Maker(19)
    t, x = {k.replace(".", "_linear."): v for k, v in linear(m).items()}, m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    path = save_torch(folder / "Llama-3.1-8B-Instruct-SAE-l19.pth", t)
    codes = relu(z @ we.T + be)
    return Case(path, x, codes, codes @ wd.T + bd)


def write_qresearch(folder: Path) -> Case:
    import ml_dtypes

    m = Maker(20)
    t, x = {k: v.astype(ml_dtypes.bfloat16) for k, v in linear(m).items()}, m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    path = save_torch(folder / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", t)
    codes = relu(z @ we.T + be)
    return Case(path, x, codes, codes @ wd.T + bd)


def write_qwen_scope(folder: Path) -> Case:
    m = Maker(21)
    folder = folder / "SAE-Res-Qwen3-8B-Base-W64K-L0_5"
    folder.mkdir()
    t, x = {"W_enc": m(N, D), "W_dec": m(D, N), "b_enc": m(N), "b_dec": m(D)}, m.x()
    we, wd, be, bd, z = wide(*t.values(), x)
    path = save_torch(folder / "layer3.sae.pt", t)
    pre = relu(z @ we.T + be)
    codes = keep(pre, pre, 5)
    return Case(path, x, codes, codes @ wd.T + bd)


def write_connor_rob(folder: Path) -> Case:
    m = Maker(22)
    t, x = standard_tensors(m), m.x()
    we, wd, be, bd, z = wide(*t.values(), x)
    path = save_torch(folder / "gpt2-small_L5_Hcat_z_v9.pt", t)
    config = {
        "act_size": D,
        "dict_size": N,
        "act_name": "blocks.5.attn.hook_z",
        "layer": 5,
        "model_name": "gpt2",
    }
    (folder / "gpt2-small_L5_Hcat_z_v9_cfg.json").write_text(json.dumps(config))
    codes = relu((z - bd) @ we + be)
    return Case(path, x, codes, codes @ wd + bd)
