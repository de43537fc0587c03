"""Artefacts on disk: content-addressed, published whole or not at all, resumable while they grow.

An entry is a folder `<root>/<key>/` of `<array>.npy` files, `meta.json` and `manifest.json`; the manifest states size
and checksum of every other file and is written last. Paths go through etils.epath, so a root may be a bucket: there a
folder cannot be renamed in one step, and the manifest alone tells that an entry is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import io
import json
import os
import socket
import time
import urllib.parse
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from etils import epath

Arrays: TypeAlias = dict[str, np.ndarray]
Meta: TypeAlias = dict[str, Any]
PathLike: TypeAlias = str | os.PathLike[str]

MANIFEST, META, PROGRESS, LOCK = "manifest.json", "meta.json", "progress", ".lock"
_WHOLE = 64 << 20  # files up to this size are hashed whole
_SAMPLES, _SAMPLE = 64, 1 << 20  # larger ones by this many pieces of this size


class Damaged(Exception):
    """An entry whose files are not those that its manifest states."""


# --- names ------------------------------------------------------------------------------------------------------------


def digest(obj: Any) -> str:
    """A name for a value that is the same in every process and on every machine: 32 hex digits of a sha256.

    Dicts and sets do not depend on order, a list equals a tuple, floats count by `repr`, an array by dtype, shape and
    bytes, a dataclass by its class name and fields.

    Raises:
      TypeError: a value that has no stable contents (a function, an open file); the message says where it lies.
    """
    return hashlib.sha256(_canonical(obj, "value")).hexdigest()[:32]


def _canonical(obj: Any, where: str) -> bytes:
    """Bytes that determine `obj`: a type tag and the hashes of the parts, so that no two structures read alike."""
    if isinstance(obj, enum.Enum):
        return _canonical(obj.value, where)
    if isinstance(obj, np.generic) and obj.dtype.kind in "biufSU":
        obj = obj.item()
    if obj is None or isinstance(obj, bool | int | float | str):
        return f"{type(obj).__name__}:{obj!r}".encode()
    if isinstance(obj, bytes):
        return b"bytes:" + obj
    if isinstance(obj, np.dtype | os.PathLike):
        return f"str:{str(obj)!r}".encode()
    if isinstance(obj, Mapping):
        return _joined("dict", sorted(_hash(k, where) + _hash(v, f"{where}[{k!r}]") for k, v in obj.items()))
    if isinstance(obj, Sequence):
        return _joined("list", [_hash(v, f"{where}[{i}]") for i, v in enumerate(obj)])
    if isinstance(obj, set | frozenset):
        return _joined("set", sorted(_hash(v, where) for v in obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)}
        return _joined(type(obj).__name__, [_hash(fields, where)])
    return _canonical_array(obj, where)


def _canonical_array(obj: Any, where: str) -> bytes:
    """The same for what numpy can read without guessing."""
    array = np.asarray(obj) if hasattr(obj, "__array__") else None
    if array is None or array.dtype.hasobject:
        raise TypeError(
            f"digest: {where} is a {type(obj).__name__}, which has no stable contents; "
            "pass plain values, dataclasses or arrays, or the digest or fingerprint of what it stands for"
        )
    return f"array:{array.dtype.name}:{array.shape}:".encode() + hashlib.sha256(array.tobytes()).digest()


def _hash(obj: Any, where: str) -> bytes:
    return hashlib.sha256(_canonical(obj, where)).digest()


def _joined(tag: str, parts: Sequence[bytes]) -> bytes:
    return f"{tag}:{len(parts)}:".encode() + b"".join(parts)


def fingerprint(path: PathLike) -> str:
    """A name for the contents of a file or folder, wherever it lies: 32 hex digits.

    A file up to 64 MB counts by its whole sha256; a larger one by its size and 64 pieces of 1 MB, evenly spaced from
    its first byte to its last, so that a model of many GB is named in a second (a change between pieces is missed).
    A folder counts by relative names and contents; names that start with a dot are left out.

    Raises:
      FileNotFoundError: nothing lies at `path`.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"fingerprint: nothing lies at {os.fspath(path)}")
    if not path.is_dir():
        return _file_hash(path)
    return digest([(os.fspath(file.relative_to(path)), _file_hash(file)) for file in _files(path)])


