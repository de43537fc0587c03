"""Miniatures of every format in its exact layout on disk, each with its source's
formula written out in numpy.

`write(folder)` makes the files and returns a `Case`: where they are, the options that
loading needs, an input, and the codes and output that the formula gives for it. No line
here is shared with the loaders.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.sae import _crosscoders, _openmoss
from tests.sae._formulas import (
    Case,
    D,
    K,
    Maker,
    N,
    gemma_scope_2,
    keep,
    linear,
    relu,
    rows,
    standard_tensors,
    wide,
)
from tests.sae._torchfiles import save_torch

_VERSION = {"sae_lens_version": "6.54.12"}


def saelens(
    folder: Path, architecture: str, tensors: dict[str, np.ndarray], **config: Any
) -> Path:
    said = {
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.2.hook_resid_post"}
    said |= {"architecture": architecture, "metadata": metadata, **config}
    (folder / "cfg.json").write_text(json.dumps(said))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def write_saelens_abstopk(folder: Path) -> Case:
    m = Maker(1)
    t, x = standard_tensors(m), m.x()
    we, wd, be, bd, z = wide(t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], x)
    pre = (z - bd) @ we + be
    codes = keep(pre, np.abs(pre), K)
    return Case(saelens(folder, "abstopk", t, k=K), x, codes, codes @ wd + bd)


def write_saelens_abstopk_rescaled(folder: Path) -> Case:
    m = Maker(2)
    t, x = standard_tensors(m), m.x()
    we, wd, be, bd, z = wide(t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], x)
    pre = ((z - bd) @ we + be) * rows(wd)
    codes = keep(pre, np.abs(pre), K)
    path = saelens(folder, "abstopk", t, k=K, rescale_acts_by_decoder_norm=True)
    return Case(path, x, codes, (codes / rows(wd)) @ wd + bd)


def pursue(
    rows_nd: np.ndarray, x: np.ndarray, limit: float, rounds: int, stop: bool
) -> np.ndarray:
    codes = np.zeros((len(x), N))
    for i, token in enumerate(x):
        rest = token
        for _ in range(rounds):
            used = codes[i] != 0
            scores = relu(rows_nd @ rest)
            best = int(scores.argmax())
            codes[i, best] += scores[best]
            rest = rest - scores[best] * rows_nd[best]
            if (stop and ((codes[i] != 0) == used).all()) or np.linalg.norm(
                rest
            ) < limit:
                break
    return codes


def matching_pursuit(
    scale: float, limit: float, rounds: int | None, stop: bool
) -> Callable[[Path], Case]:
    """`scale` is that of expected_average_only_in, from activation_scaler.json."""

    def write(folder: Path) -> Case:
        m = Maker(3)
        t, x = {"W_dec": m(N, D), "b_dec": m(D)}, m.x()
        t["W_dec"] /= rows(t["W_dec"])[:, None]
        wd, bd, z = wide(t["W_dec"], t["b_dec"], x)
        codes = pursue(wd, z * scale - bd, limit, rounds or D, stop)
        norm = (
            {} if scale == 1 else {"normalize_activations": "expected_average_only_in"}
        )
        config = {
            "residual_threshold": limit,
            "max_iterations": rounds,
            "stop_on_duplicate_support": stop,
            **norm,
        }
        path = saelens(folder, "matching_pursuit", t, **config)
        if scale != 1:
            (folder / "activation_scaler.json").write_text(
                json.dumps({"scaling_factor": scale})
            )
        return Case(
            path, x, codes / scale, (codes @ wd + bd) / scale
        )  # codes of a folded SAE are in units of x

    return write


def write_saelens_layer_norm(folder: Path) -> Case:
    m = Maker(4)
    t, x = standard_tensors(m), m.x(mean=1.0)
    we, wd, be, bd, z = wide(t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], x)
    mu, std = z.mean(-1, keepdims=True), z.std(-1, ddof=1, keepdims=True)
    codes = relu(((z - mu) / (std + 1e-5) - bd) @ we + be)
    path = saelens(folder, "standard", t, normalize_activations="layer_norm")
    return Case(path, x, codes, (codes @ wd + bd) * std + mu)


def write_saelens_matryoshka_checkpoint(folder: Path) -> Case:
    m = Maker(5)
    t, x = standard_tensors(m) | {"topk_threshold": np.array(1.25, np.float64)}, m.x()
    we, wd, be, bd, z = wide(t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], x)
    pre = ((z - bd) @ we + be) * rows(wd)
    codes = relu(pre) * (pre > 1.25)
    path = saelens(
        folder, "matryoshka_batchtopk", t, k=5.0, rescale_acts_by_decoder_norm=True
    )
    return Case(path, x, codes, (codes / rows(wd)) @ wd + bd)


def write_gemma_scope_2_transcoder(folder: Path) -> Case:
    m = Maker(6)
    t, x = gemma_scope_2(m) | {"affine_skip_connection": m(D, D)}, m.x()
    we, wd, be, bd, th, skip, z = wide(*t.values(), x)
    save_file(t, folder / "params.safetensors")
    config = {
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "width": N,
        "l0": 7,
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
        "affine_connection": True,
        "architecture": "jump_relu",
        "type": "transcoder",
        "model_name": "google/gemma-3-1b-it",
    }
    (folder / "config.json").write_text(json.dumps(config))
    pre = z @ we + be
    codes = relu(pre) * (pre > th)
    return Case(folder, x, codes, codes @ wd + bd + z @ skip)


def write_openai_tied_identity(folder: Path) -> Case:
    m = Maker(8)
    t = {"pre_bias": m(D), "latent_bias": m(N), "encoder.weight": m(N, D)}
    x = m.x(mean=0.5)
    bd, be, we, z = wide(*t.values(), x)
    path = folder / "resid_post_attn_v5_32k/autoencoders/7.pt"
    path.parent.mkdir(parents=True)
    save_torch(
        path,
        t
        | {
            "activation": "TopK",
            "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
        },
    )
    mu, std = z.mean(-1, keepdims=True), z.std(-1, ddof=1, keepdims=True)
    pre = ((z - mu) / (std + 1e-5) - bd) @ we.T + be
    codes = relu(keep(pre, pre, K))
    return Case(path, x, codes, (codes @ we + bd) * std + mu)


def sparsify(
    folder: Path, m: Maker, hookpoint: str, **config: Any
) -> dict[str, np.ndarray]:
    (folder / hookpoint).mkdir(parents=True)
    t = {
        "encoder.weight": m(N, D),
        "encoder.bias": m(N),
        "W_dec": m(N, D),
        "b_dec": m(D),
    }
    save_file(t, folder / hookpoint / "sae.safetensors")
    said = {
        "activation": "topk",
        "expansion_factor": N // D,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
    }
    (folder / hookpoint / "cfg.json").write_text(json.dumps(said | config))
    return t


def write_sparsify_groupmax(folder: Path) -> Case:
    m = Maker(9)
    t, x = sparsify(folder, m, "layers.3", activation="groupmax", k=4), m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    pre = relu((z - bd) @ we.T + be)
    codes = np.zeros_like(pre)
    for group in range(4):
        part = slice(group * N // 4, (group + 1) * N // 4)
        best = pre[:, part].argmax(-1) + part.start
        codes[np.arange(len(x)), best] = pre[np.arange(len(x)), best]
    return Case(folder / "layers.3", x, codes, codes @ wd + bd)


def write_sparsify_signed(folder: Path) -> Case:
    m = Maker(10)
    t, x = sparsify(folder, m, "layers.3", signed=True), m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    pre = (z - bd) @ we.T + be
    codes = keep(pre, np.abs(pre), K)
    return Case(folder / "layers.3", x, codes, codes @ wd + bd)


def write_sparsify_old_transcoder(folder: Path) -> Case:
    m = Maker(11)
    t, x = sparsify(folder, m, "layers.3.mlp", transcode=True), m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    pre = relu((z - bd) @ we.T + be)
    codes = keep(pre, pre, K)
    return Case(folder / "layers.3.mlp", x, codes, codes @ wd + bd, {"pre_bias": True})


def dictionary_learning(folder: Path, dict_class: str) -> None:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": N,
        "layer": 3,
        "k": K,
    }
    (folder / "config.json").write_text(
        json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}})
    )


def write_dictionary_learning_new(folder: Path) -> Case:
    m = Maker(12)
    t, x = linear(m), m.x()
    we, be, wd, bd, z = wide(*t.values(), x)
    dictionary_learning(folder, "AutoEncoderNew")
    save_torch(folder / "ae.pt", t)
    codes = relu(z @ we.T + be)
    return Case(folder, x, codes, codes @ wd.T + bd)


def write_dictionary_learning_backup(folder: Path) -> Case:
    m, factor = Maker(13), 2.5
    t = {
        "encoder.weight": m(N, D),
        "encoder.bias": m(N),
        "decoder.weight": m(D, N),
        "b_dec": m(D),
    }
    t |= {"k": np.array(K, np.int32), "threshold": np.array(0.5, np.float32)}
    x = m.x()
    we, be, wd, bd, z = wide(*list(t.values())[:4], x)
    config = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": N, "k": K}
    optimizer = {
        "state": {0: {"step": np.array(3.0, np.float32), "exp_avg": m(N, D)}},
        "param_groups": [{"lr": 0.1}],
    }
    save_torch(
        folder / "ae.pt",
        {
            "step": 9,
            "ae": t,
            "optimizer": optimizer,
            "config": config,
            "norm_factor": factor,
        },
    )
    pre = relu(
        (z / factor - bd) @ we.T + be
    )  # as training saw it; codes are in units of x
    codes = pre * (pre > 0.5) * factor
    return Case(folder, x, codes, codes @ wd.T + bd * factor)


def saelens_transcoder(architecture: str) -> Callable[[Path], Case]:
    """What the goldens lack: the two transcoders of SAELens with a skip alone or a
    threshold alone, of another width out.
    """

    def write(folder: Path) -> Case:
        m, out = Maker(54), D - 2
        t = {"W_enc": m(D, N), "W_dec": m(N, out), "b_enc": m(N), "b_dec": m(out)}
        t |= (
            {"W_skip": m(out, D)}
            if "skip" in architecture
            else {"threshold": np.abs(m(N))}
        )
        x = m.x()
        we, wd, be, bd, last, z = wide(*t.values(), x)
        pre = z @ we + be
        codes = relu(pre) if "skip" in architecture else relu(pre) * (pre > last)
        said = {
            "hook_name": "blocks.2.mlp.hook_in",
            "hook_name_out": "blocks.2.hook_mlp_out",
        }
        path = saelens(
            folder,
            architecture,
            t,
            d_out=out,
            apply_b_dec_to_input=False,
            metadata=said | _VERSION,
        )
        return Case(
            path,
            x,
            codes,
            codes @ wd + bd + (z @ last.T if "skip" in architecture else 0),
        )

    return write


def circuit_tracer_tensors(m: Maker) -> dict[str, np.ndarray]:
    return {"W_enc": m(N, D), "W_dec": m(N, D), "b_enc": m(N), "b_dec": m(D)}


def write_circuit_tracer(folder: Path) -> Case:
    m = Maker(50)
    t = circuit_tracer_tensors(m) | {
        "activation_function.threshold": np.abs(m(N)),
        "W_skip": m(D, D),
    }
    x = m.x()
    we, wd, be, bd, th, skip, z = wide(*t.values(), x)
    save_file(t, folder / "layer_3.safetensors")
    (folder / "config.yaml").write_text(
        "model_kind: transcoder_set\nmodel_name: "
        "google/gemma-2-2b\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\ntranscoders:\n- "
        "hf://a/b/layer_3.safetensors\n"
    )
    pre = z @ we.T + be
    codes = relu(pre) * (pre > th)
    return Case(folder / "layer_3.safetensors", x, codes, codes @ wd + bd + z @ skip.T)


def write_qwen3_transcoder(folder: Path) -> Case:
    """mwhanna's, whose larger ones have no config."""
    m = Maker(51)
    t, x = circuit_tracer_tensors(m), m.x()
    we, wd, be, bd, z = wide(*t.values(), x)
    path = (
        folder
        / "models--mwhanna--qwen3-14b-transcoders/snapshots/ab/layer_7.safetensors"
    )
    path.parent.mkdir(parents=True)
    save_file(t, path)
    codes = relu(z @ we.T + be)
    return Case(path, x, codes, codes @ wd + bd)


