"""What is said where hosts of one run differ, where memory is full, and where another
process ended: messages and exit statuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import attribute as attribute_config
from experiments import _common, _endings, _hosts, _notes
from sae_attr.store import InputAwaited
from sae_attr.store.lease import InUse

FACTS: dict[str, Any] = {
    "host": "a",
    "code": "12ab (sources 34cd)",
    "versions": {"jax": "0.10.0", "numpy": "2.4"},
    "config": {"config.seed": "0", "--workdir": "runs/x"},
    "inputs": {"config.lm=m": "9 bytes"},
}


def test_hosts_that_agree_are_not_named() -> None:
    assert _hosts.differences([FACTS, {**FACTS, "host": "b"}]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"code": "56ef (sources 78)"},
            "runs commit 56ef (sources 78), process 0 on a",
        ),
        ({"versions": {"jax": "0.9.1", "numpy": "2.4"}}, "has jax 0.9.1, process 0 on"),
        ({"config": {"config.seed": "0"}}, "with --workdir=(absent), process 0 on a"),
        ({"inputs": {}}, "config.lm=m: (absent) for process 1 on b, 9 bytes for"),
    ],
)
def test_a_host_that_differs_is_named(changes: dict[str, Any], words: str) -> None:
    lines = _hosts.differences([FACTS, {**FACTS, "host": "b", **changes}])
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize("shared", [True, False])
def test_a_workdir_that_another_host_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    def notes_of_all(topic: str, text: str) -> list[str]:
        other = {**json.loads(text), "host": "b"}
        return [
            text,
            json.dumps({**other, "sees": shared} if "sees" in other else other),
        ]

    monkeypatch.setattr(_notes, "notes_of_all", notes_of_all)
    arguments = [f"--workdir={tmp_path}/not/there"]
    if shared:
        _hosts.check_hosts({}, arguments)
    else:
        with pytest.raises(
            ValueError, match="does not see the file that process 0 wrote"
        ):
            _hosts.check_hosts({}, arguments)
    assert list(tmp_path.iterdir()) == []


# ---- endings -------------------------------------------------------------------------


def full_memory() -> Exception:
    """What jax raises where memory is full."""
    try:
        jax.block_until_ready(jnp.zeros(1 << 48))
    except jax.errors.JaxRuntimeError as error:
        return error
    raise AssertionError("there is room for a petabyte")


def test_full_memory_says_which_keys_to_change() -> None:
    config = attribute_config.get_config()
    config.batch_size = 32
    for error in (full_memory(), MemoryError("Unable to allocate 9 GiB")):
        message, status = _endings.ending_of(error, config)
        assert status == 1
        assert message is not None
        assert message.startswith("out of memory: ")
        assert "--config.batch_size=16" in message
        assert f"--config.mesh=model={jax.device_count()}" in message


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no such key"), 1),
        (InUse("w is in use by process 7 on b"), 75),
        (ConnectionResetError("reset by peer"), 75),
        (InputAwaited("em.steer.away waits for completions"), 3),
    ],
)
def test_a_scheduler_is_told_whether_to_start_again(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        _common.guarded(main)([])
    assert stop.value.code == status
    kind = "waiting" if status == 3 else "error"
    assert capsys.readouterr().err == f"{kind}: {error}\n"


def test_an_error_of_a_collective_is_another_process_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = jax.errors.JaxRuntimeError("INTERNAL: connection closed by peer\nat ...")
    assert _endings.ending_of(error, None) == (None, 1)
    monkeypatch.setattr(_notes, "processes_of_run", lambda: 2)
    message, status = _endings.ending_of(error, None)
    assert status == 75
    assert message is not None
    assert "connection closed by peer; the same command goes on" in message
