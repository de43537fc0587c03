"""The loop: a run that is continued is one that was not interrupted, and what stops it
leaves its checkpoints whole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.files import checkpoints
from sae_attr.lm.next_token import LMState, TokenBatch
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.train_data import (
    all_batches,
    example_dataset,
    row_numbers,
    split_rows,
    step_batch,
    token_dataset,
)
from sae_attr.lm.train_lm import best_step, best_trained, train_lm
from sae_attr.lm.training_defaults import (
    batch_for,
    epochs_for,
    evaluate_every,
    pretrain_warmup,
    rank_for,
    warmup_for,
)
from sae_attr.parallel import make_mesh
from sae_attr.store.metrics_log import MetricsLog, MetricsOptions, read_metrics
from sae_attr.text.packed_rows import Packing
from sae_attr.text.token_file import write_tokens
from sae_attr.text.tokenizer_folder import load_tokenizer
from sae_attr.training import Diverged, LoopOptions, TrainResult, spans
from tests.lm._training import config, examples, params_of
from tests.miniatures import write_tokenizer

pytestmark = pytest.mark.usefixtures("quick")
CFG = config(d=8, d_mlp=8, n_heads=2, n_kv_heads=1)
OPT = Optimizer(lr=1e-2, steps=8, warmup=2)
OPTIONS = LoopOptions(scan=2, eval_every=4, save_every=2)
DATASET = example_dataset(examples(12), context=32, packed=False)


def test_sizes_follow_the_number_of_rows() -> None:
    assert [batch_for(packs, 1) for packs in (2, 60, 300, 5000)] == [2, 4, 8, 16]
    assert batch_for(60, 3) == 6
    assert [epochs_for(packs, 4) for packs in (20, 200, 4000)] == [3.0, 2.0, 1.0]
    assert [warmup_for(steps) for steps in (1, 15, 45, 1000, 9000)] == [
        0,
        1,
        2,
        50,
        100,
    ]
    assert [rank_for(rows) for rows in (1, 250, 1000, 4000, 90_000)] == [
        4,
        8,
        16,
        32,
        32,
    ]
    assert [evaluate_every(steps) for steps in (3, 45, 9000)] == [1, 5, 50]


def test_the_best_held_out_step_is_kept_beside_the_last(tmp_path: Path) -> None:
    """The rate is far too high after some steps, so that the last step is not the best;
    a stop in between changes nothing.
    """
    wild = {
        "opt": replace(OPT, lr=0.5, steps=8, schedule="constant"),
        "options": replace(OPTIONS, eval_every=1),
    }
    whole = run(tmp_path / "whole", **wild)
    held = {
        record["step"]: record["eval_loss"]
        for record in whole.history
        if "eval_loss" in record
    }
    assert best_step(whole.history) == min(held, key=lambda step: held[step])
    assert best_step(whole.history) not in (0, 8)
    best = best_trained(whole, tmp_path / "whole")
    assert best is not None
    sums = [
        float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(tree)))
        for tree in (best, whole.state.trained)
    ]
    assert sums[0] != sums[1]
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        run(stopped, stop=best_step(whole.history) + 1, **wild)
    jax.tree.map(
        np.testing.assert_array_equal, best_trained(run(stopped, **wild), stopped), best
    )
    assert best_trained(calm(), None) is None


class Stopped(Exception):
    """What a test's dataset raises in place of a kill."""


def rows(step: int, stop: int = 100) -> TokenBatch:
    if step >= stop:
        raise Stopped
    return step_batch(DATASET, step, batch_size=4, micro=2, seed=7)


def run(
    folder: Path | None = None, stop: int = 100, **changes: Any
) -> TrainResult[LMState]:
    options: dict[str, Any] = {
        "cfg": CFG,
        "opt": OPT,
        "mesh": make_mesh("data=1"),
        "options": OPTIONS,
        "held_out": all_batches(DATASET, 4),
        "folder": folder,
        "config": {"lr": 1e-2},
        "progress": False,
    }
    return train_lm(params_of(CFG), {}, partial(rows, stop=stop), **(options | changes))