def _files(folder: epath.Path) -> list[epath.Path]:
    """The files below a folder in a fixed order, without hidden ones."""
    names = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    return [file for p in names for file in (_files(p) if p.is_dir() else [p])]


def _file_hash(path: epath.Path) -> str:
    """32 hex digits of one file, by samples if it is large."""
    size = path.stat().length
    state = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(1 << 20):
                state.update(block)
        else:
            state.update(f"{size}:".encode())
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
                state.update(file.read(_SAMPLE))
    return state.hexdigest()[:32]


# --- writing without halves -------------------------------------------------------------------------------------------


def _local(path: epath.Path) -> bool:
    """Whether the path is no bucket's; an epath is never a `pathlib.Path`, so the type does not tell."""
    return "://" not in os.fspath(path)


def _sync(path: PathLike) -> None:
    """Asks the disk to hold a file or a folder's list of names before we go on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader, or a run after a kill, sees the old or the new content and never a part."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _local(path):
        path.write_bytes(data)  # a bucket shows an object only when it is whole
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_bytes(data)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _json(obj: Any) -> str:
    """JSON with numpy numbers and arrays as numbers and lists, and paths as text."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"meta holds a {type(value).__name__}, which JSON cannot say; pass plain values, or use arrays")

    return json.dumps(obj, indent=1, ensure_ascii=False, default=plain)


def _quote(name: str) -> str:
    """A file name for any text; never hidden, never a path."""
    return urllib.parse.quote(name, safe=" ,=+@").replace(".", "%2E")


def _plain(array: Any) -> np.ndarray:
    """The array in a dtype that .npy knows: bfloat16 and its kin as unsigned integers of the same width."""
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects cannot be stored; put its values in meta, or convert it to numbers")
    return array.view(f"u{array.dtype.itemsize}") if hasattr(ml_dtypes, array.dtype.name) else array


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `_plain`."""
    return array.view(getattr(ml_dtypes, dtype)) if hasattr(ml_dtypes, dtype) else array


def _write_arrays(folder: epath.Path, arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One .npy per array; returns name -> file, dtype."""
    index = {}
    for name, array in arrays.items():
        file = f"{_quote(name)}.npy"
        with (folder / file).open("wb") as handle:
            np.save(handle, _plain(array), allow_pickle=False)
        index[name] = {"file": file, "dtype": np.asarray(array).dtype.name}
    return index


def _read_array(path: epath.Path, dtype: str) -> np.ndarray:
    """Memory-mapped where the disk is local, read whole from a bucket."""
    if _local(path):
        return _typed(np.load(path, mmap_mode="r", allow_pickle=False), dtype)
    return _typed(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False), dtype)


