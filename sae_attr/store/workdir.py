"""A workdir belongs to one config, and to one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sae_attr.store.files import PathLike, json_row, remove, to_json, write_atomic
from sae_attr.store.lease import SILENCE, held


def claim_workdir(
    workdir: PathLike,
    config: Mapping[str, Any],
    ignore: Sequence[str] = (),
    allow_change: bool = False,
) -> None:
    """Ties a workdir to one config: writes it to `config.json` at first use, and compares
    from then on.

    Args:
      workdir: created if it is absent.
      config: plain values, nested to any depth.
      ignore: dotted names of fields that may differ, with all below them (where and how
        fast, not what).
      allow_change: the new config replaces the old one instead of being refused.

    Raises:
      ValueError: fields differ; lists each as old → new.
    """
    path = epath.Path(workdir) / "config.json"
    new = json.loads(to_json(dict(config)))
    old = _stored_config(path)
    if old is not None and not allow_change:
        old_flat, new_flat = _flat(old), _flat(new)
        changes = []
        for name in sorted(old_flat | new_flat):
            before = old_flat.get(name, "(absent)")
            now = new_flat.get(name, "(absent)")
            if before != now and not _below(name, ignore):
                changes.append(f"\n  {name}: {before} → {now}")
        if changes:
            raise ValueError(
                f"{os.fspath(workdir)} was made with another config than this "
                f"run's:{''.join(changes)}\n"
                "give another --workdir, or --allow_config_change to go on with the "
                "new values"
            )
        return
    write_atomic(path, to_json(new))


def _stored_config(path: epath.Path) -> Mapping[str, Any] | None:
    """Reads the config of a workdir; None where there is none, or a damaged one, which is
    warned of and replaced.

    Nothing is lost by that: keys of stored stages are made of the config, so that
    results of another config are never loaded.
    """
    if not path.exists():
        return None
    config = json_row(path.read_bytes()) if path.is_file() else None
    if config is None:
        warnings.warn(
            f"{os.fspath(path)} is damaged; it is written again",
            RuntimeWarning,
            stacklevel=3,
        )
        remove(path)
    return config


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens nested dicts to dotted name -> JSON text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True)
    return flat


def _below(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@contextlib.contextmanager
def own_workdir(
    workdir: PathLike,
    config: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    allow_change: bool = False,
    writer: bool = True,
) -> Iterator[None]:
    """Holds a workdir by lock and by config while the block lasts; the config stays
    afterwards.

    Where the block refuses its input (ValueError), config.json is what it was before,
    so that the corrected command finds a free workdir, and a refused change of the
    config leaves no trace.

    Args:
      workdir, config, ignore, allow_change: as for `claim_workdir`.
      writer: False for the processes of a run that write nothing.

    Raises:
      ValueError: the workdir belongs to another config.
      RuntimeError: another run holds it.
    """
    if not writer:
        yield
        return
    path = epath.Path(workdir) / "config.json"
    # The lock first: two runs that begin at once must not both find a free workdir.
    with lock_workdir(workdir, wait=True):
        before = path.read_bytes() if path.is_file() else None
        try:
            claim_workdir(workdir, config, ignore, allow_change)
            yield
        except ValueError:
            if before is not None:
                write_atomic(path, before)
            else:
                path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def lock_workdir(
    workdir: PathLike, *, wait: bool = False, silence: float = SILENCE
) -> Iterator[None]:
    """Holds a workdir for one run while the block lasts; a dead run's is taken over.

    A process of this machine counts as dead when it does not run, one of another host
    when it has not touched its lock for `silence` seconds. The lock is a file that
    names host and process: advice to other runs, no protection against other programs.

    Args:
      workdir: created if it is absent.
      wait: where another host's run holds it, wait until that is heard again (InUse) or
        was silent for long enough.
      silence: seconds, stated in the lock for others.

    Raises:
      RuntimeError: another run holds it; says which. In the block, from what writes: it
        was taken over meanwhile.
    """
    with held(workdir, wait=wait, silence=silence):
        yield
