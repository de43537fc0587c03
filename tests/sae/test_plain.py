"""SAE files of one's own: codes equal the formula whichever way they are stored, and
what no file tells is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_attr.sae.formats import load_sae, open_decoder, read_config
from sae_attr.sae.model import encode, reconstruct
from tests.sae._torchfiles import save_torch

D, N, K = 6, 20, 4
RNG = np.random.default_rng(0)
W_ENC = RNG.normal(size=(D, N)).astype(np.float32)
W_DEC = RNG.normal(size=(N, D)).astype(np.float32)
B_ENC = RNG.normal(size=N).astype(np.float32) * 0.3
B_DEC = RNG.normal(size=D).astype(np.float32)
MEAN = RNG.normal(size=D).astype(np.float32) * 3
X = RNG.normal(size=(7, D)).astype(np.float32) * 2
ASIS = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
LINEAR = {
    "encoder.weight": W_ENC.T,
    "encoder.bias": B_ENC,
    "decoder.weight": W_DEC.T,
    "decoder.bias": B_DEC,
}


def formula(
    gate: str,
    *,
    subtract: bool = False,
    mean: Any = 0.0,
    scale: float = 1.0,
    dec: Any = W_DEC,
    by: Any = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and output in float64, as a script of one's own would say it; `by`: factors
    of the selection.
    """
    x = (X.astype(np.float64) - mean) * scale
    pre = (x - subtract * B_DEC) @ W_ENC.astype(np.float64) + B_ENC
    codes = np.maximum(pre, 0)
    if gate == "topk":
        order = np.argsort(-(pre * by), axis=1)[:, :K]
        kept = np.zeros_like(pre, bool)
        np.put_along_axis(kept, order, True, 1)
        codes = codes * kept
    if gate == "jumprelu":
        codes = codes * (pre > 0.7)
    return codes, (codes @ np.asarray(dec, np.float64) + B_DEC) / scale + mean


def write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(
            {name: np.ascontiguousarray(value) for name, value in content.items()}, path
        )
    elif path.suffix == ".npz":
        arrays: dict[str, Any] = content
        np.savez(path, **arrays)
    else:
        save_torch(path, content)
    return path


def agrees(path: Path, want: tuple[np.ndarray, np.ndarray], **options: Any) -> None:
    """Codes, output and decoder rows are the formula's."""
    sae = load_sae(path, **options)
    np.testing.assert_allclose(encode(sae, jnp.asarray(X)), want[0], atol=2e-5)
    np.testing.assert_allclose(reconstruct(sae, jnp.asarray(X)), want[1], atol=5e-5)
    assert sae.cfg.source == "plain"
    options = {name: value for name, value in options.items() if name != "dtype"}
    np.testing.assert_allclose(
        open_decoder(path, **options).rows(0, N), sae.dec_nm, rtol=1e-6
    )