# --- the store --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Store:
    """Entries under one folder, by key.

    Args:
      root: local folder or bucket; made at the first publish.
      writer: False on all processes but one; there `publish` and progress write nothing.
    """

    root: PathLike
    writer: bool = True

    def path(self, key: str) -> epath.Path:
        """The folder of an entry, whether or not it exists."""
        return epath.Path(self.root) / key

    def has(self, key: str) -> bool:
        """Whether a complete entry lies there: a manifest, and every file of the size that it states."""
        try:
            self._manifest(key)
        except (KeyError, Damaged):
            return False
        return True

    def publish(
        self,
        key: str,
        arrays: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        write: Callable[[epath.Path], None] | None = None,
    ) -> epath.Path:
        """Stores an entry whole: after a kill at any moment it is there with every byte, or not at all.

        An entry that is there already and complete is kept; a damaged one is replaced.

        Args:
          key: name of the folder.
          arrays: name -> array; any text may be a name.
          meta: plain values; numpy numbers and arrays become JSON.
          write: called with a folder, for further files; they are found again under `path(key)`.
        """
        if not self.writer or self.has(key):
            return self.path(key)
        root, final = epath.Path(self.root), self.path(key)
        self._sweep()
        folder = root / f".tmp-{_owner_tag()}-{uuid.uuid4().hex[:8]}" if _local(root) else final
        if not _local(root) and final.exists():
            final.rmtree()
        folder.mkdir(parents=True)
        try:
            self._fill(folder, arrays or {}, meta or {}, write)
            if folder != final:
                _install(folder, final)
        finally:
            if folder != final:
                folder.rmtree(missing_ok=True)
        return final

    def load(self, key: str) -> tuple[Arrays, Meta]:
        """The arrays (memory-mapped, read-only, where the disk is local) and the meta of an entry, after a checksum.

        Raises:
          KeyError: no such entry.
          Damaged: a file is missing, cut short or changed.
        """
        folder, manifest = self.path(key), self._manifest(key)
        for name, stated in manifest["files"].items():
            if _file_hash(folder / name) != stated["sha256"]:
                raise Damaged(f"{os.fspath(folder / name)} has other contents than its manifest states")
        arrays = {name: _read_array(folder / a["file"], a["dtype"]) for name, a in manifest["arrays"].items()}
        return arrays, json.loads((folder / META).read_text())

    def progress(self, key: str) -> Progress:
        """What was finished so far of an entry that is being computed."""
        return Progress(epath.Path(self.root) / PROGRESS / key, writer=self.writer)

    def _manifest(self, key: str) -> dict[str, Any]:
        """The manifest of an entry whose files have the stated sizes."""
        folder = self.path(key)
        if not (folder / MANIFEST).exists():
            if folder.exists():
                raise Damaged(f"{os.fspath(folder)} has no {MANIFEST}: it was cut short")
            raise KeyError(f"no entry {key} in {os.fspath(self.root)}")
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except ValueError as error:
            raise Damaged(f"{os.fspath(folder / MANIFEST)} is no JSON: {error}") from error
        for name, stated in manifest["files"].items():
            size = (folder / name).stat().length if (folder / name).exists() else None
            if size != stated["bytes"]:
                raise Damaged(f"{os.fspath(folder / name)} has {size} bytes, its manifest states {stated['bytes']}")
        return manifest

    def _fill(self, folder: epath.Path, arrays: Mapping[str, Any], meta: Mapping[str, Any], write: Any) -> None:
        """Arrays, meta and further files, then the manifest of all of them."""
        index = _write_arrays(folder, arrays)
        (folder / META).write_text(_json(dict(meta)))
        if write is not None:
            write(folder)
        files = {}
        for file in _files(folder):
            name = os.fspath(file.relative_to(folder))
            files[name] = {"bytes": file.stat().length, "sha256": _file_hash(file)}
            if _local(file):
                _sync(file)
        write_atomic(folder / MANIFEST, _json({"arrays": index, "files": files}))

    def _sweep(self) -> None:
        """Removes what publishing processes of this host left when they were killed."""
        root = epath.Path(self.root)
        if not _local(root) or not root.exists():
            return
        for left in root.glob(f".tmp-{socket.gethostname()}~*"):
            pid, born = left.name.split("~")[1].split("-")[0].split("@")
            if not _alive(int(pid), born):
                left.rmtree(missing_ok=True)


