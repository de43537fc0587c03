"""Every command that the documentation shows is understood: program, config, keys and
flags; and every program has the flags that it requires.
"""

from __future__ import annotations

import subprocess
import sys

from . import _documented


def test_documented_commands_are_understood() -> None:
    # Of its own, since several programs define --out.
    process = subprocess.run(
        [sys.executable, "-m", "tests.experiments._documented"],
        cwd=_documented.REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    count, *faults = process.stdout.splitlines()
    assert faults == []
    assert int(count) > 50
