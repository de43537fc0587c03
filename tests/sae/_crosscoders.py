"""Miniatures of crosscoders, each with its source's formula; see `_layouts`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.sae._formulas import Case, D, K, Maker, N, gemma_scope_2, relu, rows, wide
from tests.sae._torchfiles import save_torch


def write_gemma_scope_2_crosscoder(folder: Path) -> Case:
    m, layers, n = Maker(7), 3, 8
    folder = folder / "crosscoder/layer_7_13_22_width_24_l0_small"
    folder.mkdir(parents=True)
    files = []
    for i in range(layers):
        t = gemma_scope_2(m, latents=n) | {"w_dec": m(n, layers, D)}
        save_file(t, folder / f"params_layer_{i}.safetensors")
        files.append(t)
    (folder / "config.json").write_text(
        json.dumps({"type": "crosscoder", "architecture": "jump_relu", "l0": 7})
    )
    we, wd, be, bd, th = (
        np.stack([f[k] for f in files]).astype(np.float64) for k in files[0]
    )
    x = m.x(layers)
    pre = np.einsum("bld,ldn->bln", x.astype(np.float64), we) + be
    codes = relu(pre) * (pre > th)
    recon = np.einsum("bin,inod->bod", codes, wd) + bd
    return Case(folder, x, codes.reshape(len(x), -1), recon, {"layer": 13})


def write_ckkissane(folder: Path) -> Case:
    m, scale = Maker(23), np.array([0.3, 0.4])[:, None]
    t = {"W_enc": m(2, D, N), "W_dec": m(N, 2, D), "b_enc": m(N), "b_dec": m(2, D)}
    x = m.x(2)
    we, wd, be, bd, z = wide(*t.values(), x)
    save_torch(folder / "cc_weights.pt", t)
    config = {
        "d_in": D,
        "dict_size": N,
        "hook_point": "blocks.14.hook_resid_pre",
        "model_name": "gemma-2-2b",
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    codes = relu(np.einsum("bmd,mdn->bn", z * scale, we) + be)
    recon = (np.einsum("bn,nmd->bmd", codes, wd) + bd) / scale
    return Case(folder, x, codes, recon, {"norm_scale": (0.3, 0.4), "model": "chat"})


def crosscoder_tensors(
    m: Maker, kind: int, threshold: Any, normalised: bool
) -> dict[str, np.ndarray]:
    t = {
        "encoder.weight": m(2, D, N),
        "encoder.bias": m(N),
        "decoder.weight": m(2, N, D),
        "decoder.bias": m(2, D),
    }
    mean, std = (
        (m(2, D), np.abs(m(2, D)))
        if normalised
        else (np.full((2, D), np.nan, np.float32),) * 2
    )
    scale = (
        (1 / np.sqrt((std**2).sum(-1) + 1e-8)).astype(np.float32)
        if normalised
        else np.ones(2, np.float32)
    )
    t |= {
        "target_rms": np.array(1, np.float32),
        "activation_mean": mean,
        "activation_std": std,
    }
    t |= {
        "activation_global_scale": scale,
        "code_normalization_id": np.array(kind),
        "k": np.array(K, np.int32),
    }
    return t | {"threshold": np.asarray(threshold, np.float32)}


def batchtopk_crosscoder(kind: int, normalised: bool) -> Callable[[Path], Case]:
    """The five code normalisations of the fork: sum of norms, norm of all, a mix, none,
    one per layer.
    """

    def write(folder: Path) -> Case:
        m = Maker(30 + kind)
        t = crosscoder_tensors(m, kind, [1.0, 2.0] if kind == 5 else 4.0, normalised)
        x = m.x(2, mean=0.3)
        (folder / "config.json").write_text(
            json.dumps({"dict_class": "BatchTopKCrossCoder", "activation_dim": D})
        )
        save_file(t, folder / "model.safetensors")
        we, be, wd, bd, mean, scale, z = wide(
            *(
                t[k]
                for k in (
                    "encoder.weight",
                    "encoder.bias",
                    "decoder.weight",
                    "decoder.bias",
                )
            ),
            t["activation_mean"],
            t["activation_global_scale"],
            x,
        )
        for _ in range((2 if kind == 5 else 1) * normalised):
            z = (z - mean) * scale[:, None]
        f = relu(np.einsum("bld,ldn->bn", z, we) + be)
        norms = rows(wd)
        apart, whole = norms.sum(0), np.sqrt((norms**2).sum(0))
        norm = {1: apart, 2: whole, 3: whole + 0.1 * apart, 4: 1.0, 5: norms}[kind]
        if kind == 5:
            codes = f[:, None] * (f[:, None] * norm > np.array([1.0, 2.0])[:, None])
            recon = np.einsum("bln,lnd->bld", codes, wd) + bd
        else:
            codes = f * (f * norm > 4.0)
            recon = np.einsum("bn,lnd->bld", codes, wd) + bd
        if normalised:
            recon = recon / (scale[:, None] + 1e-8) + mean
        return Case(folder, x, codes, recon, {"model": 1})

    return write
