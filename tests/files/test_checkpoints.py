"""Checkpoints: what comes back, what is refused, what a kill leaves."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sae_attr.files.checkpoints import latest, read_meta, restore, save
from sae_attr.parallel import make_mesh
from tests._processes import limited

WEIGHTS = {"w": jnp.arange(12.0).reshape(4, 3), "half": jnp.ones(3, jnp.bfloat16)}


def state_of(width: int = 3) -> dict[str, Any]:
    params = {
        "w": jnp.arange(4.0 * width).reshape(4, width),
        "half": jnp.ones(3, jnp.bfloat16),
    }
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(7),
        "step": jnp.int32(5),
        "host": np.arange(4, dtype=np.int32),
        "none": None,
    }


def test_state_and_meta_come_back(tmp_path: Path) -> None:
    state = state_of()
    save(
        tmp_path,
        5,
        state,
        {"config": {"k": 3}, "loss": np.float32(0.5), "path": tmp_path},
    )
    back, meta = restore(
        tmp_path,
        jax.tree.map(jnp.zeros_like, state) | {"key": jax.random.key(0)},
        config={"k": 3},
    )
    assert (
        meta
        == {"config": {"k": 3}, "loss": 0.5, "path": str(tmp_path)}
        == read_meta(tmp_path)
    )
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert (
        jax.random.key_data(back.pop("key")).tolist()
        == jax.random.key_data(state.pop("key")).tolist()
    )
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert back["params"]["half"].dtype == jnp.bfloat16


def test_shapes_alone_are_enough_to_restore(tmp_path: Path) -> None:
    state = state_of()
    save(tmp_path, 0, state)
    back, _ = restore(tmp_path, jax.eval_shape(state_of))
    np.testing.assert_array_equal(back["params"]["w"], state["params"]["w"])
    assert jax.random.uniform(back["key"]) == jax.random.uniform(state["key"])


def test_restores_to_another_sharding(tmp_path: Path) -> None:
    mesh = make_mesh("data=2,model=2")
    sharded = jax.device_put(WEIGHTS["w"], NamedSharding(mesh, P("model", None)))
    save(tmp_path, 1, {"w": sharded})
    other = NamedSharding(mesh, P("data", None))
    back, _ = restore(
        tmp_path, {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=other)}
    )
    assert back["w"].sharding == other
    np.testing.assert_array_equal(back["w"], WEIGHTS["w"])
    back, _ = restore(tmp_path, {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32)})
    assert len(back["w"].sharding.device_set) == 1


def test_keeps_the_last_steps(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    for step in (1, 2, 30):
        save(tmp_path, step, WEIGHTS, keep=2)
    assert latest(tmp_path) == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "30"]
    with pytest.raises(ValueError, match="holds step 30 and is to get step 30"):
        save(tmp_path, 30, WEIGHTS)
    with pytest.raises(ValueError, match="keep=0"):
        save(tmp_path, 31, WEIGHTS, keep=0)


def test_refuses_another_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        restore(tmp_path, WEIGHTS)
    save(tmp_path, 1, state_of(), {"config": {"k": 3, "lr": 0.1}})
    with pytest.raises(
        ValueError,
        match=r"(?s)k: 3 there, 4 here.*seed: '\(absent\)' there, 0 here.*another folder",
    ):
        restore(tmp_path, state_of(), config={"k": 4, "lr": 0.1, "seed": 0})
    with pytest.raises(
        ValueError,
        match=r"(?s)opt/0/mu/w: float32\[4, 3\] there, float32\[4, 5\] here.*params/w",
    ):
        restore(tmp_path, state_of(width=5))
    other = state_of() | {"more": jnp.ones(2)}
    other.pop("host")
    with pytest.raises(
        ValueError, match=r"(?s)\+ host int32\[4\].*− more float32\[2\]"
    ):
        restore(tmp_path, other)
    with pytest.raises(FileNotFoundError, match="step 9"):
        restore(tmp_path, state_of(), step=9)


KILLED = """
import sys, jax.numpy as jnp
from sae_attr.files.checkpoints import latest, save
step = (latest(sys.argv[1]) or 0) + 1
while True:
    save(sys.argv[1], step, {"w": jnp.full((400, 1000), step)}, {"step": step})
    step += 1
"""


@pytest.mark.slow
def test_a_kill_leaves_whole_steps(tmp_path: Path) -> None:
    like, seen = {"w": jnp.zeros((400, 1000), jnp.int32)}, 0
    for wait in (0.0, 0.05, 0.11, 0.17, 0.23):
        with (
            subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)]) as process,
            limited(process),
        ):
            while (latest(tmp_path) or 0) <= seen and process.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
            process.kill()
        back, meta = restore(tmp_path, like)
        assert meta["step"] == latest(tmp_path) > seen
        assert (back["w"] == meta["step"]).all()
        seen = meta["step"]


def damaged(folder: Path, step: int, how: str) -> None:
    files = [
        p
        for p in (folder / str(step)).rglob("*")
        if p.is_file() and p.name != "files.json"
    ]
    files.sort(key=lambda p: p.stat().st_size)
    if how == "gone":
        files[-1].unlink()
    elif how == "cut short":
        files[-1].write_bytes(files[-1].read_bytes()[:-5])
    else:
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 4
        files[-1].write_bytes(data)


@pytest.mark.parametrize("how", ["a flipped bit", "gone", "cut short"])
def test_a_damaged_step_counts_as_absent_and_the_one_before_it_is_taken(
    tmp_path: Path, how: str
) -> None:
    for step in (1, 2):
        save(tmp_path, step, {"w": WEIGHTS["w"] + step}, {"step": step})
    damaged(tmp_path, 2, how)
    with pytest.warns(RuntimeWarning, match="checkpoint .*/2 is not as it was written"):
        assert latest(tmp_path) == 1
    with pytest.warns(RuntimeWarning, match="not as it was written"):
        back, meta = restore(tmp_path, {"w": WEIGHTS["w"]})
    assert meta == {"step": 1}
    np.testing.assert_array_equal(back["w"], WEIGHTS["w"] + 1)
    with pytest.warns(RuntimeWarning, match="not as it was written"):
        save(tmp_path, 2, {"w": WEIGHTS["w"] + 2}, {"step": 2})
    assert (latest(tmp_path), read_meta(tmp_path)) == (2, {"step": 2})


def test_a_folder_with_damaged_steps_alone_has_none(tmp_path: Path) -> None:
    save(tmp_path, 3, WEIGHTS)
    damaged(tmp_path, 3, "gone")
    with pytest.warns(RuntimeWarning, match="not as it was written"):
        assert latest(tmp_path) is None
    (
        tmp_path / "3/files.json"
    ).unlink()  # as an older version left it: found when it is read
    with pytest.raises(
        ValueError, match=r"checkpoint .*/3 cannot be read .*; remove that folder"
    ):
        restore(tmp_path, WEIGHTS)
    (tmp_path / "3/meta/metadata").write_text("[")
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_meta(tmp_path)


def test_a_file_in_the_place_of_a_step(tmp_path: Path) -> None:
    save(tmp_path, 3, WEIGHTS)
    (tmp_path / "4").write_text("no checkpoint")
    with pytest.warns(RuntimeWarning, match="/4 is not as it was written"):
        assert latest(tmp_path) == 3
