"""Every benchmark can be started: what it imports exists."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
# Torch's sides run in an interpreter of their own.
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_torch"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
