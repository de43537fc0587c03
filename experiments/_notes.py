"""Texts that the processes of a run leave for each other.

They go through the coordinator and need no device, so that processes that cannot compute
together can still say why.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for its coordinator's client

_NOTES = "sae_attr"
_NOTE_SECONDS = 300.0  # a host that starts later than that is not waited for


def process_number() -> int:
    """Returns the index of this process in its cluster, 0 outside one; touches no
    device.
    """
    return distributed.global_state.process_id


def processes_of_run() -> int:
    """Returns how many processes the cluster has, 1 outside one; touches no device."""
    return distributed.global_state.num_processes or 1


def add_note(topic: str, text: str) -> None:
    """Leaves a text for the other processes; nothing happens where the coordinator is
    gone.
    """
    client: Any = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_NOTES}/{topic}/{process_number()}", text)


def notes_so_far(topic: str) -> dict[int, str]:
    """Returns the texts that processes have left, by their index; none where the
    coordinator is gone.
    """
    client: Any = distributed.global_state.client
    try:
        notes = client.key_value_dir_get(f"{_NOTES}/{topic}")
    except jax.errors.JaxRuntimeError:
        return {}
    return {int(name.rpartition("/")[2]): text for name, text in notes}


def notes_of_all(topic: str, text: str) -> list[str]:
    """Leaves a text, waits for those of all processes and returns them in order.

    Raises:
      RuntimeError: a process does not start within five minutes.
    """
    client: Any = distributed.global_state.client
    add_note(topic, text)
    notes = []
    for i in range(processes_of_run()):
        milliseconds = int(_NOTE_SECONDS * 1000)
        name = f"{_NOTES}/{topic}/{i}"
        notes.append(client.blocking_key_value_get(name, milliseconds))
    return notes
