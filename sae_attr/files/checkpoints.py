"""Training checkpoints: a pytree of arrays and its JSON metadata under a step number,
whole or not at all.

The only module that knows Orbax. A step is written beside the others and renamed when
it is complete, so that a kill at any moment leaves the last good one; arrays are
written and read by the processes that hold their shards. In every step lies a list of
its files with their checksums, and a step whose files are not those counts as absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sae_attr.parallel import from_main, is_main
from sae_attr.store.fence import check_held
from sae_attr.store.files import Meta, PathLike, json_row, remove, to_json, write_atomic
from sae_attr.store.names import list_files, whole_hash

T = TypeVar("T")

_STATE, _META, _LIST = "state", "meta", "files.json"
# List of a step's files -> whether they agree with it, so that a step is read whole
# only once.
_VERIFIED: dict[str, bool] = {}


def save(
    folder: PathLike,
    step: int,
    state: Any,
    meta: Mapping[str, Any] | None = None,
    *,
    keep: int = 2,
) -> None:
    """Writes `state` and `meta` as `step`, then deletes all but the last `keep` steps;
    returns when it is on the disk.

    Every process of a run calls it.

    Args:
      folder: of all steps of one run; made if absent.
      step: at or above 0, beyond those in the folder.
      state: pytree of jax arrays (sharded or not, typed keys too), numpy arrays and
        numbers.
      meta: what JSON can say, numpy values included. `restore` compares its "config".
      keep: how many steps to leave.

    Raises:
      ValueError: the folder has this step or a later one, or `keep` is below 1.
    """
    check_held(folder)
    newest = latest(folder)
    if newest is not None and newest >= step:
        raise ValueError(
            f"{os.fspath(folder)} holds step {newest} and is to get step {step}; give "
            "another folder"
        )
    if keep < 1:
        raise ValueError(
            f"keep={keep} would delete step {step} as soon as it is written; keep at "
            "least 1"
        )
    items = {
        _STATE: ocp.args.StandardSave(state),
        _META: ocp.args.JsonSave(_plain(meta or {})),
    }
    # Orbax knows no checksums: to it a damaged later step would be the newest.
    if is_main():
        for damaged in (n for n in _steps(folder) if newest is None or n > newest):
            remove(epath.Path(folder) / str(damaged))
    from_main(True)  # nobody writes before the main process has cleared the place
    with _manager(folder, keep) as manager:
        manager.save(step, args=ocp.args.Composite(**items))
    if is_main():
        _note_files(folder, step)


def latest(folder: PathLike) -> int | None:
    """Returns the highest step in the folder that is complete and undamaged, or
    None; warns of a damaged one.
    """
    for step in sorted(_steps(folder), reverse=True):
        if _is_whole(folder, step):
            return step
        warnings.warn(
            f"checkpoint {os.fspath(epath.Path(folder) / str(step))} is not as it was "
            "written; the one before it is taken",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


def _steps(folder: PathLike) -> list[int]:
    path = epath.Path(folder)
    if not path.is_dir():
        return []
    return [int(p.name) for p in path.iterdir() if p.name.isdecimal()]


def _note_files(folder: PathLike, step: int) -> None:
    """Writes the list of a step's files."""
    sums = {name: whole_hash(path) for name, path in _files(folder, step).items()}
    write_atomic(epath.Path(folder) / str(step) / _LIST, to_json(sums))


def _files(folder: PathLike, step: int) -> dict[str, epath.Path]:
    path = epath.Path(folder) / str(step)
    files = list_files(path, hidden=True) if path.is_dir() else [path]
    names = {os.fspath(file.relative_to(path)): file for file in files}
    return {name: file for name, file in names.items() if name != _LIST}


def _is_whole(folder: PathLike, step: int) -> bool:
    """Returns whether the files of a step are those that its list states; true without a list,
    as older versions left it.
    """
    path = epath.Path(folder) / str(step) / _LIST
    if path.parent.is_dir() and not path.exists():
        return True
    listed = path.read_bytes() if path.is_file() else b""
    files = _files(folder, step)
    # Sizes and times are part of the key: a file that changes is hashed again.
    versions = {}
    for name, file in files.items():
        versions[name] = (file.stat().length, file.stat().mtime)
    key = f"{os.fspath(path)}:{listed!r}:{versions}"
    if key not in _VERIFIED:
        sums = {name: whole_hash(file) for name, file in files.items()}
        _VERIFIED[key] = sums == json_row(listed)
    return _VERIFIED[key]


