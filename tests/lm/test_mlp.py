"""Experts in blocks of tokens against every expert on every token; what a config with
experts may and may not say.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sae_attr.hooks import Add, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.mlp import Experts, activation, block_size, dispatch, route
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.sites import check_site
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from tests.miniatures import llama_config

EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")


def config(**fields: Any) -> LMConfig:
    hf = llama_config(
        model_type="mixtral", d=8, d_mlp=6, num_local_experts=5, num_experts_per_tok=2
    )
    return replace(config_from_hf(hf), **fields)


def dense(cfg: LMConfig, params: Any, h_btd: jax.Array) -> jax.Array:
    """Every expert on every token, times a weight that is zero for those not chosen."""
    p = params["params"]
    bias = lambda name: p[f"{name}_bias"] if cfg.mlp_bias else 0
    linear = lambda x, name: (
        jnp.einsum("bt...i,eio->bteo" if x.ndim == 3 else "btei,eio->bteo", x, p[name])
        + bias(name)
    )
    router = h_btd @ p["router"]["kernel"] + p["router"].get("bias", 0)
    weight, chosen = route(router, cfg.n_chosen, cfg.norm_chosen)
    weight_bte = (jax.nn.one_hot(chosen, cfg.n_experts) * weight[..., None]).sum(-2)
    out_bted = linear(
        activation(cfg, linear(h_btd, "gate"), linear(h_btd, "up")), "down"
    )
    return jnp.einsum("bted,bte->btd", out_bted, weight_bte)


def with_gradients(apply: Any, params: Any, h_btd: jax.Array) -> Any:
    """The output, and the gradient of a function of it by the parameters and the input."""

    def loss(params: Any, h_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
        out_btd = apply(params, h_btd)
        return jnp.sum(jnp.sin(3 * out_btd)), out_btd

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, h_btd)


SHAPES = [(1, 1), (2, 3), (4, 65)]
FIELDS: list[dict[str, Any]] = [
    {},
    {"norm_chosen": False, "n_chosen": 3},
    {"token_groups": 2},
]
FIELDS += [
    {"act": "clipped_glu", "glu_limit": 0.5, "glu_alpha": 1.7, "mlp_bias": True},
    {"n_chosen": 1},
    {"n_chosen": 5},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_blocks_give_what_every_expert_on_every_token_gives(
    fields: dict[str, Any],
) -> None:
    cfg = config(**fields)
    layer = Experts(cfg)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    params = jax.tree.map(
        lambda w: w + 0.3 * jax.random.normal(jax.random.key(1), w.shape), params
    )
    for shape in SHAPES:
        h_btd = jax.random.normal(jax.random.key(2), (*shape, 8))
        got, want = (
            with_gradients(apply, params, h_btd)
            for apply in (layer.apply, partial(dense, cfg))
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3),
            got,
            want,
        )


def test_it_can_be_mapped() -> None:
    layer = Experts(config())
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    h_sbtd = jax.random.normal(jax.random.key(2), (3, 2, 9, 8))
    apply = jax.jit(layer.apply)
    got = jax.jit(jax.vmap(layer.apply, in_axes=(None, 0)))(params, h_sbtd)
    np.testing.assert_allclose(got, [apply(params, h) for h in h_sbtd], atol=1e-5)


@pytest.mark.parametrize(
    ("n", "c", "e"),
    [(1, 1, 8), (1, 4, 4), (3, 2, 8), (100, 2, 4), (64, 8, 128), (512, 4, 32)],
)
@pytest.mark.parametrize("skew", [0.0, 3.0, 50.0])
def test_every_choice_has_a_slot_of_its_expert(
    n: int, c: int, e: int, skew: float
) -> None:
    drawn = (
        np.random.default_rng(0).normal(size=(n, e)) + skew * np.arange(e) / e
    )  # skew: all want the same experts
    chosen_nc = np.argsort(-drawn, axis=1)[:, :c].astype(np.int32)
    token_mb, slot_nc, expert_m = map(
        np.asarray, jax.jit(dispatch, static_argnums=1)(chosen_nc, e)
    )
    size = token_mb.shape[1]
    assert size == block_size(n * c, e)
    assert token_mb.size <= 1.5 * n * c
    assert len(set(slot_nc.reshape(-1).tolist())) == n * c
    np.testing.assert_array_equal(
        token_mb.reshape(-1)[slot_nc], np.broadcast_to(np.arange(n)[:, None], (n, c))
    )
    np.testing.assert_array_equal(expert_m[slot_nc // size], chosen_nc)


def test_numbers_do_not_depend_on_the_groups(shared: Path) -> None:
    folder = shared / "fixtures/hf/qwen3_moe"
    cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    tokens_bt = np.load(folder / "golden.npz")["input_ids"]
    run = lambda groups: (
        forward(params, tokens_bt, cfg=replace(cfg, token_groups=groups)).hidden_btd
    )
    for groups in (2, 3):  # 3 do not divide the rows
        np.testing.assert_allclose(run(groups), run(1), atol=1e-4)
    assert load_config(str(folder), mesh=make_mesh("data=4")).token_groups == 4


# --- sites


@pytest.mark.parametrize("family", EXPERTS)
def test_sites_around_experts(shared: Path, family: str) -> None:
    folder = shared / "fixtures/hf" / family
    cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    tokens_bt = np.load(folder / "golden.npz")["input_ids"]
    before, after, end = (
        Site(1, point) for point in ("mlp_in", "mlp_out", "resid_post")
    )
    zero_d = jnp.zeros(cfg.d_model)
    direction_d = jax.random.normal(jax.random.key(0), (cfg.d_model,))

    def run(
        params: Params, into_d: jax.Array, out_d: jax.Array
    ) -> tuple[jax.Array, dict[Site, jax.Array]]:
        edits = {before: Add(into_d), after: Add(out_d)}
        out = forward(
            params, tokens_bt, cfg=cfg, edits=edits, keep=(before, after, end)
        )
        return logits(params, out.hidden_btd, cfg=cfg)[..., 7].sum(), out.acts

    graded = jax.jit(jax.value_and_grad(run, argnums=(1, 2), has_aux=True))
    (_, plain), slopes = graded(params, zero_d, zero_d)
    moe = jax.tree.map(lambda w: w[1], params["blocks"]["moe"])
    alone_btd = jax.jit(lambda moe, h_btd: Experts(cfg).apply({"params": moe}, h_btd))(
        moe, plain[before]
    )
    np.testing.assert_allclose(alone_btd, plain[after], atol=1e-4)
    (_, moved), _ = graded(params, zero_d, direction_d)
    np.testing.assert_allclose(moved[end], plain[end] + direction_d, atol=1e-4)
    for i, slope_d in enumerate(slopes):
        step_d = [(direction_d if i == j else zero_d) * 1e-3 for j in range(2)]
        (up, _), _ = graded(params, *step_d)
        (down, _), _ = graded(params, *(-d for d in step_d))
        assert float(up - down) / 2e-3 == pytest.approx(
            float(slope_d @ direction_d), rel=0.03
        )


def test_there_is_no_site_inside_experts() -> None:
    with pytest.raises(
        ValueError,
        match=r"layer1.mlp_hidden: the hidden units of a mixtral model belong to 5 experts",
    ):
        check_site(config(), Site(1, "mlp_hidden"))


# --- configs


def edited(shared: Path, tmp_path: Path, family: str, **changes: Any) -> LMConfig:
    found = json.loads((shared / "fixtures/hf" / family / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in (found | changes).items() if v != "absent"})
    )
    return load_config(str(tmp_path))


def test_layers_of_both_kinds(shared: Path, tmp_path: Path) -> None:
    """Their logits are compared in test_against_transformers.py."""
    assert edited(
        shared, tmp_path, "qwen3_moe", decoder_sparse_step=2
    ).dense_layers == (0, 2)
    cfg = edited(shared, tmp_path, "qwen3_moe", mlp_only_layers=[3])
    assert (cfg.dense_layers, cfg.d_dense, cfg.d_mlp) == ((3,), 64, 24)
    with pytest.raises(
        ValueError,
        match=r"mlp_only_layers names layer 4 of a model whose layers are 0..3",
    ):
        edited(shared, tmp_path, "qwen3_moe", mlp_only_layers=[4])
    cfg = edited(shared, tmp_path, "qwen3_moe", mlp_only_layers=[0, 1, 2, 3])
    assert (cfg.n_experts, cfg.d_mlp) == (0, 64)


def test_what_files_leave_out(shared: Path, tmp_path: Path) -> None:
    assert not edited(
        shared, tmp_path, "qwen3_moe", norm_topk_prob="absent"
    ).norm_chosen
    older = edited(
        shared, tmp_path, "qwen3_moe", num_local_experts="absent", num_experts=6
    )
    assert older == edited(shared, tmp_path, "qwen3_moe")
    oss = edited(
        shared,
        tmp_path,
        "gpt_oss",
        rope_parameters="absent",
        layer_types="absent",
        swiglu_alpha="absent",
    )
    rope = oss.ropes[0]
    assert (rope.kind, rope.theta, rope.factor, rope.truncate, rope.original_len) == (
        "yarn",
        150000.0,
        32.0,
        False,
        4096,
    )
    assert oss.window_of_layer == edited(shared, tmp_path, "gpt_oss").window_of_layer
    assert (oss.glu_alpha, oss.glu_limit) == (1.702, 7.0)


def test_an_unnormalised_router_matters(shared: Path) -> None:
    folder = shared / "fixtures/hf/qwen3_moe"
    cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    golden = np.load(folder / "golden.npz")
    other = forward(
        params, golden["input_ids"], cfg=replace(cfg, norm_chosen=False)
    ).hidden_btd
    assert np.abs(np.asarray(other) - golden["last_layer_output"]).max() > 0.1


# --- files and places


@pytest.mark.parametrize("family", EXPERTS)
def test_values_do_not_depend_on_the_mesh(
    shared: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(shared / "fixtures/hf" / family)
    _, want = load_lm(folder, mesh=make_mesh("data=1"), progress=False)
    monkeypatch.setattr("sae_attr.lm.weight_stream.CHUNK_BYTES", 5 * 32 * 4)
    mesh = make_mesh("data=1,model=4")
    _, got = load_lm(folder, mesh=mesh, progress=False)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    moe = got["blocks"]["moe"]
    for name, spec in (
        ("gate", P(None, None, None, "model")),
        ("down", P(None, None, "model", None)),
    ):
        assert moe[name].sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), 4)


def test_a_missing_expert_is_named(shared: Path, tmp_path: Path) -> None:
    found = edited(shared, tmp_path, "mixtral", num_local_experts=5)
    assert found.n_experts == 5
    shutil.copy(shared / "fixtures/hf/mixtral/model.safetensors", tmp_path)
    with pytest.raises(
        ValueError, match=r"- layers.0.block_sparse_moe.experts.4.w1.weight \(missing\)"
    ):
        load_lm(str(tmp_path), mesh=make_mesh("data=1"), progress=False)


def test_stacked_experts_of_another_number(shared: Path, tmp_path: Path) -> None:
    edited(shared, tmp_path, "gpt_oss", num_local_experts=5)
    shutil.copy(shared / "fixtures/hf/gpt_oss/model.safetensors", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"blocks/moe/\w+(/kernel)? should be \(.*\) by config.json, but the file has \(",
    ):
        load_lm(str(tmp_path), mesh=make_mesh("data=1"), progress=False)