def _install(folder: epath.Path, final: epath.Path) -> None:
    """Renames a finished folder to its key, moving a damaged entry away first."""
    _sync(folder)
    if final.exists():
        os.rename(final, folder.parent / f"{folder.name}-old")
    os.rename(folder, final)
    _sync(final.parent)
    (folder.parent / f"{folder.name}-old").rmtree(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Finished parts of a long stage: shards of arrays, each written whole, and rows appended as JSON lines.

    Args:
      folder: made at the first write.
      writer: False where another process writes.
    """

    folder: epath.Path
    writer: bool = True

    def done(self) -> set[str]:
        """The ids of the finished shards; one cut short is not among them."""
        return {urllib.parse.unquote(p.name.removesuffix(".npz")) for p in self._names(".npz") if _whole_zip(p)}

    def add(self, shard: str, arrays: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
        """Stores one finished shard; writing it again replaces it."""
        if not self.writer:
            return
        dtypes = {name: np.asarray(array).dtype.name for name, array in arrays.items()}
        head = json.dumps({"dtypes": dtypes, "meta": json.loads(_json(dict(meta or {})))})
        parts: dict[str, Any] = {f"a:{name}": _plain(array) for name, array in arrays.items()}
        buffer = io.BytesIO()
        np.savez(buffer, head=np.frombuffer(head.encode(), np.uint8), **parts)
        write_atomic(self.folder / f"{_quote(shard)}.npz", buffer.getvalue())

    def get(self, shard: str) -> tuple[Arrays, Meta]:
        """The arrays and the meta of a finished shard.

        Raises:
          KeyError: the shard is not finished.
        """
        path = self.folder / f"{_quote(shard)}.npz"
        if not path.exists():
            raise KeyError(f"shard {shard!r} is not finished in {os.fspath(self.folder)}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as parts:
            head = json.loads(parts["head"].tobytes())
            return {name: _typed(parts[f"a:{name}"], dtype) for name, dtype in head["dtypes"].items()}, head["meta"]

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of plain values; they survive a kill from the moment this returns."""
        if not self.writer or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        if not _local(self.folder):  # objects in a bucket cannot grow: one for each call
            write_atomic(self.folder / f"rows-{len(self._names('.jsonl')):06d}.jsonl", text)
            return
        with open(self.folder / "rows.jsonl", "a+b") as file:  # epath itself opens for reading or appending, not both
            if file.tell() and not _ends_line(file):
                text = "\n" + text  # what a kill left of the last line stays alone on its own
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Meta]:
        """All appended rows in order; a line cut short by a kill is left out."""
        lines = [line for path in self._names(".jsonl") for line in path.read_bytes().split(b"\n") if line.strip()]
        return [row for row in map(_row, lines) if row is not None]

    def clear(self) -> None:
        """Forgets everything, once the entry itself is published."""
        if self.writer:
            self.folder.rmtree(missing_ok=True)

    def _names(self, suffix: str) -> list[epath.Path]:
        """Files of one kind in order; not the hidden ones, which are being written."""
        files = sorted(self.folder.iterdir(), key=lambda p: p.name) if self.folder.exists() else ()
        return [p for p in files if p.name.endswith(suffix) and not p.name.startswith(".")]


def _whole_zip(path: epath.Path) -> bool:
    """Whether a local .npz has its table of contents, which is its last part."""
    return not _local(path) or zipfile.is_zipfile(path)


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _row(line: bytes) -> Meta | None:
    """One JSON line, or None where it is cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


# --- stages -----------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A stage's arrays and meta, the key they are stored under, the seconds it took now, and if it only had to load."""

    arrays: Arrays
    meta: Meta
    key: str
    seconds: float
    cached: bool


def run_stage(
    store: Store,
    name: str,
    version: int,
    fields: Mapping[str, Any],
    inputs: Mapping[str, str],
    fn: Callable[[Progress], tuple[Mapping[str, Any], Mapping[str, Any]]],
    agree: Callable[[bool], bool] = bool,
) -> Result:
    """Loads a stage's artefact if it is stored, else computes and publishes it.

    Args:
      store: where artefacts lie.
      name: of the stage; the key starts with it.
      version: to be raised when the stage's code gives other numbers than before.
      fields: the config fields that the result depends on, and no others.
      inputs: name -> key (or fingerprint) of what the stage reads.
      fn: `progress -> (arrays, meta)`; a long stage asks `progress` what was finished before a kill.
      agree: with several processes, process 0's answer for all (`parallel.from_main`): all must compute, or none.
    """
    key = f"{name}-{digest([name, version, dict(fields), dict(inputs)])}"
    start = time.perf_counter()
    found = _load_or_warn(store, key)
    if agree(found is not None):
        arrays, meta = found or store.load(key)
        return Result(arrays, meta, key, time.perf_counter() - start, True)
    progress = store.progress(key)
    computed, meta = fn(progress)
    store.publish(key, computed, meta)
    # The writer reads back what it wrote, so that a first run goes on with exactly what a second one would see.
    arrays, meta = store.load(key) if store.writer else ({k: np.asarray(v) for k, v in computed.items()}, dict(meta))
    progress.clear()
    return Result(arrays, meta, key, time.perf_counter() - start, False)


