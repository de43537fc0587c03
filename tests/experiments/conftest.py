"""The miniature and one run on it, shared by all workers of a test session."""

import os
from pathlib import Path

import pytest

from tests._compile import quick_compile
from tests.experiments import _demo


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a session see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, sae, pairs.jsonl and corpus.json of the demo; not to be changed, see
    `_demo.copied`.
    """
    return _demo.once(
        shared_folder(tmp_path_factory) / "miniature", _demo.write_miniature
    )


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """The workdir of a finished run; not to be changed, see `_demo.copied`."""
    folder = shared_folder(tmp_path_factory) / "done"
    with quick_compile():  # a session's fixtures are made before those of a module
        return _demo.once(
            folder, lambda workdir: _demo.run(_demo.config(miniature), workdir)
        )


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """The workdir of a finished case study; not to be changed."""
    from tests.experiments.test_case_study import config, run

    with quick_compile():
        return _demo.once(
            shared_folder(tmp_path_factory) / "studied",
            lambda workdir: run(config(miniature), workdir),
        )


@pytest.fixture(autouse=True, scope="module")
def _quick(quick: None) -> None:
    """Runs in this process, like the finished one, compile quickly; those in processes
    of their own compile as a user's.
    """