@lru_cache(maxsize=1)
def calm() -> TrainResult[LMState]:
    """A run that nothing stops."""
    return run()


def test_a_continued_run_is_one_that_was_not_stopped(tmp_path: Path) -> None:
    want = calm()
    assert want.history[0]["step"] == 0
    assert [r["step"] for r in want.history if "eval_loss" in r] == [0, 4, 8]
    assert [r["step"] for r in want.history if "loss" in r] == list(range(1, 9))
    assert want.history[-1]["eval_loss"] < want.history[0]["eval_loss"]
    log = lambda: MetricsLog(tmp_path, MetricsOptions(tensorboard=False))
    checkpoints = tmp_path / "checkpoints"
    for stop in (3, 7):  # of which the second goes on itself
        with pytest.raises(Stopped):
            run(checkpoints, stop, metrics_log=log())
        assert read_metrics(tmp_path) == want.history[: len(read_metrics(tmp_path))]
    assert read_metrics(tmp_path)[-1]["step"] == 6
    got = run(checkpoints, metrics_log=log())
    assert got.started == 6
    assert read_metrics(tmp_path) == want.history
    assert got.history == want.history
    jax.tree.map(np.testing.assert_array_equal, got.state, want.state)
    again = run(checkpoints, stop=0, metrics_log=log())  # nothing is left to do
    assert read_metrics(tmp_path) == want.history
    assert again.history == want.history
    jax.tree.map(np.testing.assert_array_equal, again.state, want.state)


@pytest.mark.parametrize("damage", [b"", b"[{", b"[]", b'{"history": 1}'])
def test_damaged_curves_are_made_again(tmp_path: Path, damage: bytes) -> None:
    """Curves lie in the checkpoint: where they are damaged, the one before it counts."""
    with pytest.raises(Stopped):
        run(tmp_path, stop=4)
    (curves,) = (tmp_path / "4").glob("meta/metadata")
    curves.write_bytes(damage)
    with pytest.warns(RuntimeWarning, match="4 is not as it was written"):
        got = run(tmp_path)
    assert got.started == 2
    assert got.history == calm().history
    jax.tree.map(np.testing.assert_array_equal, got.state, calm().state)


def test_checkpoints_of_an_older_version_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 2, calm().state, {"config": {"lr": 1e-2}})
    with pytest.raises(
        ValueError, match=r"are of an older version, .* remove that fol"
    ):
        run(tmp_path)


@pytest.mark.slow
def test_on_a_mesh_too(tmp_path: Path) -> None:
    mesh = make_mesh("data=2,model=2")
    with pytest.raises(Stopped):
        run(tmp_path, stop=4, mesh=mesh)
    got, want = run(tmp_path, mesh=mesh), calm()
    np.testing.assert_allclose(
        [r["loss"] for r in got.history if "loss" in r],
        [r["loss"] for r in want.history if "loss" in r],
        rtol=1e-5,
    )


def test_another_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, stop=4)
    with pytest.raises(
        ValueError, match=r"another config:\n  lr: 0.01 there, 0.02 here"
    ):
        run(tmp_path, config={"lr": 0.02})


def test_an_optimiser_state_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, stop=4)
    wider = config(d=8, d_mlp=12, n_heads=2, n_kv_heads=1)
    with pytest.raises(
        ValueError,
        match=r"blocks/up/kernel: float32\[2, 8, 8\] there, float32\[2, 8, 12\] here",
    ):
        train_lm(
            params_of(wider),
            {},
            rows,
            cfg=wider,
            opt=OPT,
            mesh=make_mesh("data=1"),
            folder=tmp_path,
            config={"lr": 1e-2},
            progress=False,
        )


def test_nan_stops_and_the_last_checkpoint_is_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, stop=4)
    want, _ = checkpoints.restore(tmp_path, calm().state)
    poisoned = {"lr": jnp.nan}
    with pytest.raises(
        Diverged,
        match=r"step 6 has loss nan .* diverged: lower the .*; the checkpoint of step 4 is whole",
    ):
        run(tmp_path, opt=replace(OPT, **poisoned))
    assert checkpoints.latest(tmp_path) == 4
    got, _ = checkpoints.restore(tmp_path, want)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(Diverged, match=r"no checkpoint was written"):
        run(opt=replace(OPT, **poisoned))


