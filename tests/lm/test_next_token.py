"""One step and many: the masked loss, its gradient, accumulation, packing, schedules,
and the same numbers on a mesh.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sae_attr.lm import next_token
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, attach, init_lora
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.next_token import (
    ComputeOptions,
    LMMetrics,
    LMState,
    TokenBatch,
    init_state,
    join,
    train_steps,
)
from sae_attr.lm.optimizer import (
    Optimizer,
    decay_mask,
    learning_rate,
    make_optimizer,
)
from sae_attr.lm.train_lm import compiled_steps, place_state, place_steps
from sae_attr.parallel import LM_RULES, make_mesh, shard_tree
from sae_attr.text.packing import pack
from tests.lm._training import alone, batch, config, examples, params_of, stacked

pytestmark = pytest.mark.usefixtures("quick")
CFG = config()
OPT = Optimizer(lr=1e-2, steps=20, warmup=3, weight_decay=0.1)


@cache
def compiled(function: Any, **options: Any) -> Any:
    """One program for all tests that call a function with the same options and shapes."""
    return jax.jit(partial(function, **options))


def loss_sum(params: Params, rows: TokenBatch, *, cfg: Any = CFG) -> jax.Array:
    return compiled(next_token.loss_sum, cfg=cfg)(params, rows)


def gradients(params: Params, micro: TokenBatch, **options: Any) -> Any:
    return compiled(next_token.gradients, **({"cfg": CFG} | options))(params, {}, micro)


def step(
    state: LMState, micro: TokenBatch, opt: Optimizer = OPT, **options: Any
) -> tuple[LMState, LMMetrics]:
    return compiled(next_token.train_step, cfg=CFG, opt=opt, **options)(
        state, {}, micro
    )


def scores(params: Params, ids_bt: np.ndarray, *, cfg: Any) -> jax.Array:
    return logits(params, forward(params, ids_bt, cfg=cfg).hidden_btd, cfg=cfg)[0]


def restated(params: Params, rows: list, cfg: Any = CFG) -> list[float]:
    """Σ -log p of each row's targets, a row at a time, in numpy and float64."""
    sums, score = [], compiled(scores, cfg=cfg)
    for row in rows:
        scores_tv = np.asarray(
            score(params, np.pad(row.ids, (0, 16 - len(row.ids)))[None]), np.float64
        )
        log_p = scores_tv - np.log(np.exp(scores_tv).sum(1, keepdims=True))
        sums.append(
            -sum(log_p[t - 1, row.ids[t]] for t in np.flatnonzero(row.loss_mask))
        )
    return sums


def test_the_loss_is_that_of_the_targets_alone() -> None:
    rows, params = examples(6), params_of(CFG)
    got = loss_sum(params, batch(rows, alone(6)), cfg=CFG)
    np.testing.assert_allclose(got, sum(restated(params, rows)), rtol=1e-5)
    mean, targets, _ = gradients(params, stacked(batch(rows, alone(6))))
    assert targets == sum(row.loss_mask.sum() for row in rows)
    np.testing.assert_allclose(mean, got / targets, rtol=1e-6)


def test_packed_rows_have_the_losses_of_rows_alone() -> None:
    rows, params = examples(12), params_of(CFG)
    packs = pack([len(row.ids) for row in rows], 32)
    assert len(packs) < 6
    for members in packs:
        got = loss_sum(params, batch(rows, [members]), cfg=CFG)
        np.testing.assert_allclose(
            got, sum(np.array(restated(params, rows))[members]), rtol=1e-5
        )


def test_packed_rows_with_learned_positions_and_windows() -> None:
    rows = examples(8)
    gpt2 = {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 40,
        "n_positions": 32,
    }
    for cfg in (config_from_hf(gpt2), config(model_type="mistral", sliding_window=4)):
        params, packs = params_of(cfg), pack([len(row.ids) for row in rows], 32)
        got = loss_sum(params, batch(rows, packs), cfg=cfg)
        np.testing.assert_allclose(got, sum(restated(params, rows, cfg)), rtol=1e-5)


def test_what_stands_in_one_segment_cannot_change_another() -> None:
    rows, params = examples(4), params_of(CFG)
    rows[1:] = [
        replace(row, loss_mask=np.zeros(len(row.ids), bool)) for row in rows[1:]
    ]
    loss = compiled(next_token.loss_sum, cfg=CFG)
    first = loss(params, batch(rows, [[0, 1]]))
    other = [rows[0], replace(rows[1], ids=(rows[1].ids + 7) % 40)]
    assert loss(params, batch(other, [[0, 1]])) == first
    whole = batch(rows, [[0, 1]])
    seen = replace(whole, segment_bt=np.zeros_like(whole.segment_bt))
    swapped = replace(
        batch(rows, [[1, 0]]), segment_bt=seen.segment_bt
    )  # without segments it does
    assert abs(loss(params, swapped) - first) > 1e-3


