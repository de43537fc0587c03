"""Training checkpoints: a pytree of arrays and its JSON metadata under a step number, whole or not at all.

The only module that knows Orbax. A step is written beside the others and renamed when it is complete, so that a kill at
any moment leaves the last good one; arrays are written and read by the processes that hold their shards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sae_attr.store.files import Meta, PathLike, to_json

T = TypeVar("T")

_STATE, _META = "state", "meta"


def save(folder: PathLike, step: int, state: Any, meta: Mapping[str, Any] | None = None, *, keep: int = 2) -> None:
    """Writes `state` and `meta` as `step`, then deletes all but the last `keep` steps; returns when it is on the disk.

    Every process of a run calls it.

    Args:
      folder: of all steps of one run; made if absent.
      step: at or above 0, beyond those in the folder.
      state: pytree of jax arrays (sharded or not, typed keys too), numpy arrays and numbers.
      meta: what JSON can say, numpy values included. `restore` compares its "config".
      keep: how many steps to leave.

    Raises:
      ValueError: the folder has this step or a later one, or `keep` is below 1.
    """
    newest = latest(folder)
    if newest is not None and newest >= step:
        raise ValueError(f"{os.fspath(folder)} holds step {newest} and is to get step {step}; give another folder")
    if keep < 1:
        raise ValueError(f"keep={keep} would delete step {step} as soon as it is written; keep at least 1")
    items = {_STATE: ocp.args.StandardSave(state), _META: ocp.args.JsonSave(_plain(meta or {}))}
    with _manager(folder, keep) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def latest(folder: PathLike) -> int | None:
    """The highest complete step in the folder, or None."""
    path = epath.Path(folder)
    return max((int(p.name) for p in path.iterdir() if p.name.isdigit()), default=None) if path.is_dir() else None


def read_meta(folder: PathLike, step: int | None = None) -> Meta:
    """The metadata of a step, the latest by default, without its arrays.

    Raises:
      FileNotFoundError: no such step.
    """
    step = _existing(folder, step)
    with _manager(folder) as manager:
        return manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))[_META]


def restore(
    folder: PathLike, like: T, *, step: int | None = None, config: Mapping[str, Any] | None = None
) -> tuple[T, Meta]:
    """State and metadata of a step, the latest by default.

    Args:
      folder: as for `save`.
      like: pytree of arrays or `jax.ShapeDtypeStruct`: structure, shapes, dtypes and shardings that are wanted. A leaf
        without a sharding comes on the first device, a numpy leaf as numpy.
      step: which.
      config: if given, it has to equal the saved metadata's "config" field for field.

    Raises:
      FileNotFoundError: no such step.
      ValueError: another config, or arrays of other names, shapes or dtypes than `like`; the message lists them.
    """
    step = _existing(folder, step)
    meta = read_meta(folder, step)
    if config is not None:
        _same_config(folder, meta.get("config", {}), _plain(config))
    with _manager(folder) as manager:
        _same_arrays(f"{os.fspath(folder)}, step {step}", manager.item_metadata(step)[_STATE].tree, like)
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(jax.tree.map(_placed, like))})
        return manager.restore(step, args=args)[_STATE], meta


def _manager(folder: PathLike, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=keep is not None
    )
    handlers = {_STATE: ocp.StandardCheckpointHandler(), _META: ocp.JsonCheckpointHandler()}
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name, save_args, restore_args in (
        (_STATE, ocp.args.StandardSave, ocp.args.StandardRestore),
        (_META, ocp.args.JsonSave, ocp.args.JsonRestore),
    ):
        registry.add(name, save_args, handlers[name])
        registry.add(name, restore_args, handlers[name])
    return ocp.CheckpointManager(epath.Path(folder).absolute(), options=options, handler_registry=registry)


def _existing(folder: PathLike, step: int | None) -> int:
    found = latest(folder) if step is None else step
    if found is None or not (epath.Path(folder) / str(found)).is_dir():
        wanted = "checkpoint" if step is None else f"step {step}"
        raise FileNotFoundError(f"{os.fspath(folder)} holds no {wanted} (latest: {latest(folder)})")
    return found


def _plain(meta: Mapping[str, Any]) -> Meta:
    return json.loads(to_json(dict(meta)))


def _same_config(folder: PathLike, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = "(absent)"
    differing = [key for key in sorted({*saved, *wanted}) if saved.get(key, absent) != wanted.get(key, absent)]
    if differing:
        rows = "\n".join(f"  {k}: {saved.get(k, absent)!r} there, {wanted.get(k, absent)!r} here" for k in differing)
        raise ValueError(
            f"{os.fspath(folder)} was written with another config:\n{rows}\ngive the same config, or another folder"
        )


def _same_arrays(where: str, saved: Any, like: Any) -> None:
    """Compares names, shapes and dtypes; − is missing there, + is there and not wanted."""
    there, here = _shapes(saved), _shapes(jax.tree.map(_bare, like))
    rows = [f"  − {name} {here[name]}" for name in here.keys() - there.keys()]
    rows += [f"  + {name} {there[name]}" for name in there.keys() - here.keys()]
    both = [name for name in here if name in there and here[name] != there[name]]
    rows += [f"  {name}: {there[name]} there, {here[name]} here" for name in both]
    if rows:
        listed = "\n".join(sorted(rows))
        raise ValueError(
            f"the arrays of {where} are not those of this run:\n{listed}\nuse the widths and optimiser there"
        )


def _shapes(tree: Any) -> dict[str, str]:
    """Path -> shape and dtype. Orbax gives tuples back as lists and named tuples as dicts: their paths are the same."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _named(leaf) for path, leaf in leaves}


def _named(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _bare(leaf: Any) -> Any:
    """What Orbax writes for a leaf: a typed key as its words, a number as an array without axes."""
    if isinstance(leaf, bool | int | float):
        return jax.ShapeDtypeStruct((), np.asarray(leaf).dtype)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _placed(leaf: Any) -> Any:
    """The leaf with a sharding: without one Orbax takes that of the writer, whose devices may not be here."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return leaf
