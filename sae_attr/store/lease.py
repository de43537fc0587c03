"""Who may write below a folder: a lock file that its holder touches while it runs, and
that it loses without a heartbeat.

A process of this machine is looked up directly; one of another host counts as dead when
its lock was not touched for the silence that the lock itself states. Times are those of
the file system, so that clocks of hosts may differ. A holder that was itself silent (a
stopped process, a machine put to sleep) reads the lock again before it writes, and
finds there that it was taken over: two runs never write at once.

The `filelock` library makes reading and writing the lock file one step: a lock of the
kernel beside it, or a file of its own where the file system has none. It does not hold
the folder itself, for three reasons: a kernel's lock on a network disk may be seen by
its own host alone, and a bucket has none; it does not say who holds it, which a refused
run must report; and one whose host is gone stays for good, while here a run on another
host goes on after a stated silence. So the record, its touches and the check before
every write are this module's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import filelock
from etils import epath

from sae_attr.store import files
from sae_attr.store.fence import HELD, absolute
from sae_attr.store.files import Meta, PathLike, json_row, write_whole
from sae_attr.store.process import alive, born_at, machine

LOCK = ".lock"
SILENCE = 120.0  # seconds without a touch after which another host may go on
_UNTOUCHED = 24 * 3600.0  # the same for a lock of an older version: nobody touches it
# Touches within one silence: one that is late or fails must not cost the folder.
_BEATS = 8
_RECENT = 2.0  # seconds for which a holder trusts what it read in its lock
_GUARD_SECONDS = 60.0  # nobody looks at a lock for longer


class LockLost(RuntimeError):
    """Another run has taken the folder over, since this one was silent for too long; it
    must not write any more.
    """


class InUse(RuntimeError):
    """Another run holds the folder."""


@dataclass(eq=False)
class Lease:
    """A folder that this process holds; a thread touches it until it is released.

    Args:
      path: of the lock file.
      record: what it holds: host, pid, born, machine, token, silence.
    """

    path: epath.Path
    record: Meta
    looked: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises LockLost where the lock names another run; a lock that somebody
        removed is written again.
        """
        # The wall clock: the monotonic one stands still while a machine sleeps, which
        # is when a lock is lost. It may be set back, so the distance counts.
        if abs(time.time() - self.looked) < _RECENT:
            return
        holder = _holder(self.path)
        if holder is None:
            # Read again under the guard: another run may have written it meanwhile.
            with _alone(self.path):
                holder = _holder(self.path)
                if holder is None:
                    _write(self.path, self.record)
                    holder = self.record
        if holder != self.record:
            raise LockLost(
                f"{os.fspath(self.path.parent)} was taken over by {_named(holder)}, "
                "since this run was silent for more "
                f"than {self.record['silence']:g} s; this one ends here, and the other "
                "goes on from what is stored"
            )
        self.looked = time.time()

    def beat(self) -> None:
        """Touches the lock again and again until `stopped` is set, or another run has
        it.
        """
        while not self.stopped.wait(self.record["silence"] / _BEATS):
            # A file system that is away for a while is tried again at the next beat.
            with contextlib.suppress(OSError, InUse):
                if _holder(self.path) not in (None, self.record):
                    return
                if files.is_local(self.path):
                    os.utime(self.path)
                else:
                    _write(self.path, self.record)

    def release(self) -> None:
        """Stops touching the lock and empties it, where it is still this process's."""
        self.stopped.set()
        if not self.path.parent.exists():
            return
        with _alone(self.path):
            if _holder(self.path) == self.record:
                self.path.write_text("")


@contextlib.contextmanager
def held(folder: PathLike, *, wait: bool, silence: float = SILENCE) -> Iterator[None]:
    """Holds a folder while the block lasts.

    Args:
      folder: made if it is absent.
      wait: where a run of another host holds it, wait until that host is heard again or
        its silence is over.
      silence: seconds without a touch after which others may take it over.

    Raises:
      InUse: another run holds it; says which, and when it can be taken over.
    """
    path = epath.Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease(path, _own_record(silence))
    _acquire(lease, wait=wait)
    # A thread, since a stage may compute for longer than a silence without writing; a
    # daemon, since it must not keep an ended run alive.
    threading.Thread(
        target=lease.beat, name=f"lock of {os.fspath(folder)}", daemon=True
    ).start()
    # From here on every write below the folder asks first whether it is still held.
    name = absolute(folder)
    HELD[name] = lease.check
    try:
        yield
    finally:
        HELD.pop(name, None)
        lease.release()


def _own_record(silence: float) -> Meta:
    pid = os.getpid()
    owner = {
        "host": socket.gethostname(),
        "pid": pid,
        "born": born_at(pid),
        "machine": machine(),
    }
    return {**owner, "token": uuid.uuid4().hex, "silence": silence}