def test_the_gradient_is_the_slope() -> None:
    rows = examples(3)
    with jax.enable_x64(True):
        cfg = replace(CFG, resid_dtype="float64")
        params = jax.tree.map(lambda w: w.astype(jnp.float64), params_of(CFG))
        micro = stacked(batch(rows, [[0, 1], [2]]))
        _, targets, grads = gradients(params, micro, cfg=cfg)
        rng = np.random.default_rng(1)
        way = jax.tree.map(lambda w: rng.standard_normal(w.shape), params)
        at = lambda h: loss_sum(
            jax.tree.map(lambda w, v: w + h * v, params, way),
            batch(rows, [[0, 1], [2]]),
            cfg=cfg,
        )
        slope = (at(1e-5) - at(-1e-5)) / 2e-5 / targets
        dot = sum(
            jnp.vdot(g, v) for g, v in zip(jax.tree.leaves(grads), jax.tree.leaves(way))
        )
    np.testing.assert_allclose(dot, slope, rtol=1e-6)


def test_accumulated_micro_batches_are_one_big_batch() -> None:
    rows, params = examples(8), params_of(CFG)
    rows[0] = replace(
        rows[0], loss_mask=np.r_[False, np.ones(len(rows[0].ids) - 1, bool)]
    )  # uneven numbers of targets
    whole = batch(rows, alone(8))
    cut = lambda m: jax.tree.map(
        lambda x: np.reshape(x, (m, 8 // m, *x.shape[1:])), whole
    )
    big, big_metrics = step(init_state(params, OPT), cut(1))
    for m in (2, 8):
        small, metrics = step(init_state(params, OPT), cut(m))
        np.testing.assert_allclose(metrics.loss, big_metrics.loss, rtol=1e-6)
        np.testing.assert_allclose(metrics.grad_norm, big_metrics.grad_norm, rtol=1e-5)
        same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
        jax.tree.map(same, small.opt_state, big.opt_state)


@pytest.mark.parametrize(
    "compute", [ComputeOptions(remat=True), ComputeOptions(loss_chunk=3)]
)
def test_options_of_memory_change_no_number(compute: ComputeOptions) -> None:
    micro, params = stacked(batch(examples(4), alone(4))), params_of(CFG)
    want = gradients(params, micro)
    got = gradients(params, micro, compute=compute)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want
    )


def test_bfloat16_products_leave_the_master_weights_float32() -> None:
    micro, params = stacked(batch(examples(4), alone(4))), params_of(CFG)
    compute = ComputeOptions(dtype="bfloat16")
    state, metrics = step(init_state(params, OPT), micro, compute=compute)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trained)} == {"float32"}
    want = gradients(params, micro)[0]
    assert 0 < abs(metrics.loss - want) < 0.02 * want


def test_steps_in_one_program_are_steps() -> None:
    batches = [stacked(batch(examples(4, seed=s), alone(4))) for s in range(3)]
    width = max(b.target_bc.shape[-1] for b in batches)
    widen = lambda x: np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))
    batches = [
        replace(
            b, target_bc=widen(b.target_bc), target_valid_bc=widen(b.target_valid_bc)
        )
        for b in batches
    ]
    one, losses = init_state(params_of(CFG), OPT), []
    for micro in batches:
        one, metrics = step(one, micro)
        losses.append(float(metrics.loss))
    many, metrics = jax.jit(partial(train_steps, cfg=CFG, opt=OPT))(
        init_state(params_of(CFG), OPT), {}, stacked(*batches)
    )
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    assert int(many.step) == int(one.step) == 3


# ---- optimiser -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1, 1)],
)
def test_schedules(schedule: str, middle: float, end: float) -> None:
    rate = learning_rate(
        Optimizer(lr=2.0, steps=14, warmup=4, schedule=schedule, final=0.1)
    )
    got = [float(rate(step)) for step in (0, 1, 3, 4, 9, 14)]
    np.testing.assert_allclose(
        got, [0.5, 1.0, 2.0, 2.0, 2 * middle, 2 * end], rtol=1e-6
    )


