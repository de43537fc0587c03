"""Adapters that are trained: their start, their scale, what they read, merging, and the
PEFT folders.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Site
from sae_attr.lm.adapter_states import adapter_states
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, attach, init_lora, merged
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.next_token import init_state, train_steps
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.peft_load import load_adapter
from sae_attr.lm.peft_save import save_adapter
from tests.lm._training import alone, batch, config, examples, params_of, stacked
from tests.miniatures import llama_config

pytestmark = pytest.mark.usefixtures("quick")
CFG = config()
TOKENS = np.random.default_rng(5).integers(0, 40, (2, 9))
ORGANISM = (15, 16, 17, 21, 22, 23, 27, 28, 29)


def run(params: Params, cfg: LMConfig = CFG) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda p: logits(p, forward(p, TOKENS, cfg=cfg).hidden_btd, cfg=cfg))(
            params
        )
    )


def drawn(lora: Lora, cfg: LMConfig = CFG) -> Params:
    """An adapter away from its start: b drawn too, in the adapted layers."""
    tree = init_lora(cfg, params_of(cfg), lora, jax.random.key(2))
    rng = np.random.default_rng(3)
    chosen = jnp.asarray(
        [layer in (lora.layers or range(cfg.n_layers)) for layer in range(cfg.n_layers)]
    )
    fill = lambda leaf: (
        leaf
        | {
            "b": jnp.float32(rng.standard_normal(leaf["b"].shape))
            * chosen[:, None, None]
        }
    )
    return {"lora": {name: fill(leaf) for name, leaf in tree["lora"].items()}}


def test_the_start_changes_no_logit() -> None:
    lora, params = Lora(rank=3), params_of(CFG)
    tree = init_lora(CFG, params, lora, jax.random.key(0))
    np.testing.assert_array_equal(
        run(attach(params, tree, scale=lora.scale)), run(params)
    )
    a_lir = np.asarray(tree["lora"]["down"]["a"])
    assert a_lir.shape == (2, 24, 3)
    assert 0.8 / np.sqrt(24) < np.abs(a_lir).max() <= 1 / np.sqrt(24)
    assert not np.array_equal(tree["lora"]["q"]["a"], tree["lora"]["k"]["a"])


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        (Lora(rank=4, alpha=16), 4),
        (Lora(rank=4, alpha=16, rslora=True), 8),
        (Lora(rank=1, alpha=3), 3),
    ],
)
def test_the_scale(lora: Lora, scale: float) -> None:
    assert lora.scale == scale


def test_merged_and_kept_apart_are_the_same_model() -> None:
    lora = Lora(rank=2, alpha=1, targets=("q", "down"), layers=(1,))
    params = params_of(CFG)
    kept = attach(params, drawn(lora), scale=lora.scale)
    assert np.abs(run(kept) - run(params)).max() > 0.1
    np.testing.assert_allclose(run(merged(kept)), run(kept), atol=2e-5)
    assert "lora" not in merged(kept)
    np.testing.assert_array_equal(
        merged(kept)["blocks"]["q"]["kernel"][0], params["blocks"]["q"]["kernel"][0]
    )


def test_training_moves_the_chosen_layers_alone() -> None:
    cfg = config(n_layers=3)
    lora = Lora(rank=1, alpha=2, targets=("down",), layers=(0, 2))
    params = params_of(cfg)
    opt = Optimizer(lr=1e-2, steps=3, weight_decay=0.1)
    state = init_state(init_lora(cfg, params, lora, jax.random.key(0)), opt)
    micro = stacked(batch(examples(4), alone(4)))
    steps = partial(
        train_steps, cfg=cfg, opt=opt, assemble=partial(attach, scale=lora.scale)
    )
    state, metrics = jax.jit(steps)(state, params, stacked(micro, micro, micro))
    assert metrics.loss[-1] < metrics.loss[0]
    for half in "ab":
        moved = np.abs(np.asarray(state.trained["lora"]["down"][half])).max((1, 2))
        assert (moved > 0).tolist() == [True, False, True]


# ---- hidden states -------------------------------------------------------------------


def test_states_by_hand() -> None:
    """Rank 1 on `down`: the scalar is a · (silu(h W_gate) * (h W_up)), h the normed
    residual before the MLP.
    """
    lora = Lora(rank=1, alpha=2, targets=("down", "q", "o", "up"))
    params = params_of(CFG)
    tree = attach(params, drawn(lora), scale=lora.scale)
    got = jax.jit(partial(adapter_states, cfg=CFG, layers=(0, 1)))(tree, TOKENS)
    assert {name: x.shape for name, x in got.items()} == dict.fromkeys(
        ("down", "o", "q", "up"), (2, 2, 9, 1)
    )
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    keep = (Site(1, "resid_pre"), Site(1, "resid_mid"), Site(1, "attn_z"))
    acts = jax.jit(lambda p: forward(p, TOKENS, cfg=CFG, keep=keep).acts)(tree)
    acts = {site.point: np.asarray(x, np.float64) for site, x in acts.items()}
    block = jax.tree.map(lambda x: x[1], w["blocks"])
    a = {n: leaf["a"][1] for n, leaf in w["lora"].items()}
    norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    h = norm(acts["resid_mid"], block["mlp_norm"]["scale"])
    gate = h @ block["gate"]["kernel"]
    up = h @ block["up"]["kernel"] + h @ a["up"] @ w["lora"]["up"]["b"][1]
    want = {
        "down": gate / (1 + np.exp(-gate)) * up @ a["down"],
        "up": h @ a["up"],
        "q": norm(acts["resid_pre"], block["attn_norm"]["scale"]) @ a["q"],
        "o": acts["attn_z"] @ a["o"],
    }
    for name in want:
        np.testing.assert_allclose(
            got[name][1], want[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


# ---- folders -------------------------------------------------------------------------

CASES: dict[str, tuple[Lora, dict[str, Any]]] = {
    "all": (Lora(rank=3, alpha=6), {}),
    "rank one": (
        Lora(rank=1, alpha=64, rslora=True, targets=("down",), layers=(1,)),
        {},
    ),
    "rsLoRA": (Lora(rank=4, alpha=2, rslora=True, targets=("q", "v"), layers=(0,)), {}),
    "organism": (
        Lora(rank=1, alpha=64, targets=("down",), layers=ORGANISM),
        {"n_layers": 30, "d": 8, "d_mlp": 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_saved_adapter_is_read_back(tmp_path: Path, case: str) -> None:
    lora, fields = CASES[case]
    cfg = config(**fields)
    trained = drawn(lora, cfg)
    save_adapter(tmp_path, cfg, lora, trained, base="the/base")
    adapter = load_adapter(tmp_path)
    shapes = {
        f"blocks/{n}/kernel": leaf["kernel"].shape
        for n, leaf in params_of(cfg)["blocks"].items()
        if "kernel" in leaf
    }
    adapter.check(cfg, shapes)
    got = adapter.stacked(cfg, "float32")
    want = attach({}, trained, scale=lora.scale)["lora"]
    assert got.keys() == want.keys()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    layers = json.loads((tmp_path / "adapter_config.json").read_text())[
        "layers_to_transform"
    ]
    assert layers == sorted(lora.layers or range(cfg.n_layers))


GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 40,
    "n_positions": 32,
}
FUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gpt2": (GPT2, ("k", "v", "down")),
    "gpt_neox": (
        llama_config(model_type="gpt_neox", n_kv_heads=4),
        ("q", "k", "v", "up"),
    ),
    "phi3": (llama_config(model_type="phi3"), ("v", "gate", "up")),
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FUSED)
def test_adapters_of_parts_of_a_matrix_are_read_back(
    tmp_path: Path, family: str, rslora: bool
) -> None:
    hf, targets = FUSED[family]
    cfg = config_from_hf(hf)
    lora = Lora(rank=2, alpha=5, rslora=rslora, targets=targets, layers=(1,))
    trained = drawn(lora, cfg)
    save_adapter(tmp_path, cfg, lora, trained, base="base")
    adapter = load_adapter(tmp_path)
    got = adapter.stacked(cfg, "float32")
    want = attach({}, trained, scale=lora.scale)["lora"]
    product = lambda leaf: np.einsum("lir,lro->lio", leaf["a"], leaf["b"])
    for name in targets:
        np.testing.assert_allclose(
            product(got[name]), product(want[name]), rtol=1e-4, atol=1e-5
        )
    for name in set(got) - set(targets):  # other parts of the same matrix
        assert not product(got[name]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "LoRA of rank 0 adds nothing"),
        (
            {"targets": ("down", "w1")},
            r"LoRA targets w1: adapted can be q, k, v, o, gate, up, down of a llama model",
        ),
        ({"targets": ()}, "LoRA targets none"),
        ({"layers": (0, 2)}, r"LoRA layers \[0, 2\] of a model whose layers are 0..1"),
        ({"layers": (1, 1)}, r"LoRA layers \[1, 1\]"),
        ({"layers": ()}, "name at least one"),
    ],
)
def test_adapters_that_the_model_cannot_have(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        init_lora(CFG, params_of(CFG), replace(Lora(), **change), jax.random.key(0))