def _acquire(lease: Lease, *, wait: bool) -> None:
    """Writes the lease's record as soon as no other run holds the lock."""
    first = _try(lease)
    if first is None:
        return
    holder, heard = first
    if not wait or not _can_fall_silent(holder):
        raise _refusal(lease.path, holder)
    print(
        f"{os.fspath(lease.path.parent)} is held by {_named(holder)}; waiting until "
        "that is heard or silent",
        flush=True,
    )
    # A touch since the first look: somebody is alive there.
    while (now := _try(lease)) is not None:
        if now[0] != holder or now[1] != heard:
            raise _refusal(lease.path, now[0])
        time.sleep(min(1.0, _silence(holder) / _BEATS))


def _try(lease: Lease) -> tuple[Meta, float] | None:
    """Writes the record where that is allowed and returns None, or else the holder's
    record and when it was touched.
    """
    with _alone(lease.path):
        holder = _holder(lease.path)
        if holder is not None and not _is_gone(lease.path, holder):
            return holder, _touched(lease.path)
        _write(lease.path, lease.record)
    return None


def _is_gone(path: epath.Path, holder: Meta) -> bool:
    """Returns True if the process that a lock names runs no more, as far as this host
    can see.
    """
    if _is_here(holder):
        return not alive(holder["pid"], holder["born"])
    return _age(path) > _silence(holder)


def _is_here(holder: Meta) -> bool:
    """Returns True if the holder's process ids are those of this machine and container."""
    return (
        holder["host"] == socket.gethostname()
        and holder.get("machine", machine()) == machine()
    )


def _can_fall_silent(holder: Meta) -> bool:
    return not _is_here(holder) and "silence" in holder


def _silence(holder: Meta) -> float:
    """Returns the silence that the lock states, in seconds; a day where it states none,
    since nobody touches it.
    """
    silence = holder.get("silence", _UNTOUCHED)
    usable = type(silence) in (int, float) and math.isfinite(silence) and silence > 0
    return float(silence) if usable else _UNTOUCHED


def _holder(path: epath.Path) -> Meta | None:
    """Reads the record of a lock; None where it is absent, empty or names no process."""
    try:
        record = json_row(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        return None
    names = {"host": str, "pid": int, "born": str}
    if record is None or any(
        type(record.get(name)) is not kind for name, kind in names.items()
    ):
        return None
    # To the kernel 0 and negative ids name groups of processes, which always run.
    return record if 0 < record["pid"] < 2**31 else None


def _write(path: epath.Path, record: Meta) -> None:
    if files.is_local(path) and path.is_dir():
        files.remove(path)
    write_whole(path, json.dumps(record))


def _touched(path: epath.Path) -> float:
    return float(path.stat().mtime)


def _age(path: epath.Path) -> float:
    """Measures the seconds since a lock was touched, by the file system's own clock."""
    probe = path.parent / f"{LOCK}-clock-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_text("now")
        return _touched(probe) - _touched(path)
    finally:
        probe.unlink(missing_ok=True)


def _refusal(path: epath.Path, holder: Meta) -> InUse:
    folder, who = os.fspath(path.parent), _named(holder)
    if _is_here(holder):
        return InUse(
            f"{folder} is in use by {who}; wait for it, or give another --workdir"
        )
    return InUse(
        f"{folder} is in use by {who}, heard {max(_age(path), 0):.0f} s ago; wait for "
        "it, or give another --workdir. Where "
        "that host is dead, the same command goes on once it was silent for "
        f"{_silence(holder):g} s; or remove "
        f"{os.fspath(path)}"
    )


def _named(holder: Meta) -> str:
    return f"process {holder['pid']} on {ascii(holder['host'])[1:-1]}"


@contextlib.contextmanager
def _alone(path: epath.Path) -> Iterator[None]:
    """Keeps other processes of this file system from reading or writing the lock; a
    bucket has nothing of the kind.
    """
    if not files.is_local(path):
        yield
        return
    with _guard(os.fspath(path.parent / f"{LOCK}-guard")):
        yield


def _guard(name: str) -> Any:
    """Acquires a lock of the kernel; where the file system has none, a file that is
    created and removed.
    """
    try:
        try:
            return filelock.FileLock(name, timeout=_GUARD_SECONDS).acquire()
        except NotImplementedError:
            return filelock.SoftFileLock(name, timeout=_GUARD_SECONDS).acquire()
    except filelock.Timeout as error:
        raise InUse(
            f"another process holds {name} for {_GUARD_SECONDS:g} s; remove it where "
            "none runs"
        ) from error
