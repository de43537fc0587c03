"""Training: what a step keeps track of, resumed and sharded runs, the controller, and
what is refused.
"""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sae_attr.files.checkpoints import latest, restore
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import reconstruct
from sae_attr.sae.objectives import OBJECTIVES, Signals
from sae_attr.sae.train_config import TrainConfig, recorded
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import (
    SAEState,
    as_pair,
    centre,
    finished,
    first_state,
    init_state,
    schedule,
)
from sae_attr.sae.update import compiled_step, train_step, without_parallel
from sae_attr.store.metrics_log import MetricsLog, MetricsOptions, read_metrics
from sae_attr.training import Diverged, LoopOptions, Record
from tests._processes import limited

pytestmark = pytest.mark.usefixtures("quick")
D, N = 8, 16
STEPS = 12


def config(objective: str = "topk", **fields: Any) -> TrainConfig:
    return TrainConfig(
        D,
        N,
        **{"steps": STEPS, "k": 3, "warmup": 2, "lr": 1e-2} | fields,
        objective=objective,
    )


def batch(step: int, b: int = 32, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(step)
    return (rng.standard_normal((b, d)) * np.linspace(1, 3, d) + 5).astype(np.float32)


def quick(
    cfg: TrainConfig,
    source: Any = batch,
    log_every: int = 4,
    save_every: int = 4,
    **fields: Any,
) -> Any:
    options = LoopOptions(log_every=log_every, save_every=save_every)
    return train_sae(cfg, source, options=options, progress=False, **fields)


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _topk(pre: np.ndarray, k: int) -> np.ndarray:
    return np.where(pre >= np.sort(pre, axis=1)[:, -k][:, None], np.maximum(pre, 0), 0)


def test_first_state() -> None:
    state = init_state(config(), batch)
    x = np.concatenate([batch(i) for i in range(4)])
    assert float(state.scale_in) == pytest.approx(np.mean(x**2) ** -0.5, rel=1e-5)
    np.testing.assert_allclose(
        state.sae.dec_bias_m, x.mean(0) * float(state.scale_in), rtol=1e-5
    )
    factor = state.sae.enc_dn[0, 0] / state.sae.dec_nm[0, 0]
    np.testing.assert_allclose(state.sae.enc_dn, state.sae.dec_nm.T * factor, atol=1e-6)
    z = x * float(state.scale_in) - np.asarray(state.sae.dec_bias_m)
    slope = lambda f: np.sum(
        (
            _topk(z @ np.asarray(state.sae.dec_nm).T * f, 3)
            @ np.asarray(state.sae.dec_nm)
            - z
        )
        ** 2
    )
    assert slope(factor) < min(
        slope(factor * 1.1), slope(factor * 0.9)
    )  # the scale with the least error
    np.testing.assert_allclose(np.linalg.norm(state.sae.dec_nm, axis=1), 1, rtol=1e-5)
    assert not state.sae.enc_bias_n.any()


@pytest.mark.parametrize("objective", ["jumprelu", "gated"])
def test_first_gates_leave_twice_the_wanted_latents(objective: str) -> None:
    sae = init_state(cfg := config(objective, target_l0=2.0, scale="none"), batch).sae
    x = np.concatenate([batch(i) for i in range(4)])
    outcome = OBJECTIVES[objective].loss(
        sae,
        jnp.asarray(x),
        jnp.asarray(x),
        cfg,
        Signals(jnp.zeros(N, bool), jnp.float32(0)),
    )
    assert float(outcome.l0) == pytest.approx(
        4, abs=1 / len(x) + 1e-6
    )  # the threshold itself stays closed
    given = init_state(replace(cfg, threshold_init=0.25), batch).sae
    factor = float(given.enc_dn[0, 0] / given.dec_nm[0, 0])
    assert factor < 0.9
    level_n = given.threshold_n if objective == "jumprelu" else -given.gate_bias_n
    np.testing.assert_allclose(level_n, 0.25 * factor, rtol=1e-5)
    told = init_state(replace(cfg, threshold_init=0.25, enc_scale=0.5), batch).sae
    np.testing.assert_allclose(np.linalg.norm(told.enc_dn, axis=0), 0.5, rtol=1e-5)


def test_centres() -> None:
    y = np.concatenate([np.zeros((7, 2)), np.full((3, 2), 10.0)]).astype(np.float32)
    np.testing.assert_allclose(centre(y, "mean"), 3.0)
    assert np.abs(centre(y, "median")).max() < 0.1  # most points lie there
    assert not centre(y, "zero").any()


def test_dead_latents_are_counted_in_tokens() -> None:
    cfg = config(dead_tokens=64, aux_k=2)
    state = init_state(cfg, batch)
    step = compiled_step(cfg, None, init_state(cfg, batch))
    quiet = np.zeros(N, int)
    for i in range(6):
        x = batch(i)
        sae = state.sae
        pre = (x * float(state.scale_in) - np.asarray(sae.dec_bias_m)) @ np.asarray(
            sae.enc_dn
        ) + np.asarray(sae.enc_bias_n)
        fired = ((pre >= np.sort(pre, axis=1)[:, -3:][:, :1]) & (pre > 0)).any(0)
        state, report = step(state, x, x)
        assert float(report.dead) == pytest.approx((quiet >= 64).mean())
        quiet = np.where(fired, 0, quiet + len(x))
        np.testing.assert_array_equal(state.quiet_n, quiet)
    assert int(state.step) == 6


@pytest.mark.slow
def test_dead_latents_come_back() -> None:
    """Half of the latents read so faintly that they are never among the k best: only
    AuxK can bring them back.
    """
    alive = {}
    for aux_k in (0, 4):
        cfg = config(steps=150, dead_tokens=100, aux_k=aux_k, lr=3e-2)
        state = init_state(cfg, batch)
        faint_n = jnp.where(jnp.arange(N) % 2 == 0, 0.02, 1.0)
        state = replace(
            state, sae=replace(state.sae, enc_dn=state.sae.enc_dn * faint_n)
        )
        step = compiled_step(cfg, None, state)
        for i in range(cfg.steps):
            state, _ = step(state, batch(i), batch(i))
        alive[aux_k] = int((np.asarray(state.quiet_n)[::2] < 100).sum())
    assert alive[4] > alive[0]


def test_decoder_rows_stay_at_norm_1_and_move_across_themselves() -> None:
    cfg = config()
    state = init_state(cfg, batch)
    grads = replace(
        state.sae,
        dec_nm=jnp.asarray(
            np.random.default_rng(0).standard_normal((N, D)), jnp.float32
        ),
    )
    left = without_parallel(state.sae, grads).dec_nm
    np.testing.assert_allclose(jnp.sum(left * state.sae.dec_nm, axis=1), 0, atol=1e-6)
    state = quick(cfg).state
    np.testing.assert_allclose(np.linalg.norm(state.sae.dec_nm, axis=1), 1, rtol=1e-5)
    free = quick(config("relu")).state  # its penalty holds the norms
    assert np.ptp(np.linalg.norm(free.sae.dec_nm, axis=1)) > 1e-3


def test_schedule() -> None:
    rates = [
        float(schedule(config(steps=100, warmup=10, decay=0.2, lr=1.0))(i))
        for i in range(100)
    ]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[79] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.1


def test_what_is_left_open_follows_the_number_of_steps() -> None:
    paper = 2e-4 / (N / 2**14) ** 0.5
    rate = lambda steps: config(steps=steps, lr=None, warmup=None).learning_rate
    assert rate(50_000) == rate(20_000) == pytest.approx(paper)
    assert rate(1_250) == pytest.approx(4 * paper)
    assert rate(30) == pytest.approx(8 * paper)
    assert [config(steps=s, warmup=None).warmup_steps for s in (5, 250, 100_000)] == [
        0,
        25,
        100,
    ]
    short = config(steps=1_000, dead_tokens=None)
    long = config(steps=100_000, dead_tokens=None)
    assert (short.dead_after(512), long.dead_after(4096)) == (51_200, 10_000_000)
    assert config(dead_tokens=64).dead_after(512) == 64


def test_silent_latents_are_told_in_runs_that_are_shorter_than_dead_tokens() -> None:
    cfg = config("relu", dead_tokens=10_000_000)
    state = init_state(cfg, batch)
    never = replace(
        state, sae=replace(state.sae, enc_bias_n=state.sae.enc_bias_n.at[:3].set(-1e9))
    )
    step = compiled_step(cfg, None, state)
    fired = np.zeros(N, bool)
    for i in range(3):
        never, report = step(never, batch(i), batch(i))
        fired = np.asarray(never.quiet_n) < (i + 1) * len(batch(i))
        assert float(report.dead) == pytest.approx((~fired).mean())
    assert not fired[:3].any()
    assert fired[3:].any()


SLOW_SHARDED = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in OBJECTIVES
    if name != "jumprelu"
]


