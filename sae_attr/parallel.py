"""Where arrays lie: distributed start, mesh, rules from parameter paths to partition
specs, compile cache.

A mesh always has the axes `data` and `model`. Every process runs the same program on
the same host data; an array is put on the devices by handing each process the slices
that its own devices hold.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "model")

Rules = Sequence[tuple[str, P]]
"""Pairs (regular expression, spec); the first whose expression matches the end of a
parameter's path holds.
"""

T = TypeVar("T")
Plain = TypeVar("Plain", bool, int)

# Leading axis of everything under blocks/ is the layer. What a head or an mlp unit
# reads is split by columns, what it writes by rows, so a block needs one all-reduce
# after `o` and one after `down`. Norms and all else are replicated.
LM_RULES: Rules = (
    (r"(embed|head)/table", P("model", None)),
    (r"blocks/(q|k|v|gate|up)/kernel", P(None, None, "model")),
    (r"blocks/(q|k|v|gate|up)/bias", P(None, "model")),
    (r"blocks/(o|down)/kernel", P(None, "model", None)),
    # Every expert is split by its width, as one MLP is.
    (r"blocks/moe/(gate|up)", P(None, None, None, "model")),
    (r"blocks/moe/(gate|up)_bias", P(None, None, "model")),
    (r"blocks/moe/down", P(None, None, "model", None)),
    (r"lora/(q|k|v|gate|up)/b", P(None, None, "model")),
    (r"lora/(o|down)/a", P(None, "model", None)),
)


def start_distributed(environ: Mapping[str, str] | None = None) -> bool:
    """Joins the other processes of a cluster if the environment names one; call it
    before any device is touched.

    A cluster is: JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID
    unless the cluster gives them), JAX_DISTRIBUTED=1 (all of it found by jax, as on a
    TPU slice), or a Slurm step / Open MPI run of more than one task.

    Args:
      environ: the variables to read, `os.environ` by default.

    Returns:
      Whether this process is part of a cluster now; a second call changes nothing.

    Raises:
      RuntimeError: from jax, where a device was touched before or the coordinator
        cannot be reached.
    """
    environ = os.environ if environ is None else environ
    if jax.distributed.is_initialized():
        return True
    if not _in_cluster(environ):
        return False
    # It would take SIGTERM for itself, and a run could not be stopped any more.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**_cluster_arguments(environ))
    return True


def _in_cluster(environ: Mapping[str, str]) -> bool:
    """Returns True if the variables name a cluster; a batch script or a shell of one task
    is none.
    """
    # The step's count, not the job's: a shell inside a job of many tasks is alone.
    slurm_tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or 1)
    mpi_tasks = int(environ.get("OMPI_COMM_WORLD_SIZE") or 1)
    by_hand = environ.get("JAX_DISTRIBUTED", "0") not in ("", "0")
    address = bool(environ.get("JAX_COORDINATOR_ADDRESS"))
    return by_hand or address or max(slurm_tasks, mpi_tasks) > 1


def _cluster_arguments(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns the arguments that the JAX_* variables state; jax reads the address itself
    but not the count and the index.
    """
    arguments: dict[str, Any] = {}
    if environ.get("JAX_NUM_PROCESSES"):
        arguments["num_processes"] = int(environ["JAX_NUM_PROCESSES"])
    if environ.get("JAX_PROCESS_ID"):
        arguments["process_id"] = int(environ["JAX_PROCESS_ID"])
    if environ.get("JAX_COORDINATOR_ADDRESS"):
        arguments["coordinator_address"] = environ["JAX_COORDINATOR_ADDRESS"]
    return arguments