def test_borders_do_not_depend_on_where_a_run_goes_on() -> None:
    every = LoopOptions(scan=5, eval_every=7, save_every=10)
    whole = list(spans(0, 23, every))
    assert whole[:4] == [(0, 5), (5, 7), (7, 10), (10, 14)]
    assert whole[-1] == (21, 23)
    assert list(spans(10, 23, every)) == [s for s in whole if s[0] >= 10]
    assert list(spans(23, 23, LoopOptions())) == []


def test_a_pretraining_of_any_length_has_a_warmup_that_fits() -> None:
    assert [pretrain_warmup(steps) for steps in (1, 5, 40, 80, 1000)] == [
        0, 1, 10, 20, 20,
    ]  # fmt: skip


# ---- datasets ------------------------------------------------------------------------


def test_each_epoch_takes_every_row_once_in_its_own_order() -> None:
    got = np.concatenate(
        [row_numbers(step, count=10, batch=4, seed=1) for step in range(5)]
    ).reshape(2, 10)
    assert [sorted(epoch) for epoch in got.tolist()] == [list(range(10))] * 2
    assert got[0].tolist() != got[1].tolist()
    assert (
        row_numbers(3, count=10, batch=4, seed=1).tolist()
        == got.reshape(-1)[12:16].tolist()
    )
    assert row_numbers(0, count=10, batch=4, seed=2).tolist() != got[0][:4].tolist()
    assert len(row_numbers(0, count=3, batch=8, seed=0)) == 8  # fewer rows than a batch


def test_held_out_batches_hold_every_row_once() -> None:
    batches = all_batches(DATASET, 5)
    assert [b.tokens_bt.shape for b in batches] == [(5, 32)] * 3
    assert sum(int(b.target_valid_bc.sum()) for b in batches) == sum(
        int(r.loss_mask.sum()) for r in examples(12)
    )


def test_rows_are_held_out_once_each_and_in_order() -> None:
    train, held_out = split_rows(list(range(10)), 0.25, seed=0)
    assert len(held_out) == 3
    assert sorted(train + held_out) == list(range(10))
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert split_rows(list(range(10)), 0.25, seed=1)[1] != held_out
    assert split_rows([1, 2], 0.0, seed=0) == ([1, 2], [])
    with pytest.raises(ValueError, match=r"held_out_share=0.9 leaves no row of 2"):
        split_rows([1, 2], 0.9, seed=0)


def test_a_batch_that_cannot_be_cut() -> None:
    with pytest.raises(
        ValueError, match=r"a batch of 4 rows cannot be cut into 3 micro-batches"
    ):
        step_batch(DATASET, 0, batch_size=4, micro=3, seed=0)


@pytest.mark.parametrize("separate", [True, False])
def test_of_text_every_token_with_something_before_it_is_learnt(
    tmp_path: Path, separate: bool
) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", post=True))
    file = write_tokens(["abcde", "fg", "hijklmno"], tok, tmp_path / "tokens")
    dataset = token_dataset(file, Packing(8, separate=separate), first=0, stop=3)
    (batch,) = all_batches(dataset, 4)
    for row in range(4):
        segments = batch.segment_bt[row]
        want = [
            t
            for t in range(1, 8)
            if segments[t] >= 0 and segments[t] == segments[t - 1]
        ]
        assert batch.target_bc[row][batch.target_valid_bc[row]].tolist() == want
    starts = (batch.tokens_bt == tok.bos_id) & (batch.segment_bt >= 0)
    assert starts.sum() >= 3
    learnt = np.zeros_like(starts)
    learnt[:, 1:] = batch.target_valid_bc
    assert (
        learnt & starts
    ).any() != separate  # a BOS inside a row is learnt only if documents run on
    assert (batch.segment_bt[3] == -1).all()