@pytest.mark.parametrize("objective", ["jumprelu", *SLOW_SHARDED])
def test_sharded_training_has_the_same_losses(objective: str) -> None:
    groups = (4, 4, 8) if objective == "matryoshka" else ()
    cfg = config(
        objective,
        steps=20,
        groups=groups,
        aux_k=2,
        dead_tokens=96,
        candidates=2,
        lr=1e-3,
        warmup=1,
    )
    alone = quick(cfg, log_every=1, save_every=1)
    mesh = make_mesh("data=2,model=2")
    spread = quick(cfg, log_every=1, save_every=1, mesh=mesh)
    assert (
        spread.state.sae.enc_dn.sharding.spec
        == spread.state.opt[0].mu.enc_dn.sharding.spec
        == P(None, "model")
    )
    losses = [[row["loss"] for row in run.history] for run in (alone, spread)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(
        alone.state.sae.dec_nm, spread.state.sae.dec_nm, atol=1e-4
    )


@pytest.mark.parametrize(
    "objective", [pytest.param("batch_topk", marks=pytest.mark.slow), "jumprelu"]
)
def test_a_run_that_was_stopped_ends_the_same(objective: str, tmp_path: Path) -> None:
    cfg = config(objective)
    whole = quick(cfg)

    def stops(step: int) -> np.ndarray:
        if step == 10:
            raise KeyboardInterrupt
        return batch(step)

    log = lambda: MetricsLog(tmp_path, MetricsOptions(tensorboard=False))
    with pytest.raises(KeyboardInterrupt):
        quick(cfg, stops, folder=tmp_path, metrics_log=log())
    assert latest(tmp_path) == 8
    # Ahead of the checkpoint, as a kill between the two leaves it, and cut short.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 3.0}\n{"step": 16, "lo')
    steps: list[int] = []

    def note(state: SAEState, history: list[Record]) -> None:
        steps.append(int(history[-1]["step"]))

    rest = quick(cfg, folder=tmp_path, on_record=note, metrics_log=log())
    same(rest.state, whole.state)
    assert read_metrics(tmp_path) == rest.history
    assert rest.history == whole.history
    assert steps == [12]
    again = quick(cfg, folder=tmp_path)  # finished: nothing left to do
    same(again.state, whole.state)
    with pytest.raises(ValueError, match=r"lr: 0.01 there, 0.02 here"):
        quick(replace(cfg, lr=0.02), folder=tmp_path)
    with pytest.raises(ValueError, match=r"corpus: '\(absent\)' there, 'other' here"):
        quick(cfg, folder=tmp_path, inputs={"corpus": "other"})


def test_a_nan_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    def broken(step: int) -> np.ndarray:
        x = batch(step)
        x[3, 2] = np.nan if step == 9 else x[3, 2]
        return x

    with pytest.raises(
        Diverged,
        match=r"step 10 .* NaN or infinity.*checkpoint of step 8 is whole",
    ):
        quick(config(), broken, folder=tmp_path)
    state, _ = restore(tmp_path, init_state(config(), batch), config=recorded(config()))
    assert int(state.step) == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    huge = lambda step: batch(step) * (np.float32(1e30) if step == 5 else 1)
    with pytest.raises(
        Diverged,
        match=r"step 6 .*training diverged.*no checkpoint was written",
    ):
        quick(config(), huge)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["relu", "gated", "jumprelu"])