TURNED = {
    "in_out": ASIS,
    "out_in": ASIS | {"W_enc": W_ENC.T, "W_dec": W_DEC.T},
    "latents_first": ASIS | {"W_enc": W_ENC.T},
    "latents_last": ASIS | {"W_dec": W_DEC.T},
    "linear": LINEAR,
    "sequential": {
        "encoder.0.weight": W_ENC.T, "encoder.0.bias": B_ENC, "decoder.0.weight": W_DEC.T, "decoder.0.bias": B_DEC,
    },
    "untied names": {"encoder": W_ENC, "decoder": W_DEC, "enc_bias": B_ENC, "pre_bias": B_DEC},
}  # fmt: skip
SUFFIXES = (".pt", ".safetensors", ".npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", TURNED)
def test_whichever_way_it_lies_in_whatever_container(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    path = write(tmp_path / f"mine{suffix}", TURNED[kind])
    agrees(path, formula("topk"), gate="topk", k=K, subtract_b_dec=False)
    agrees(
        path.parent,
        formula("topk", subtract=True),
        gate="topk",
        k=K,
        subtract_b_dec=True,
    )
    agrees(
        path,
        formula("relu", subtract=True),
        fmt="plain",
        gate="relu",
        subtract_b_dec=True,
    )


WRAPPED: dict[str, dict[str, Any]] = {
    "state_dict and cfg": {"state_dict": LINEAR, "cfg": {"k": K, "activation": "topk", "d_in": D}},
    "model": {"model": {f"module.{name}": value for name, value in LINEAR.items()}, "step": 7},
    "compiled": {f"_orig_mod.{name}": value for name, value in LINEAR.items()},
    "a module inside a module": {f"sae.{name}": value for name, value in ASIS.items()},
    "deep": {"checkpoint": {"model_state_dict": {f"autoencoder.{name}": value for name, value in ASIS.items()}}},
    "with its optimiser": {
        "model_state_dict": ASIS, "epoch": 3,
        "optimizer_state_dict": {"state": {0: {"exp_avg": W_ENC, "step": np.float32(3)}}, "param_groups": [{"lr": 0.1}]},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "checkpoint.pt", WRAPPED[kind])
    agrees(path, formula("topk", subtract=True), gate="topk", k=K, subtract_b_dec=True)


def asked(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        read_config(path, **options)
    return str(error.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", TURNED)
def test_what_no_file_tells_is_asked_for_by_name_and_all_at_once(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    message = asked(write(tmp_path / f"layer_3-l19{suffix}", TURNED[kind]))
    assert "gate= relu, topk (with k=), jumprelu (with threshold=)" in message
    assert "subtract_b_dec= True where the encoder reads x - " in message
    assert "orientation=" not in message
    assert "fmt=plain" in message
    assert "k= how many" in asked(tmp_path, gate="topk", subtract_b_dec=True)
    assert "threshold= the number" in asked(
        tmp_path, gate="jumprelu", subtract_b_dec=True
    )


def test_the_message_shows_what_its_own_config_says(tmp_path: Path) -> None:
    message = asked(write(tmp_path / "mine.pt", WRAPPED["state_dict and cfg"]))
    assert "'activation': 'topk'" in message
    assert f"'k': {K}" in message


def test_no_hint_and_no_answer_to_it_loads_a_hand_written_file_as_a_librarys(
    tmp_path: Path,
) -> None:
    """Option by option that a message names, until it loads: the formula is never
    another one than was said.
    """
    for name, content in {
        "layer3.pt": ASIS,
        "sae.pt": TURNED["latents_first"],
        "x-l19.pt": LINEAR,
        "e.pth": TURNED["out_in"],
    }.items():
        path, options = write(tmp_path / name, content), {}
        answers = {
            "gate": "topk",
            "k": K,
            "subtract_b_dec": True,
            "orientation": "in_out",
            "dict_class": None,
        }
        for _ in range(4):
            message = (
                asked(path, **options)
                if set(options) != {"gate", "k", "subtract_b_dec"}
                else ""
            )
            named = [
                option
                for option in answers
                if f"{option}= " in message and option not in options
            ]
            options |= {
                option: answers[option]
                for option in named
                if answers[option] is not None
            }
        agrees(path, formula("topk", subtract=True), **options)


COLLISIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ae.pt": ("ae.pt", LINEAR, {}),
    "model_final.pt": ("model_final.pt", ASIS, {}),
    "model.safetensors with a config": ("model.safetensors", LINEAR, {"config.json": {"d_model": D, "trainer": {"lr": 0.1}}}),
    "a cfg.json of its own": ("mine.safetensors", ASIS, {"cfg.json": {"d_in": D, "d_sae": N, "k": K}}),
    "lower case": ("mine.safetensors", {k.lower(): v for k, v in ASIS.items()}, {"config.json": {"activation": "topk"}}),
    "a name like Qwen-Scope's": ("mine.sae.pt", TURNED["latents_first"], {}),
    "a name like qresearch's": ("sae-l12.pt", LINEAR, {}),
    "a name like a transcoder's": ("layer_3.safetensors", TURNED["latents_first"], {}),
    "Linear layers as Goodfire calls them": (
        "mine.pth", {name.replace(".", "_linear."): value for name, value in LINEAR.items()}, {},
    ),
    "numpy": ("mine.npz", ASIS, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLISIONS)
def test_names_that_libraries_use_too_load_nothing_by_themselves(
    tmp_path: Path, kind: str
) -> None:
    name, content, configs = COLLISIONS[kind]
    path = write(tmp_path / name, content)
    for config, value in configs.items():
        (tmp_path / config).write_text(json.dumps(value))
    assert "gate= relu, topk" in asked(path)
    assert "gate= relu, topk" in asked(tmp_path)
    agrees(path, formula("topk", subtract=True), gate="topk", k=K, subtract_b_dec=True)


def test_a_config_without_a_gate_is_no_relu(tmp_path: Path) -> None:
    path = write(tmp_path / "sae_weights.safetensors", ASIS)
    assert (
        "no cfg.json beside it; a saelens SAE needs both (a file of your own: "
        "fmt=plain)" in asked(path)
    )
    for config in ({"d_in": D, "d_sae": N}, {"d_in": D, "d_sae": N, "k": K}):
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        assert "names no architecture, so the gate is not known" in asked(path)
    agrees(path, formula("topk"), fmt="plain", gate="topk", k=K, subtract_b_dec=False)


def test_a_square_sae_of_ones_own_is_asked_which_way_it_lies_and_linear_layers_are_not(
    tmp_path: Path,
) -> None:
    square = {
        "W_enc": W_ENC[:, :D],
        "W_dec": W_DEC[:D],
        "b_enc": B_ENC[:D],
        "b_dec": B_DEC,
    }
    path = write(tmp_path / "square.pt", square)
    said = {"gate": "relu", "subtract_b_dec": False}
    assert "orientation= in_out for x @ W_enc and codes @ W_dec" in asked(path, **said)
    for way, (enc, dec) in {
        "in_out": (square["W_enc"], square["W_dec"]),
        "out_in": (square["W_enc"].T, square["W_dec"].T),
        "latents_first": (square["W_enc"].T, square["W_dec"]),
        "latents_last": (square["W_enc"], square["W_dec"].T),
    }.items():
        sae = load_sae(path, orientation=way, **said)
        np.testing.assert_array_equal(sae.enc_dn, enc)
        np.testing.assert_array_equal(sae.dec_nm, dec)
    linear = {
        "encoder.weight": square["W_enc"],
        "decoder.weight": square["W_dec"],
        "decoder.bias": B_DEC,
    }
    sae = load_sae(write(tmp_path / "linear.pt", linear), **said)
    np.testing.assert_array_equal(sae.enc_dn, square["W_enc"].T)
    no_bias = {
        "W_enc": W_ENC,
        "W_dec": W_DEC,
    }  # of 6 numbers and 20 latents, or of 20 and 6 the other way round?
    assert "orientation=" in asked(write(tmp_path / "bare.pt", no_bias), gate="relu")
    assert (
        load_sae(tmp_path / "bare.pt", gate="relu", orientation="in_out").cfg.d_in == D
    )
    assert (
        load_sae(tmp_path / "bare.pt", gate="relu", orientation="out_in").cfg.d_in == N
    )
    assert "orientation='latents_last' does not fit" in asked(
        tmp_path / "bare.pt", gate="relu", orientation="latents_last"
    )


def test_thresholds_k_and_gates_that_lie_in_the_file(tmp_path: Path) -> None:
    jump = write(
        tmp_path / "jump.pt", ASIS | {"threshold": np.full(N, 0.7, np.float32)}
    )
    agrees(jump, formula("jumprelu"), subtract_b_dec=False)
    log = write(
        tmp_path / "log.pt",
        ASIS | {"log_threshold": np.log(np.float32(0.7)).reshape(1)},
    )
    agrees(log, formula("jumprelu"), subtract_b_dec=False)
    agrees(
        write(tmp_path / "a.pt", ASIS),
        formula("jumprelu"),
        gate="jumprelu",
        threshold=0.7,
        subtract_b_dec=False,
    )
    kept = write(tmp_path / "k.pt", ASIS | {"k": np.array(K)})
    agrees(kept, formula("topk"), gate="topk", subtract_b_dec=False)
    gates = {name: np.zeros(N, np.float32) for name in ("b_gate", "b_mag", "r_mag")}
    assert (
        load_sae(
            write(tmp_path / "gated.pt", ASIS | gates), subtract_b_dec=False
        ).cfg.gate
        == "gated"
    )
    both = write(
        tmp_path / "both.pt", ASIS | {"k": np.array(K), "threshold": np.float32(0.7)}
    )
    assert "gate= " in asked(both, subtract_b_dec=True)
    assert (
        "ignore= names, with commas between, of tensors that are no part of the SAE: "
        "there is 'threshold' []" in asked(both, gate="topk", subtract_b_dec=True)
    )
    agrees(both, formula("topk"), gate="topk", subtract_b_dec=False, ignore="threshold")


def test_a_mean_is_taken_from_the_input_and_added_to_the_output(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.pt", ASIS)
    np.save(tmp_path / "mean.npy", MEAN)
    save_torch(tmp_path / "mean.pt", MEAN)
    save_file({"anything": MEAN}, tmp_path / "mean.safetensors")
    for name in ("mean.npy", "mean.pt", "mean.safetensors"):
        for subtract in (False, True):
            agrees(
                path,
                formula("topk", mean=MEAN, subtract=subtract),
                gate="topk",
                k=K,
                subtract_b_dec=subtract,
                mean=str(tmp_path / name),
            )
    agrees(
        path,
        formula("relu", mean=MEAN, scale=0.4, subtract=True),
        gate="relu",
        subtract_b_dec=True,
        norm_scale=0.4,
        mean=str(tmp_path / "mean.npy"),
    )
    inside = write(tmp_path / "inside.pt", {"model": ASIS, "mean": MEAN})
    assert (
        "or mean=mean where it is taken from the input and added to the output"
        in asked(inside, gate="relu", subtract_b_dec=True)
    )
    agrees(
        inside,
        formula("relu", mean=MEAN),
        gate="relu",
        subtract_b_dec=False,
        mean="mean",
    )
    agrees(inside, formula("relu"), gate="relu", subtract_b_dec=False, ignore="mean")
    np.save(tmp_path / "short.npy", MEAN[:3])
    said: dict[str, Any] = {"gate": "relu", "subtract_b_dec": True}
    assert "has 3 numbers, but 6 are needed" in asked(
        path, mean=str(tmp_path / "short.npy"), **said
    )
    assert "mean='nowhere' is neither a file nor a tensor" in asked(
        path, mean="nowhere", **said
    )


def test_the_norms_of_the_decoder(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.pt", ASIS)
    rows_n = np.linalg.norm(W_DEC.astype(np.float64), axis=1)
    said: dict[str, Any] = {"gate": "topk", "k": K, "subtract_b_dec": False}
    agrees(
        path, formula("topk", dec=W_DEC / rows_n[:, None]), decoder_norm="unit", **said
    )
    agrees(path, formula("topk", by=rows_n), decoder_norm="select", **said)
    codes, out = formula("topk", by=rows_n)
    agrees(path, (codes * rows_n, out), decoder_norm="code", **said)
    for norm in ("layer_norm", "constant_norm_rescale"):
        assert load_sae(path, norm=norm, **said).cfg.norm == norm


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a gate of no kind": (ASIS, {"gate": "softmax"}, r"gate='softmax'; the option takes relu, topk"),
    "k of none": (ASIS, {"gate": "topk", "k": 0}, r"option k=0 keeps no latent"),
    "k of too many": (ASIS, {"gate": "topk", "k": 21, "subtract_b_dec": True}, r"mine\.pt.*k=21 and 20 latents"),
    "k that is text": (ASIS, {"gate": "topk", "k": "4"}, r"option k='4' is to be int"),
    "k with a relu": (ASIS, {"gate": "relu", "k": 4}, r"option k= means nothing for gate='relu'"),
    "threshold that is none": (ASIS, {"gate": "jumprelu", "threshold": float("nan")}, r"threshold=nan is not finite"),
    "gated without its tensors": (ASIS, {"gate": "gated"}, r"needs the tensors b_gate, b_mag, r_mag"),
    "an unknown tensor": (ASIS | {"W_skip": W_ENC}, {"gate": "relu", "subtract_b_dec": True}, r"there is 'W_skip' \[6, 20\]"),
    "ignore of nothing": (ASIS, {"gate": "relu", "ignore": "W_skip"}, r"ignore= names 'W_skip', which is not among"),
    "two encoders": (ASIS | {"encoder.weight": W_ENC.T}, {}, r"W_enc and encoder\.weight, either of which may be its enc"),
    "two SAEs": ({"a": ASIS, "b": ASIS}, {}, r"holds 2 SAEs; say which one with inside=, one of 'a\.', 'b\.'"),
    "no such SAE": ({"a": ASIS}, {"inside": "b"}, r"holds no encoder and decoder under a usual name there"),
    "shapes": (ASIS | {"b_enc": B_ENC[:-1]}, {"gate": "relu"}, r"fit each other no way round"),
    "whole numbers": (ASIS | {"W_enc": np.ones((D, N), np.int32)}, {}, r"W_enc holds int32, not floating-point"),
    "an option of another format": (ASIS, {"affine": "in_out"}, r"option affine= means nothing for a plain file"),
    "NaN": (ASIS | {"W_dec": np.full_like(W_DEC, np.nan)}, {"gate": "relu", "subtract_b_dec": True}, r"holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_one_message(tmp_path: Path, kind: str) -> None:
    content, options, message = BAD[kind]
    path = write(tmp_path / "mine.pt", content)
    with pytest.raises(ValueError, match=message):
        load_sae(path, **options)


def test_a_transcoder_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.pt",
        {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC[:, :4], "b_dec": B_DEC[:4]},
    )
    sae = load_sae(path, gate="relu", subtract_b_dec=False, site="layer2.mlp_in")
    assert (sae.cfg.d_in, sae.cfg.d_out, sae.cfg.site) == (D, 4, "layer2.mlp_in")
    assert "it has no subtract_b_dec=" in asked(path, gate="relu", subtract_b_dec=True)


def test_two_of_them_in_one_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "two.pt",
        {"ema": ASIS, "raw": {name: value * 2 for name, value in ASIS.items()}},
    )
    said: dict[str, Any] = {"gate": "relu", "subtract_b_dec": False}
    message = asked(path, inside="ema", **said)
    assert "ignore=" in message
    agrees(
        path,
        formula("relu"),
        inside="ema",
        ignore=",".join(f"raw.{name}" for name in ASIS),
        **said,
    )


def test_tensors_under_other_names_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.pt", {"features": W_DEC, "reader": W_ENC})
    for where in (path, tmp_path):
        message = asked(where)
        assert "docs/inputs.md" in message
    assert "'features' [20, 6], 'reader' [6, 20]" in asked(path)
    assert "W_enc, W_dec, b_enc, b_dec, as docs/inputs.md" in asked(path, fmt="plain")
