"""Each loss against its formula in numpy, its gradients against finite differences, and
a planted dictionary.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.sae.metrics import explained_variance, fit, l0
from sae_attr.sae.model import SAE, encode
from sae_attr.sae.objectives import OBJECTIVES, Outcome, Signals
from sae_attr.sae.objectives.penalised import jump, step
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished, first_state, running_threshold
from sae_attr.training import LoopOptions

pytestmark = pytest.mark.usefixtures("quick")
B, D, N = 7, 5, 16
NAMES = tuple(OBJECTIVES)


def config(objective: str, **fields: Any) -> TrainConfig:
    return TrainConfig(
        D, N, 10, objective=objective, k=3, warmup=1, dead_tokens=50, **fields
    )


def setting(cfg: TrainConfig) -> tuple[SAE, np.ndarray, np.ndarray, Signals]:
    """Weights away from their first values, a batch, and signals with a third of the
    latents dead.
    """
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, y = draw(B, D), draw(B, cfg.width_out)
    y = y if cfg.transcoder else x
    sae = first_state(cfg, x, 0.1 * draw(cfg.width_out)).sae
    sae = jax.tree.map(lambda w: jnp.asarray(w + 0.2 * draw(*w.shape)), sae)
    if sae.threshold_n is not None:
        sae = replace(sae, threshold_n=jnp.abs(sae.threshold_n))
    return sae, x, y, Signals(jnp.arange(N) % 3 == 0, jnp.float32(0.05))


def parts(sae: SAE) -> dict[str, np.ndarray]:
    return {
        k: np.asarray(v, np.float64)
        for k, v in vars(sae).items()
        if v is not None and k != "cfg"
    }


def formula(
    cfg: TrainConfig,
    sae: SAE,
    x: np.ndarray,
    y: np.ndarray,
    dead: np.ndarray,
    lam: float,
) -> dict[str, float]:
    """The terms of the loss, from the papers, in float64."""
    w = parts(sae)
    pre = (x if cfg.transcoder else x - w["dec_bias_m"]) @ w["enc_dn"] + w["enc_bias_n"]
    decode = lambda codes: codes @ w["dec_nm"] + w["dec_bias_m"]
    mse = lambda a, b: float(np.mean((a - b) ** 2))
    best = lambda v, k: np.where(
        v >= np.sort(v, axis=1)[:, -k][:, None], np.maximum(v, 0), 0
    )
    relu = np.maximum(pre, 0)
    streams = lambda v: np.linalg.norm(v.reshape(len(v), cfg.streams, -1), axis=2)
    norms = streams(w["dec_nm"]).sum(1)
    error = mse
    if cfg.error == "norm":
        error = lambda a, b: float(streams(a - b).sum(1).mean())
    if cfg.objective in ("relu", "crosscoder_l1"):
        l1 = lam * float(np.mean(relu @ norms))
        return {"error": error(decode(relu), y), "l1": l1}
    if cfg.objective == "gated":
        gate = pre + w["gate_bias_n"]
        codes = np.where(
            gate > 0, np.maximum(pre * np.exp(w["mag_scale_n"]) + w["mag_bias_n"], 0), 0
        )
        opened = np.maximum(gate, 0)
        l1 = lam * float(opened.sum(1).mean())
        apart = {"l1": l1, "frozen": mse(decode(opened), y)}
        return {
            "error": mse(decode(codes), y),
            **{name: cfg.gate_coef * term for name, term in apart.items()},
        }
    if cfg.objective == "jumprelu":
        codes = np.where(pre > w["threshold_n"], relu, 0)
        count = (
            pre > w["threshold_n"]
            if cfg.penalty == "step"
            else np.tanh(cfg.tanh_scale * codes * norms)
        )
        below = np.maximum(w["threshold_n"] - pre, 0)[:, dead].sum() / len(x)
        return {
            "error": mse(decode(codes), y),
            "l0": lam * float(count.sum(1).mean()),
            "pre_act": cfg.pre_act * below,
        }
    if cfg.objective in ("topk", "multi_topk"):
        codes = best(pre, cfg.k)
        more = (
            {"multi": mse(decode(best(pre, cfg.k * cfg.multi)), y) / 8}
            if cfg.objective == "multi_topk"
            else {}
        )
    else:
        rank = relu * (norms if cfg.objective == "crosscoder" else 1)
        codes = np.where(rank >= np.sort(rank.ravel())[-cfg.k * len(x)], relu, 0)
        ends = np.cumsum(cfg.group_sizes)
        nested = np.mean([mse(decode(codes * (np.arange(N) < end)), y) for end in ends])
        more = (
            {"nested": nested - mse(decode(codes), y)}
            if cfg.objective == "matryoshka"
            else {}
        )
    rest = y - decode(codes)
    scale = norms if cfg.objective == "crosscoder" else np.ones(N)
    ranked = best(np.where(dead, pre * scale, -np.inf), cfg.dead_k)
    aux = mse((ranked / scale) @ w["dec_nm"], rest)
    if cfg.aux_normalised:
        aux /= np.mean((rest - rest.mean(0)) ** 2)
    return {"error": error(decode(codes), y), **more, "aux": cfg.aux_coef * aux}


# Five models of width 1, side by side.
MODELS = {"streams": D, "error": "norm"}
CASES = [
    *({"objective": name} for name in NAMES if "crosscoder" not in name),
    {"objective": "jumprelu", "penalty": "tanh"},
]
CASES += [
    {"objective": "crosscoder_l1", "streams": D},
    {"objective": "crosscoder", **MODELS, "aux_normalised": True},
]
CASES += [
    {"objective": name, "transcoder": True, "d_out": 4}
    for name in ("topk", "relu", "batch_topk")
]


def fitting(case: dict[str, Any]) -> TrainConfig:
    return config(
        **case,
        groups=(4, 4, 8) if case["objective"] == "matryoshka" else (),
        aux_k=2,
        pre_act=0.3,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_losses_are_their_formulas(case: dict[str, Any]) -> None:
    cfg = fitting(case)
    sae, x, y, signals = setting(cfg)
    outcome = OBJECTIVES[cfg.objective].loss(sae, x, y, cfg, signals)
    want = formula(
        cfg,
        sae,
        x.astype(np.float64),
        y.astype(np.float64),
        np.asarray(signals.dead_n),
        0.05,
    )
    assert outcome.terms.keys() == want.keys()
    for name, value in want.items():
        assert float(outcome.terms[name]) == pytest.approx(value, rel=2e-5, abs=1e-7), (
            name
        )


# The gradients of these are sums of parts that the others test; their losses are tested
# above all the same.
COMPOSED = [
    case
    for case in CASES
    if case["objective"] == "multi_topk" or {"transcoder", "streams"} & case.keys()
]
SLOW_COMPOSED = [
    pytest.param(case, marks=pytest.mark.slow) if case in COMPOSED else case
    for case in CASES
]


@pytest.mark.parametrize(
    "case", SLOW_COMPOSED, ids=lambda c: "-".join(map(str, c.values()))
)
def test_gradients_are_finite_differences(case: dict[str, Any]) -> None:
    """Of all weights together, along random directions, at a point where no selection
    changes.

    Two places have no such derivative, and the terms that differ there are left out:
    the steps of gates and thresholds (estimators, tested below), and the frozen decoder
    and the residual under AuxK, which are constants by definition.
    """
    cfg = replace(fitting(case), aux_k=0)
    sae, x, y, signals = setting(cfg)
    smooth = {
        "relu": ("error", "l1"),
        "gated": ("error", "l1"),
        "jumprelu": ("error",),
    }.get(cfg.objective)

    def loss(sae: SAE) -> jax.Array:
        terms = OBJECTIVES[cfg.objective].loss(sae, x, y, cfg, signals).terms
        return sum(
            (v for k, v in terms.items() if smooth is None or k in smooth),
            jnp.zeros(()),
        )

    grads = jax.jit(jax.grad(loss))(sae)
    fixed = {"jumprelu": ("threshold_n",), "gated": ("gate_bias_n",)}.get(
        cfg.objective, ()
    )
    with jax.enable_x64(True):
        sae, x, y = jax.tree.map(
            lambda w: jnp.asarray(np.asarray(w, np.float64)), (sae, x, y)
        )
        rng = np.random.default_rng(0)
        for _ in range(3):
            way = jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape)), sae)
            way = replace(way, **{name: jnp.zeros(N) for name in fixed})
            moved = [
                loss(jax.tree.map(lambda w, v, s=s: w + s * v, sae, way))
                for s in (-1e-5, 1e-5)
            ]
            slope = float(moved[1] - moved[0]) / 2e-5
            ours = sum(
                float(jnp.sum(g * v))
                for g, v in zip(
                    jax.tree.leaves(grads), jax.tree.leaves(way), strict=True
                )
            )
            assert ours == pytest.approx(slope, rel=2e-4, abs=2e-5)


def test_straight_through_estimators() -> None:
    pre = jnp.asarray([[0.4, 0.95, 1.04, 1.2, -3.0]]).T * jnp.ones((5, 2))
    threshold, width = jnp.asarray([1.0, 0.4]), 0.2
    kernel = np.abs(np.asarray(pre) - np.asarray(threshold)) <= 0.1
    by_step = jax.grad(lambda t: step(pre, t, width).sum())(threshold)
    np.testing.assert_allclose(by_step, -kernel.sum(0) / width)
    by_jump = jax.grad(lambda t: jump(pre, t, width).sum())(threshold)
    np.testing.assert_allclose(
        by_jump, -(kernel * np.asarray(threshold)).sum(0) / width
    )
    by_pre = jax.grad(
        lambda p: jump(p, threshold, width).sum() + step(p, threshold, width).sum()
    )(pre)
    np.testing.assert_array_equal(by_pre, np.asarray(pre) > np.asarray(threshold))


def test_aux_reaches_dead_latents_alone() -> None:
    cfg = config("topk", aux_k=2)
    sae, x, y, signals = setting(cfg)
    aux = lambda s, sig: OBJECTIVES["topk"].loss(s, x, y, cfg, sig).terms["aux"]
    grads = jax.grad(aux)(sae, signals)
    moved = (
        np.abs(np.asarray(grads.dec_nm)).sum(1)
        + np.abs(np.asarray(grads.enc_dn)).sum(0)
        > 0
    )
    # Through b_dec every encoder column that b_dec meets moves with the bias of a
    # chosen latent, which is dead.
    assert moved.any()
    assert not (moved & ~np.asarray(signals.dead_n)).any()
    assert float(aux(sae, signals._replace(dead_n=jnp.zeros(N, bool)))) == 0.0


def run(cfg: TrainConfig, sae: SAE, x: Any) -> Outcome:
    return OBJECTIVES[cfg.objective].loss(
        sae, x, x, cfg, Signals(jnp.zeros(cfg.n_latents, bool), jnp.float32(0))
    )


FEATURES, WIDE = 32, 40


@cache
def features() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((FEATURES, FEATURES))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(step: int) -> np.ndarray:
    """Sparse sums of 32 unit directions, about a mean, on a scale of their own."""
    rng = np.random.default_rng(step + 10)
    codes = (rng.random((256, FEATURES)) < 2 / FEATURES) * (
        1 + rng.random((256, FEATURES))
    )
    return ((codes @ features() + np.linspace(-1, 1, FEATURES)) * 3).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", CASES[:8], ids=lambda c: "-".join(map(str, c.values()))
)
def test_every_objective_finds_a_planted_dictionary(case: dict[str, Any]) -> None:
    ranked = case["objective"] in ("topk", "multi_topk", "batch_topk", "matryoshka")
    extra = {"groups": (32, 8)} if case["objective"] == "matryoshka" else {}
    cfg = TrainConfig(
        FEATURES,
        WIDE,
        600,
        k=2,
        lr=1e-2,
        dead_tokens=10_000,
        target_l0=None if ranked else 2.0,
        **case,
        **extra,
    )
    trained = train_sae(
        cfg, planted, progress=False, options=LoopOptions(log_every=100)
    )
    sae = finished(cfg, trained.state)
    rows = np.asarray(sae.dec_nm) / np.linalg.norm(sae.dec_nm, axis=1, keepdims=True)
    found = (features() @ rows.T).max(1) > 0.95
    sums = fit(sae, planted(99_999))
    assert found.mean() >= 0.9
    assert explained_variance(sums) > (
        0.5 if cfg.objective == "relu" else 0.7
    )  # L1 shrinks every code
    assert l0(sums) == pytest.approx(2.0, rel=0.2)
    assert trained.history[-1]["explained_variance"] == pytest.approx(
        explained_variance(sums), abs=0.08
    )


# multi_topk ends as topk does, matryoshka as batch_topk, a crosscoder of one stream so.
ENDS_ALIKE = ("multi_topk", "matryoshka", "crosscoder", "crosscoder_l1")
SLOW_ALIKE = [
    pytest.param(name, marks=pytest.mark.slow) if name in ENDS_ALIKE else name
    for name in NAMES
]


@pytest.mark.parametrize("name", SLOW_ALIKE)
def test_the_result_codes_as_training_did(name: str) -> None:
    """The finished SAE, in raw units and with its own gate, gives the codes of the last
    step, scaled.
    """
    cfg = TrainConfig(
        FEATURES,
        WIDE,
        3,
        objective=name,
        k=2,
        warmup=1,
        groups=(32, 8) if name == "matryoshka" else (),
    )
    state = train_sae(cfg, planted, progress=False).state
    sae, x = finished(cfg, state, site="blocks.2.hook_resid_post"), planted(7)
    assert sae.cfg.site == "blocks.2.hook_resid_post"
    inside = OBJECTIVES[name].finish(state.sae, cfg, running_threshold(state, cfg))
    scale = float(state.scale_in)
    np.testing.assert_allclose(
        encode(sae, x) * scale, encode(inside, x * scale), rtol=1e-4, atol=1e-4
    )
    if name in ("relu", "gated", "topk", "multi_topk", "jumprelu"):
        outcome = run(cfg, state.sae, x * scale)
        assert float(outcome.l0) == pytest.approx(
            float((encode(sae, x) > 0).sum(1).mean()), rel=1e-4
        )