def test_the_controller_reaches_its_l0(objective: str) -> None:
    for target in (2.0, 5.0):
        cfg = config(objective, steps=800, target_l0=target, sparsity=1e-4)
        rows = quick(cfg, log_every=100, save_every=100).history
        assert rows[-1]["l0"] == pytest.approx(
            target, rel=0.07
        )  # a mean over steps, at L0 2 of 8 dimensions


@pytest.mark.slow
def test_a_transcoder_reads_one_site_and_writes_another() -> None:
    mix = np.random.default_rng(5).standard_normal((D, 5)).astype(np.float32)
    both = lambda step: (batch(step), np.maximum(batch(step) @ mix, 0) * 10)
    for objective in ("topk", "jumprelu"):
        cfg = config(objective, transcoder=True, d_out=5, steps=300)
        trained = quick(cfg, both, log_every=100, save_every=100)
        sae = finished(cfg, trained.state)
        assert (sae.cfg.d_in, sae.cfg.d_out, sae.cfg.subtract_b_dec) == (D, 5, False)
        x, y = both(999)
        left = 1 - np.sum((np.asarray(reconstruct(sae, x)) - y) ** 2) / np.sum(
            (y - y.mean(0)) ** 2
        )
        assert left > 0.7
        assert trained.history[-1]["explained_variance"] == pytest.approx(left, abs=0.1)