def write_gemma_scope_embedding(folder: Path) -> Case:
    m = Maker(52)
    t = standard_tensors(m) | {"threshold": np.abs(m(N))}
    we, wd, be, bd, th = wide(
        t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], t["threshold"]
    )
    folder = (
        folder
        / "models--google--gemma-scope-2b-pt-res/snapshots/ab/embedding/width_24/average_l0_6"
    )
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **t)
    rows_kd = m.x()  # of the embedding table; the first block reads them times sqrt(d)
    pre = rows_kd.astype(np.float64) @ we + be
    codes = relu(pre) * (pre > th)
    x = (rows_kd * np.sqrt(D)).astype(np.float32)
    return Case(folder, x, codes, (codes @ wd + bd) * np.sqrt(D))


def write_saelens_centred(folder: Path) -> Case:
    """TransformerLens' center_writing_weights: the SAE saw the residual stream less its
    mean over the channels.
    """
    m = Maker(53)
    t, x = standard_tensors(m), m.x(mean=3.0)
    we, wd, be, bd, z = wide(t["W_enc"], t["W_dec"], t["b_enc"], t["b_dec"], x)
    mean = z.mean(-1, keepdims=True)
    codes = relu((z - mean - bd) @ we + be)
    metadata = {"hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2-small"}
    metadata |= {
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "sae_lens_version": "6.54.12",
    }
    return Case(
        saelens(folder, "standard", t, metadata=metadata),
        x,
        codes,
        codes @ wd + bd + mean,
    )