def read_meta(folder: PathLike, step: int | None = None) -> Meta:
    """Returns the metadata of a step, the latest by default, without its arrays.

    Raises:
      FileNotFoundError: no such step.
    """
    step = _existing(folder, step)
    with _manager(folder) as manager, _readable(folder, step):
        return manager.restore(
            step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()})
        )[_META]


def restore(
    folder: PathLike,
    like: T,
    *,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[T, Meta]:
    """Returns state and metadata of a step, the latest by default.

    Args:
      folder: as for `save`.
      like: pytree of arrays or `jax.ShapeDtypeStruct`: structure, shapes, dtypes and
        shardings that are wanted. A leaf without a sharding comes on the first device,
        a numpy leaf as numpy.
      step: which.
      config: if given, it has to equal the saved metadata's "config" field for field.

    Raises:
      FileNotFoundError: no such step.
      ValueError: another config, or arrays of other names, shapes or dtypes than
        `like`; the message lists them.
    """
    step = _existing(folder, step)
    meta = read_meta(folder, step)
    if config is not None:
        _same_config(folder, meta.get("config", {}), _plain(config))
    with _manager(folder) as manager:
        with _readable(folder, step):
            saved = manager.item_metadata(step)[_STATE].tree
        _same_arrays(f"{os.fspath(folder)}, step {step}", saved, like)
        args = ocp.args.Composite(
            **{_STATE: ocp.args.StandardRestore(jax.tree.map(_placed, like))}
        )
        with _readable(folder, step):
            return manager.restore(step, args=args)[_STATE], meta


@contextlib.contextmanager
def _readable(folder: PathLike, step: int) -> Iterator[None]:
    """Raises ValueError for whatever the library raises where the files of a step are
    damaged.
    """
    try:
        yield
    except Exception as error:
        where = os.fspath(epath.Path(folder) / str(step))
        raise ValueError(
            f"the checkpoint {where} cannot be read ({type(error).__name__}: "
            f"{str(error)[:300]}); remove that folder, and "
            "the run goes on from the one before"
        ) from error


def _manager(folder: PathLike, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        # The list of checksums is made from the files: they must be complete by then.
        enable_async_checkpointing=False,
        cleanup_tmp_directories=keep is not None,
    )
    handlers = {
        _STATE: ocp.StandardCheckpointHandler(),
        _META: ocp.JsonCheckpointHandler(),
    }
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name, save_args, restore_args in (
        (_STATE, ocp.args.StandardSave, ocp.args.StandardRestore),
        (_META, ocp.args.JsonSave, ocp.args.JsonRestore),
    ):
        registry.add(name, save_args, handlers[name])
        registry.add(name, restore_args, handlers[name])
    return ocp.CheckpointManager(
        epath.Path(folder).absolute(), options=options, handler_registry=registry
    )


def _existing(folder: PathLike, step: int | None) -> int:
    number = latest(folder) if step is None else step
    if number is None or not (epath.Path(folder) / str(number)).is_dir():
        absent = "checkpoint" if step is None else f"step {step}"
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no {absent} (latest: {latest(folder)})"
        )
    return number


def _plain(meta: Mapping[str, Any]) -> Meta:
    return json.loads(to_json(dict(meta)))


def _same_config(
    folder: PathLike, saved: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    rows = []
    for key in sorted({*saved, *current}):
        there, here = saved.get(key, "(absent)"), current.get(key, "(absent)")
        if there != here:
            rows.append(f"  {key}: {there!r} there, {here!r} here")
    if rows:
        listed = "\n".join(rows)
        raise ValueError(
            f"{os.fspath(folder)} was written with another config:\n{listed}\ngive the "
            "same config, or another folder"
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
            f"the arrays of {where} are not those of this run:\n{listed}\nuse the "
            "widths and optimiser there"
        )


def _shapes(tree: Any) -> dict[str, str]:
    """Returns path -> shape and dtype. Orbax gives tuples back as lists and named tuples
    as dicts: their paths are the same.
    """
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shapes[name] = _named(leaf)
    return shapes


def _named(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _bare(leaf: Any) -> Any:
    """Returns what Orbax writes for a leaf: a typed key as its words, a number as an
    array without axes.
    """
    if isinstance(leaf, bool | int | float):
        return jax.ShapeDtypeStruct((), np.asarray(leaf).dtype)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(
            jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _placed(leaf: Any) -> Any:
    """Returns the leaf with a sharding: without one Orbax takes that of the writer, whose
    devices may not be here.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return leaf
