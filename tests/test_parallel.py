"""Mesh, rules and placement on four simulated devices; two real processes for the
distributed start.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sae_attr import parallel
from sae_attr.parallel import LM_RULES, make_mesh, shard_batch, shard_rows, spec_for
from tests._processes import SECONDS


def test_the_tests_run_on_four_devices() -> None:
    assert jax.device_count() == 4


@pytest.mark.parametrize(
    ("spec", "data", "model"),
    [
        ("", 4, 1),
        ("data=2,model=2", 2, 2),
        ("model=4", 1, 4),
        (" data = 2 ", 2, 1),
        ("data=3", 3, 1),
    ],
)
def test_mesh_has_both_axes(spec: str, data: int, model: int) -> None:
    mesh = make_mesh(spec)
    assert dict(mesh.shape) == {"data": data, "model": model}
    assert mesh.axis_names == parallel.AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_that_is_too_large_names_both_counts() -> None:
    with pytest.raises(
        ValueError,
        match=r"asks for 8 devices \(2 × 4\), but 4 are present.*data × model is 4",
    ):
        make_mesh("data=2,model=4")


@pytest.mark.parametrize(
    "spec", ["data=0", "data=2,data=2", "rows=2", "data", "data=-1", "data=2;model=2"]
)
def test_a_mesh_that_is_not_understood(spec: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(spec)) + ".*data=N,model=M"):
        make_mesh(spec)


SHAPES = {
    "embed/table": ((64, 8), P("model", None)),
    "pos/table": ((16, 8), P()),
    "blocks/attn_norm/scale": ((3, 8), P()),
    "blocks/q_norm/scale": ((3, 4), P()),
    "blocks/q/kernel": ((3, 8, 16), P(None, None, "model")),
    "blocks/q/bias": ((3, 16), P(None, "model")),
    "blocks/o/kernel": ((3, 16, 8), P(None, "model", None)),
    "blocks/o/bias": ((3, 8), P()),
    "blocks/up/kernel": ((3, 8, 32), P(None, None, "model")),
    "blocks/down/kernel": ((3, 32, 8), P(None, "model", None)),
    "final_norm/scale": ((8,), P()),
    "head/table": ((64, 8), P("model", None)),
}


@pytest.mark.parametrize("path", SHAPES)
def test_rules_of_the_language_model(path: str) -> None:
    shape, spec = SHAPES[path]
    mesh = make_mesh("data=2,model=2")
    assert spec_for(path, shape, LM_RULES, mesh) == spec
    assert (
        spec_for(f"mu/{path}", shape, LM_RULES, mesh) == spec
    )  # an optimizer's moments lie as the parameters do


def test_an_axis_that_does_not_divide_is_dropped() -> None:
    mesh = make_mesh("model=4")
    assert spec_for("embed/table", (50257, 8), LM_RULES, mesh) == P(None, None)
    assert spec_for("x", (6, 8), [("x", P(("data", "model"), "model"))], mesh) == P(
        None, "model"
    )
    assert (
        spec_for("xq", (8,), [("q", P("model"))], mesh) == P()
    )  # a rule starts at a "/"
    assert spec_for("q", (8,), [("q", P(None, "model"))], mesh) == P()  # another rank


def nested(path: str, leaf: Any) -> Any:
    for key in reversed(path.split("/")):
        leaf = {key: leaf}
    return leaf


def test_shard_tree_keeps_values_and_splits() -> None:
    mesh = make_mesh("data=2,model=2")
    kernel = np.arange(3 * 8 * 16, dtype=np.float32).reshape(3, 8, 16)
    out = parallel.shard_tree(nested("blocks/q/kernel", kernel), LM_RULES, mesh)[
        "blocks"
    ]["q"]["kernel"]
    np.testing.assert_array_equal(out, kernel)
    assert out.addressable_shards[0].data.shape == (3, 8, 8)


def test_a_sharded_product_equals_the_plain_one() -> None:
    mesh = make_mesh("data=2,model=2")
    key = jax.random.key(0)
    tree = {
        "blocks": {
            "up": {"kernel": jax.random.normal(key, (1, 8, 32))},
            "down": {"kernel": jnp.ones((1, 32, 8))},
        }
    }
    x = np.ones((4, 8), np.float32)

    def mlp(t: Any, x: Any) -> Any:
        return (
            jnp.tanh(x @ t["blocks"]["up"]["kernel"][0])
            @ t["blocks"]["down"]["kernel"][0]
        )

    out = jax.jit(mlp)(parallel.shard_tree(tree, LM_RULES, mesh), shard_batch(x, mesh))
    np.testing.assert_allclose(out, mlp(tree, x), rtol=1e-5, atol=1e-5)


def test_shard_batch_splits_rows_and_replicates_scalars() -> None:
    mesh = make_mesh("data=2,model=2")
    out = shard_batch({"tokens": np.arange(12).reshape(4, 3), "step": 3}, mesh)
    assert out["tokens"].addressable_shards[0].data.shape == (2, 3)
    assert out["tokens"].sharding.spec == P("data")
    assert out["step"].sharding.is_fully_replicated
    with pytest.raises(
        ValueError,
        match=r"5 rows cannot be split over data=2; pad it to a multiple of 2",
    ):
        shard_batch(np.zeros((5, 3)), mesh)


@pytest.mark.parametrize("rows", [3, 6])
def test_rows_that_the_data_axis_does_not_split(rows: int) -> None:
    mesh = make_mesh("data=4")
    parallel.check_rows(8, mesh, "batch_size")
    words = f"batch_size={rows} rows cannot be split over data=4 .*4 × 1.*={rows // 4 * 4 + 4}"
    with pytest.raises(ValueError, match=words):
        parallel.check_rows(rows, mesh, "batch_size")


@pytest.mark.parametrize(("rows", "held"), [(8, 2), (6, 3), (7, 7)])
def test_shard_rows_uses_all_the_devices_that_divide(rows: int, held: int) -> None:
    mesh = make_mesh("data=2,model=2")
    dec_nd = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    out = shard_rows(dec_nd, mesh)
    assert out.addressable_shards[0].data.shape == (held, 3)
    np.testing.assert_array_equal(out, dec_nd)


def test_put_reads_slices_where_devices_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = make_mesh()
    sharding = jax.NamedSharding(mesh, P("data"))
    monkeypatch.setattr(
        type(sharding), "is_fully_addressable", property(lambda self: False)
    )
    out = parallel.put(np.arange(8.0, dtype=np.float32), sharding)
    np.testing.assert_array_equal(
        np.concatenate([s.data for s in out.addressable_shards]), np.arange(8)
    )


def test_one_process_is_main_and_agrees_with_itself() -> None:
    assert parallel.is_main()
    assert parallel.from_main(True) is True
    assert parallel.replicated(make_mesh()).is_fully_replicated


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, False),
        (
            {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},
            False,
        ),  # the batch script itself, outside srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"JAX_DISTRIBUTED": "1"}, True),
        ({"JAX_DISTRIBUTED": "0"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
    ],
)
def test_a_cluster_is_joined_only_where_there_is_one(
    environ: dict[str, str], cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    assert parallel.start_distributed(environ) is cluster
    assert len(calls) == cluster


def test_compile_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        monkeypatch.setenv("SAE_ATTR_CACHE", str(tmp_path))
        assert parallel.enable_compile_cache() == str(tmp_path / "xla")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
        assert parallel.enable_compile_cache(tmp_path / "other") == str(
            tmp_path / "other"
        )
        monkeypatch.setenv("SAE_ATTR_CACHE", "")
        assert parallel.enable_compile_cache() == ""
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


TWO_HOSTS = """
import os, signal, sys, numpy as np, jax
from experiments import _notes
from sae_attr import parallel
stops = []
signal.signal(signal.SIGTERM, lambda *of_signal: stops.append(of_signal))
assert parallel.start_distributed() and parallel.start_distributed()
mesh = parallel.make_mesh("data=2,model=2")
batch = parallel.shard_batch(np.arange(8.0, dtype=np.float32).reshape(4, 2), mesh)
rows = parallel.shard_rows(np.arange(8.0, dtype=np.float32), mesh)
total = jax.jit(lambda a, b: a.sum() + b.sum(), out_shardings=parallel.replicated(mesh))(batch, rows)
answer = parallel.from_main(parallel.is_main())
i = jax.process_index()
os.kill(os.getpid(), signal.SIGTERM)
assert len(stops) == 1
assert _notes.notes_of_all("names", f"host {i}") == ["host 0", "host 1"]
assert _notes.notes_so_far("names") == {0: "host 0", 1: "host 1"}
assert parallel.text_from_main(f"Δ of {i}" * 50) == "Δ of 0" * 50
keys = parallel.shard_batch(jax.random.split(jax.random.key(3), 4), mesh)
draws = parallel.to_host(jax.jit(jax.vmap(jax.random.bits))(keys))
np.testing.assert_array_equal(draws, jax.vmap(jax.random.bits)(jax.random.split(jax.random.key(3), 4)))
print(jax.process_index(), jax.process_count(), jax.device_count(), float(total), answer)
"""


def test_two_processes_share_one_mesh(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    common = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_HOSTS],
            env=common | {"JAX_PROCESS_ID": str(i)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    try:
        outs = [run.communicate(timeout=SECONDS) for run in runs]
    finally:
        for run in runs:
            run.kill()  # nothing happens where it has ended
    assert [run.returncode for run in runs] == [0, 0], outs
    # gloo reports its connections on the same stream
    assert [out.splitlines()[-1].split() for out, _ in outs] == [
        [str(i), "2", "4", "56.0", "True"] for i in range(2)
    ]