def enable_compile_cache(path: str | os.PathLike[str] | None = None) -> str:
    """Keeps compiled programs on disk, so that a second run of a program starts at
    once.

    Args:
      path: the folder; by default `xla` under the environment's SAE_ATTR_CACHE, else
        `~/.cache/sae_attr/xla`.

    Returns:
      The folder in use, or "" where SAE_ATTR_CACHE is set to nothing, which turns the
      cache off.
    """
    if path is None:
        root = os.environ.get(
            "SAE_ATTR_CACHE", str(Path.home() / ".cache" / "sae_attr")
        )
        path = Path(root) / "xla" if root else ""
    jax.config.update("jax_compilation_cache_dir", str(path) or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return str(path)


def is_main() -> bool:
    """Returns whether this is process 0, the only one that writes, asks judges and
    draws figures.
    """
    return jax.process_index() == 0


def from_main(value: Plain) -> Plain:
    """Returns process 0's answer on every process, for decisions that must not differ (a file
    seen by one host only).
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils  # initialises devices on import

    # A collective call: every process must make it, the same number of times.
    answer = multihost_utils.broadcast_one_to_all(np.asarray(value))
    return type(value)(answer)


def text_from_main(text: str) -> str:
    """Returns process 0's text on every process; the others' is not read."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils  # initialises devices on import

    data_k = np.frombuffer(text.encode(), np.uint8)
    size = from_main(len(data_k))
    # Few sizes, so that few programs are compiled.
    padded_k = np.zeros(1 << max(size, 64).bit_length(), np.uint8)
    if is_main():
        padded_k[:size] = data_k
    whole_k = np.asarray(multihost_utils.broadcast_one_to_all(padded_k))
    return whole_k[:size].tobytes().decode()


def parse_mesh(spec: str) -> dict[str, int]:
    """Reads the axis sizes of "data=2,model=4"; an axis that is not named is absent.

    Raises:
      ValueError: an unknown or repeated axis, or a size that is no positive integer.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        match = re.fullmatch(r"(\w+)\s*=\s*([1-9]\d*)", part)
        if match is None or match[1] not in AXES or match[1] in sizes:
            raise ValueError(
                f"mesh {spec!r}: {part!r} is not understood; write data=N,model=M, "
                "each axis at most once"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def make_mesh(spec: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh ("data", "model") of Auto axes that `spec` asks for.

    "" puts all devices on `data`; an axis that is not named has size 1. A product below
    the number of devices uses the first ones (in one process only: elsewhere a process
    would be left without work).

    Args:
      spec: as in "data=2,model=4".
      devices: `jax.devices()` by default.

    Raises:
      ValueError: the product exceeds the devices, or is below them with more than one
        process; `spec` is malformed.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(spec) or {"data": len(devices)}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    count = math.prod(shape)
    if count > len(devices) or (count < len(devices) and jax.process_count() > 1):
        raise ValueError(
            f"mesh {spec!r} asks for {count} devices ({' × '.join(map(str, shape))}), "
            f"but {len(devices)} are present; "
            f"write a mesh whose data × model is {len(devices)}, or leave it empty to "
            "put them all on data"
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that holds the whole array on every device of the mesh."""
    return NamedSharding(mesh, P())


def _axes_of(entry: Any) -> tuple[str, ...]:
    """Returns one entry of a spec as a tuple of mesh axes."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _fitting(entry: Any, dim: int, mesh: Mesh) -> Any:
    """Returns `entry` if its axes divide `dim`, else None: JAX has no uneven shards."""
    return None if dim % _parts(entry, mesh) else entry


def split_axis(axis: str, dim: int, mesh: Mesh) -> str | None:
    """Returns the axis of the mesh if it splits a dimension of this size; None where it
    has one part alone, or does not divide it.
    """
    return _fitting(axis, dim, mesh) if mesh.shape[axis] > 1 else None


def _parts(entry: Any, mesh: Mesh) -> int:
    """Returns into how many parts an entry of a spec splits a dimension."""
    return math.prod(mesh.shape[axis] for axis in _axes_of(entry))


def spec_for(path: str, shape: Sequence[int], rules: Rules, mesh: Mesh) -> P:
    """Returns the partition spec of one parameter: the first rule that matches, less
    what does not divide.

    A rule matches the end of the path at a "/", so that an optimizer's
    `mu/blocks/q/kernel` lies as `blocks/q/kernel` does. No rule, or one for another
    rank, replicates the array; an axis that does not divide its dimension is dropped.

    Args:
      path: keys joined with "/".
      shape: of the parameter.
    """
    for pattern, spec in rules:
        if re.fullmatch(rf"(?:.*/)?(?:{pattern})", path):
            if len(spec) > len(shape):
                return P()
            return P(*(_fitting(entry, dim, mesh) for entry, dim in zip(spec, shape)))
    return P()


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Returns a tree of `NamedSharding` like `tree`, whose leaves have a shape (arrays
    or `jax.ShapeDtypeStruct`).
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_for(name, leaf.shape, rules, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def shard_tree(tree: T, rules: Rules, mesh: Mesh) -> T:
    """Puts every leaf where the rules say; each process passes the same host values."""
    return jax.tree.map(put, tree, shardings(tree, rules, mesh))


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Lays out a host or device array as `sharding` says.

    With several processes each reads only the slices of its own devices, so a
    memory-mapped file is never read whole.

    Args:
      array: the global array; on every process the same values. Anything with `shape`
        and slicing will do.
    """
    if sharding.is_fully_addressable or (
        isinstance(array, jax.Array) and not array.is_fully_addressable
    ):
        return jax.device_put(array, sharding)

    def piece(index: Any) -> Any:
        # Keys of random numbers have no form on the host.
        is_keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return array[index] if is_keys else np.asarray(array[index])

    return jax.make_array_from_callback(tuple(array.shape), sharding, piece)


def shard_batch(tree: T, mesh: Mesh) -> T:
    """Spreads the leading axis of every leaf over `data`; scalars are replicated.

    Args:
      tree: the global batch, leaves `[b, ...]`; the caller pads the rows.

    Raises:
      ValueError: the rows of a leaf are no multiple of the `data` axis.
    """
    size = mesh.shape["data"]

    def one(leaf: Any) -> jax.Array:
        # Arrays on devices or in mapped files stay there: only slices are read.
        leaf = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
        if leaf.ndim and leaf.shape[0] % size:
            raise ValueError(
                f"a batch of {leaf.shape[0]} rows cannot be split over data={size}; "
                f"pad it to a multiple of {size} "
                "with rows of weight 0"
            )
        return put(leaf, NamedSharding(mesh, P("data") if leaf.ndim else P()))

    return jax.tree.map(one, tree)


def check_rows(rows: int, mesh: Mesh, key: str) -> None:
    """Raises ValueError for a number of rows at a time that the data axis does not split.

    Args:
      key: where the number is set.
    """
    data = mesh.shape["data"]
    if rows % data:
        near = -(-rows // data) * data
        raise ValueError(
            f"{key}={rows} rows cannot be split over data={data} (mesh data × model = "
            f"{data} × {mesh.shape['model']}); give a multiple of {data}, such as "
            f"{key}={near}, or a mesh with a smaller data axis"
        )


def shard_rows(array: Any, mesh: Mesh) -> jax.Array:
    """Spreads the latents of a dictionary `[n, ...]` over all devices of the mesh.

    Where n is no multiple of all devices, over the largest axis that divides it;
    failing that, replicated.
    """
    fits = []
    for axes in (AXES, *AXES):
        if array.shape[0] % _parts(axes, mesh) == 0:
            fits.append(axes)
    best = max(fits, key=lambda axes: _parts(axes, mesh), default=None)
    return put(array, NamedSharding(mesh, P(best)))


def to_host(arrays: Any) -> Any:
    """Returns the arrays of a pytree, whole, on every process's host.

    Arrays of several processes lie on a mesh. Shards that other processes hold are
    gathered first, those of all arrays by one program: for a moment every device holds
    all of them, so that large ones are better fetched one by one.
    """
    leaves, structure = jax.tree.flatten(arrays)
    missing = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            missing[i] = leaf
    if missing:
        there = tuple(replicated(leaf.sharding.mesh) for leaf in missing.values())
        gather = jax.jit(_unchanged, out_shardings=there)
        whole = gather(tuple(missing.values()))
        for i, leaf in zip(missing, whole, strict=True):
            leaves[i] = leaf
    host = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
    return jax.tree.unflatten(structure, host)


def with_namespace(*values: Any) -> tuple[Any, ...]:
    """Returns the module for operations between values, and each of them as its array:
    numpy where all are on the host, for which nothing is compiled, else `jax.numpy`.
    """
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)):
        return jnp, *map(jnp.asarray, values)
    arrays = []
    for array in map(np.asarray, values):
        arrays.append(array.astype(jax.dtypes.canonicalize_dtype(array.dtype)))
    return np, *arrays


def _unchanged(arrays: T) -> T:
    # By name, so that jax compiles it once for the same shapes.
    return arrays
