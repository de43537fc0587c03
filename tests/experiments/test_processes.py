"""Runs in processes of their own: killed at any moment, and several that share the
work.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests._processes import SECONDS, limited
from tests.experiments._demo import (
    REPO,
    RESULTS,
    command,
    config,
    contents,
    copied,
    environment,
    flag_list,
    loaded,
    numbers,
    scores,
    shell,
    table,
)


def few(miniature: Path, to: Path, count: int = 12) -> Path:
    """The miniature with its first pairs only."""
    copied(miniature, to)
    lines = (miniature / "pairs.jsonl").read_text().splitlines(keepends=True)
    (to / "pairs.jsonl").write_text("".join(lines[:count]))
    return to


def files(folder: Path) -> int:
    return sum(
        len(names) for _, _, names in os.walk(folder)
    )  # which, unlike rglob, bears that folders vanish


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_left_alone(
    miniature: Path, tmp_path: Path
) -> None:
    cfg = config(few(miniature, tmp_path / "few"), batch_size=8)
    ended = shell(flag_list(cfg, tmp_path / "calm"))
    assert ended.returncode == 0, ended.stderr
    workdir, rng, kills = tmp_path / "killed", np.random.default_rng(0), 0
    flags = flag_list(cfg, workdir)
    for _ in range(5):
        quiet = subprocess.DEVNULL
        with (
            subprocess.Popen(
                command(flags), cwd=REPO, env=environment(), stdout=quiet, stderr=quiet
            ) as process,
            limited(process),
        ):
            limit = files(workdir) + int(
                rng.integers(2, 16)
            )  # killed as soon as that many files are there
            while process.poll() is None and files(workdir) < limit:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
        kills += 1
    assert kills >= 2
    ended = shell(flags)
    assert ended.returncode == 0, ended.stderr
    assert contents(workdir) == contents(tmp_path / "calm")
    assert loaded(
        json.loads((workdir / "result.json").read_text())
    )  # it did go on and not begin anew
    left = [
        p.name
        for p in workdir.rglob("*")
        if p.name.startswith(".tmp-") or p.suffix == ".npz"
    ]
    assert left == ["scores.npz"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2", "model=2"])
def test_two_processes_rank_as_one_does(
    done: Path, miniature: Path, tmp_path: Path, mesh: str
) -> None:
    flags = flag_list(config(miniature, mesh=mesh), tmp_path / "w")
    cluster = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            log = stack.enter_context((tmp_path / f"{i}.log").open("w"))
            env = environment(**cluster, JAX_PROCESS_ID=str(i))
            process = subprocess.Popen(
                command(flags), cwd=REPO, env=env, stdout=log, stderr=log
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        codes = [process.wait(timeout=SECONDS) for process in processes]
    assert codes == [0, 0], (tmp_path / "1.log").read_text()[-2000:]
    assert "faithful: tokens=prompt" in (tmp_path / "0.log").read_text()
    assert "faithful" not in (tmp_path / "1.log").read_text()  # only process 0 speaks
    old, new = scores(done), scores(tmp_path / "w")
    assert set(old) == set(new)
    for name in old:
        assert np.linalg.norm(new[name] - old[name]) <= 1e-4 * np.linalg.norm(
            old[name]
        ), name
    for name in RESULTS[:2]:
        a, b = table(done / name), table(tmp_path / "w" / name)
        assert list(a[0]) == list(b[0])
        assert [row["latent"] for row in a[:10]] == [row["latent"] for row in b[:10]]
        assert [row["tokens"] for row in a[:10]] == [row["tokens"] for row in b[:10]]
        np.testing.assert_allclose(numbers(a, "delta"), numbers(b, "delta"), rtol=1e-3)
        np.testing.assert_allclose(
            numbers(a[:3], "exact"), numbers(b[:3], "exact"), rtol=1e-3, atol=1e-5
        )