def test_unknown_schedule_and_a_warm_up_that_does_not_fit() -> None:
    with pytest.raises(
        ValueError,
        match=r"schedule 'square' is unknown; choose one of cosine, linear, constant",
    ):
        make_optimizer(Optimizer(lr=1.0, steps=3, schedule="square"))
    with pytest.raises(
        ValueError, match=r"a warm-up of 3 steps does not fit a run of 3"
    ):
        make_optimizer(Optimizer(lr=1.0, steps=3, warmup=3))


def test_matrices_alone_decay() -> None:
    mixtral = config(
        model_type="mixtral", num_local_experts=2, num_experts_per_tok=1, d=8, d_mlp=8
    )
    params = params_of(mixtral) | {"lora": {"q": {"a": 0, "b": 0}}}
    leaves = jax.tree_util.tree_flatten_with_path(decay_mask(params))[0]
    names = {
        jax.tree_util.keystr(p, simple=True, separator="/"): decayed
        for p, decayed in leaves
    }
    assert {n for n, decayed in names.items() if not decayed} == {
        "blocks/attn_norm/scale",
        "blocks/mlp_norm/scale",
        "final_norm/scale",
    }
    assert names["blocks/moe/down"]
    assert names["lora/q/b"]


def test_the_step_is_adamw_by_its_formula() -> None:
    params, micro = params_of(CFG), stacked(batch(examples(4), alone(4)))
    opt = Optimizer(lr=0.1, steps=5, schedule="constant", weight_decay=0.3, clip=0.5)
    _, _, grads = gradients(params, micro)
    state, metrics = step(init_state(params, opt), micro, opt)
    norm = float(optax.tree.norm(grads))
    assert norm > 0.5
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    g = np.asarray(grads["blocks"]["q"]["kernel"]) * 0.5 / norm
    w = np.asarray(params["blocks"]["q"]["kernel"])
    want = w - 0.1 * (
        g / (np.abs(g) + 1e-8) + 0.3 * w
    )  # after one step m̂ = g and v̂ = g²
    np.testing.assert_allclose(
        state.trained["blocks"]["q"]["kernel"], want, rtol=1e-3, atol=1e-4
    )


# ---- mesh ----------------------------------------------------------------------------


def trained_on(spec: str, kind: str, dtype: str) -> tuple[LMState, LMMetrics]:
    cfg, mesh = replace(config(vocab=64), resid_dtype=dtype), make_mesh(spec)
    params = jax.tree.map(lambda w: w.astype(dtype), params_of(cfg))
    lora, opt = Lora(rank=2, alpha=4), replace(OPT, lr=3e-3)
    assemble = join if kind == "full" else partial(attach, scale=lora.scale)
    trained = (
        params if kind == "full" else init_lora(cfg, params, lora, jax.random.key(1))
    )
    frozen = {} if kind == "full" else shard_tree(params, LM_RULES, mesh)
    state = place_state(init_state(trained, opt), mesh)
    whole = batch(examples(8, seed=9), alone(8))
    micro = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), whole)
    run = compiled_steps(state, mesh, cfg=cfg, opt=opt, assemble=assemble)
    return run(state, frozen, place_steps([micro] * 20, mesh))


@pytest.mark.parametrize(
    ("kind", "dtype", "rtol"),
    [
        ("full", "float32", 1e-5),
        # Adam makes whole steps of gradients that are rounding alone, so float32 drifts
        # apart; the formula does not.
        pytest.param("full", "float64", 1e-10, marks=pytest.mark.slow),
        pytest.param("lora", "float32", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_same_losses(kind: str, dtype: str, rtol: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        want = np.asarray(trained_on("data=1", kind, dtype)[1].loss)
        state, metrics = trained_on("data=2,model=2", kind, dtype)
        got = np.asarray(metrics.loss)
    assert got.shape == (20,)
    assert want[-1] < want[0] - (0.5 if kind == "full" else 0.05)
    np.testing.assert_allclose(got, want, rtol=rtol)
    for tree in (
        state.trained,
        optax.tree.get(state.opt_state, "mu"),
        optax.tree.get(state.opt_state, "nu"),
    ):
        leaf = (
            tree["blocks"]["q"]["kernel"] if kind == "full" else tree["lora"]["q"]["b"]
        )
        assert leaf.sharding.shard_shape(leaf.shape)[2] == leaf.shape[2] // 2


def test_rows_that_the_mesh_cannot_split() -> None:
    micro = stacked(batch(examples(3), alone(3)))
    with pytest.raises(
        ValueError, match=r"micro-batches of 3 rows cannot be split over data=2"
    ):
        place_steps([micro], make_mesh("data=2"))
