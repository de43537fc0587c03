"""A program in another interpreter that answers requests, one JSON line each."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Peer:
    """A torch process: started once, asked one thing at a time, idle while this side
    runs.

    Args:
      python: an interpreter.
      program: file beside this one.
      arguments: of the program.
      threads: of torch.
      needs: packages that the interpreter should have, for the error.
      environ: more variables.
    """

    def __init__(
        self,
        python: str,
        program: str,
        *arguments: object,
        threads: int,
        needs: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.python, self.needs = python, needs
        # Threads that spin while they wait would slow this side.
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(program)), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, **(environ or {})},
        )
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.python} ended; does it have {self.needs}? See its error above"
            )
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