def test_batches_have_to_fit() -> None:
    x = batch(0)
    with pytest.raises(ValueError, match="batches are a pair"):
        as_pair((x, x), config())
    with pytest.raises(ValueError, match="batches are one array"):
        as_pair(x, config(transcoder=True))
    with pytest.raises(
        ValueError, match=r"shapes \(32, 8\) and \(32, 8\).*\(32, 8\) and \(32, 5\)"
    ):
        as_pair((x, x), config(transcoder=True, d_out=5))
    with pytest.raises(ValueError, match=r"mean square of the first 128 inputs is 0"):
        init_state(config(), lambda step: np.zeros((32, D), np.float32))
    with pytest.raises(ValueError, match="multiple of log_every"):
        quick(config(), save_every=6)


WRONG = {
    "objective 'top_k' is unknown": {"objective": "top_k"},
    "k=17 needs 17 latents, but there are 16": {"k": 17},
    "k=5 needs 20 latents": {"objective": "multi_topk", "k": 5},
    "add up to 15, but there are 16": {"objective": "matryoshka", "groups": (5, 10)},
    "groups .* mean nothing for topk": {"groups": (8, 8)},
    "differ; an autoencoder has one width": {"d_out": 3},
    "target_l0=3.0 means nothing for topk": {"target_l0": 3.0},
    "target_l0=99": {"objective": "relu", "target_l0": 99.0},
    "overlap": {"warmup": 11},
    "steps=0": {"steps": 0},
    "decay=2": {"decay": 2.0},
    "bandwidth=0": {"bandwidth": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_that_do_not_fit(message: str) -> None:
    fields = {
        "objective": "topk",
        "steps": STEPS,
        "k": 3,
        "warmup": 2,
        **WRONG[message],
    }
    with pytest.raises(ValueError, match=message):
        TrainConfig(D, N, **fields)


def test_a_step_is_a_pure_function() -> None:
    cfg = config()
    state = first_state(cfg, batch(0), np.zeros(D))
    step = jax.jit(train_step, static_argnames="cfg")
    one, two = (step(state, batch(1), batch(1), cfg=cfg)[0] for _ in range(2))
    same(one, two)
    assert int(state.step) == 0


KILLED = """
import sys
import jax
from tests.sae.test_sae_training import batch, config, quick
jax.config.update("jax_disable_most_optimizations", True)  # as here: another compilation has other last bits
quick(config("jumprelu", steps=1500), folder=sys.argv[1], log_every=50, save_every=50)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    cfg, repo = config("jumprelu", steps=1500), Path(__file__).resolve().parents[2]
    seen = 0
    for wait in (0.1, 0.4):
        with (
            subprocess.Popen(
                [sys.executable, "-c", KILLED, str(tmp_path)], cwd=repo
            ) as process,
            limited(process),
        ):
            while (latest(tmp_path) or 0) <= seen and process.poll() is None:
                time.sleep(0.01)
            time.sleep(wait)
            process.kill()
        seen = latest(tmp_path) or 0
    assert 0 < seen < cfg.steps
    fields: dict[str, Any] = {"log_every": 50, "save_every": 50}
    rest, whole = quick(cfg, folder=tmp_path, **fields), quick(cfg, **fields)
    same(rest.state, whole.state)
    assert rest.history == whole.history
