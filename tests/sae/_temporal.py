"""Temporal SAEs in both layouts, and their formula token by token in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.sae._formulas import Case, D, K, Maker, relu

N, HEADS, BOTTLENECK, LAYERS, SCALE = 32, 2, 8, 2, 0.4


def tensors(m: Maker, *, tied: bool) -> dict[str, np.ndarray]:
    """With SAELens' names."""
    t = {"W_dec": m(N, D), "b_dec": m(D)} | ({} if tied else {"W_enc": m(D, N)})
    for i in range(LAYERS):
        for name, out in (
            ("k_ctx", N // BOTTLENECK),
            ("q_target", N // BOTTLENECK),
            ("v_ctx", N),
            ("c_proj", N),
        ):
            t |= {
                f"attn_layers.{i}.{name}.weight": m(out, N),
                f"attn_layers.{i}.{name}.bias": m(out),
            }
    return t


def formula(
    t: dict[str, np.ndarray],
    x_btd: np.ndarray,
    *,
    tied: bool,
    scale: float,
    k: int | None,
    bias: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Novel codes and output of every token, from the tokens up to it."""
    w = {name: value.astype(np.float64) for name, value in t.items()}
    enc = (w["W_dec"].T if tied else w["W_enc"]) / (4 * D)
    codes, out = np.zeros((*x_btd.shape[:2], N)), np.zeros(x_btd.shape)
    for b, x_td in enumerate(x_btd.astype(np.float64)):
        rest, predicted = x_td * scale - w["b_dec"] * bias, np.zeros((len(x_td), N))
        for i in range(LAYERS):
            linear = lambda name, v, i=i: (
                w[f"attn_layers.{i}.{name}.weight"] @ v
                + w[f"attn_layers.{i}.{name}.bias"]
            )
            z = relu(rest @ enc)
            context = [np.zeros(N), *z[:-1]]
            new = rest.copy()
            for at in range(len(z)):
                q = linear("q_target", z[at]).reshape(HEADS, -1)
                ks = np.stack(
                    [linear("k_ctx", c).reshape(HEADS, -1) for c in context[: at + 1]]
                )
                vs = np.stack(
                    [linear("v_ctx", c).reshape(HEADS, -1) for c in context[: at + 1]]
                )
                score = np.exp(np.einsum("he,she->hs", q, ks) / np.sqrt(q.shape[-1]))
                mixed = np.einsum(
                    "hs,she->he", score / score.sum(-1, keepdims=True), vs
                )
                guess = relu(linear("c_proj", mixed.reshape(-1)))
                written = guess @ w["W_dec"]
                share = written @ rest[at] / (np.linalg.norm(written) + 1e-6) ** 2
                predicted[at] += guess * share
                new[at] = rest[at] - share * written
            rest = new
        codes[b] = relu(rest @ enc)
        if k is not None:
            codes[b][np.argsort(np.argsort(-codes[b], -1), -1) >= k] = 0
        out[b] = (
            (codes[b] + predicted) @ w["W_dec"] + w["b_dec"] * (bias or not tied)
        ) / scale
    return codes, out


def sequences(m: Maker) -> np.ndarray:
    return m(3, 7, D, scale=4.0)


def write_saelens(
    folder: Path,
    *,
    tied: bool = True,
    k: int | None = K,
    bias: bool = True,
    scale: float = SCALE,
) -> Case:
    m = Maker(60)
    t, x = tensors(m, tied=tied), sequences(m)
    save_file(t, folder / "sae_weights.safetensors")
    config: dict[str, Any] = {
        "architecture": "temporal",
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
    }
    config |= {
        "apply_b_dec_to_input": bias,
        "normalize_activations": "constant_scalar_rescale",
        "tied_weights": tied,
    }
    config |= {
        "activation_normalization_factor": scale,
        "n_heads": HEADS,
        "n_attn_layers": LAYERS,
    }
    config |= {
        "bottleneck_factor": BOTTLENECK,
        "sae_diff_type": "topk" if k else "relu",
        "kval_topk": k,
    }
    config |= {
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "hook_name": "blocks.2.hook_resid_post",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return Case(folder, x, *formula(t, x, tied=tied, scale=scale, k=k, bias=bias))


def write_released(folder: Path) -> Case:
    """canrager/temporalSAEs: conf.yaml and the checkpoint of training."""
    m = Maker(61)
    folder = folder / "gemma-2-2B/layer_12/temporal"
    folder.mkdir(parents=True)
    t, x = tensors(m, tied=True), sequences(m)
    names = {"W_dec": "D", "b_dec": "b"}
    save_file(
        {names.get(name, name): value for name, value in t.items()},
        folder / "latest_ckpt.safetensors",
    )
    (folder / "conf.yaml").write_text(
        f"data:\n  dtype: float32\nllm:\n  dimin: {D}\nsae:\n  exp_factor: {N / D}\n  "
        f"n_heads: {HEADS}\n"
        f"  n_attn_layers: {LAYERS}\n  bottleneck_factor: {BOTTLENECK}\n  "
        f"sae_diff_type: topk\n  kval_topk: {K}\n"
        f"  tied_weights: true\n  scaling_factor: {SCALE}\n"
    )
    return Case(folder, x, *formula(t, x, tied=True, scale=SCALE, k=K, bias=True))
