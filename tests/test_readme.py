"""The README's snippets run as they stand, in the order in which they stand."""

import re
from pathlib import Path

import pytest

from experiments.make_miniature import make

REPO = Path(__file__).resolve().parent.parent


def snippets() -> list[str]:
    """The python blocks of the README."""
    return re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text("utf-8"), re.DOTALL)


def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("runs/miniature"))
    blocks = snippets()
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert re.search(r"\[\s*77 ", capsys.readouterr().out), "the planted latent is not the first of the printed ranking"