_WRITERS = [*globals().items(), *vars(_openmoss).items(), *vars(_crosscoders).items()]
LAYOUTS: dict[str, Callable[[Path], Case]] = {
    name.removeprefix("write_"): made
    for name, made in _WRITERS
    if name.startswith("write_")
}
LAYOUTS |= {
    f"saelens_{kind}": saelens_transcoder(kind)
    for kind in ("skip_transcoder", "jumprelu_transcoder")
}
LAYOUTS |= {
    "saelens_matching_pursuit": matching_pursuit(1, 0.3, None, True),
    "saelens_matching_pursuit_rounds": matching_pursuit(1, 0, 3, False),
    "saelens_matching_pursuit_scaled": matching_pursuit(0.4, 0.3, 50, False),
}
_KINDS = enumerate(("crosscoder", "sae", "mixed", "none", "decoupled"), start=1)
LAYOUTS |= {
    f"batchtopk_{name}": _crosscoders.batchtopk_crosscoder(kind, kind != 4)
    for kind, name in _KINDS
}
LAYOUTS["batchtopk_decoupled_plain"] = _crosscoders.batchtopk_crosscoder(5, False)
CROSSCODERS = tuple(
    n
    for n in LAYOUTS
    if n.startswith("batchtopk") or n in ("ckkissane", "gemma_scope_2_crosscoder")
)