def _load_or_warn(store: Store, key: str) -> tuple[Arrays, Meta] | None:
    """The entry; None if it is absent, or damaged, which is said and the remains removed."""
    try:
        return store.load(key)
    except KeyError:
        return None
    except Damaged as error:
        warnings.warn(f"{error}; it is computed again", RuntimeWarning, stacklevel=3)
        if store.writer:
            store.path(key).rmtree(missing_ok=True)
        return None


# --- one run in a workdir ---------------------------------------------------------------------------------------------


def claim_workdir(
    workdir: PathLike, config: Mapping[str, Any], ignore: Sequence[str] = (), allow_change: bool = False
) -> None:
    """Ties a workdir to one config: written to `config.json` at first use, compared from then on.

    Args:
      workdir: made if it is absent.
      config: plain values, nested as you like.
      ignore: dotted names of fields that may differ, with all below them (where and how fast, not what).
      allow_change: take the new config for the workdir's own instead of complaining.

    Raises:
      ValueError: fields differ; lists each as old → new.
    """
    path = epath.Path(workdir) / "config.json"
    new = json.loads(_json(dict(config)))
    if path.exists() and not allow_change:
        old_flat, new_flat = _flat(json.loads(path.read_text())), _flat(new)
        names = sorted(n for n in old_flat | new_flat if not _below(n, ignore) and old_flat.get(n) != new_flat.get(n))
        if names:
            lines = "".join(f"\n  {n}: {old_flat.get(n, '(absent)')} → {new_flat.get(n, '(absent)')}" for n in names)
            raise ValueError(
                f"{os.fspath(workdir)} was made with another config than this run's:{lines}\n"
                "give another --workdir, or --allow_config_change to go on with the new values"
            )
        return
    write_atomic(path, _json(new))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dicts as dotted name -> JSON text."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        out |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": json.dumps(value, sort_keys=True)}
    return out


def _below(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@contextlib.contextmanager
def lock_workdir(workdir: PathLike) -> Iterator[None]:
    """Holds a workdir for one run while the block lasts; what a dead process of this host left is taken over.

    The lock is a file that names host and process: advice to other runs, no protection against other programs.

    Raises:
      RuntimeError: another run holds it; says which.
    """
    path = epath.Path(workdir) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
    with _alone(path):
        held = _row(path.read_bytes()) if path.exists() else None
        if held and (held["host"] != mine["host"] or _alive(held["pid"], held["born"])):
            raise RuntimeError(
                f"{os.fspath(workdir)} is in use by process {held['pid']} on {held['host']}; wait for it, give another "
                f"--workdir, or remove {os.fspath(path)} if that run is gone"
            )
        path.write_text(json.dumps(mine))
    try:
        yield
    finally:
        with _alone(path):
            if path.exists() and _row(path.read_bytes()) == mine:
                path.write_text("")  # not unlinked: another run may be waiting on this very file


@contextlib.contextmanager
def _alone(path: epath.Path) -> Iterator[None]:
    """No other process of this host looks at the lock meanwhile; nothing of the kind exists for a bucket."""
    if not _local(path):
        yield
        return
    import fcntl  # absent on Windows

    with path.open("ab") as file:
        with contextlib.suppress(OSError):  # some network file systems know no flock
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks ("" where that is not told), since process ids are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _alive(pid: int, born: str) -> bool:
    """Whether the process that noted `born` still runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(pid) == born


def _owner_tag() -> str:
    """Names this process in the names of its temporary folders."""
    return f"{socket.gethostname()}~{os.getpid()}@{_born(os.getpid())}"
