"""The snippets of README and docs run, each page from its first to its last."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath

from experiments import _command, _flags, attribute, make_miniature
from sae_attr.organism.planted import make_planted

REPO = Path(__file__).resolve().parent.parent


def snippets(page: str) -> list[str]:
    """The python blocks of a page."""
    text = (REPO / page).read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    ("page", "blocks"), [("README.md", 1), ("docs/notebook.md", 4)]
)
def test_snippets_run(
    page: str,
    blocks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_planted(Path("runs/miniature"))
    assert len(snippets(page)) == blocks
    source = "\n".join(snippets(page))
    exec(compile(source, page, "exec"), {"__name__": "snippets"})
    assert re.search(r"\[\s*77 ", capsys.readouterr().out), (
        "the planted latent is not the first of the printed ranking"
    )


@pytest.mark.parametrize("page", sorted(REPO.glob("docs/*.md")), ids=lambda p: p.name)
def test_other_snippets_import_what_is_there(page: Path) -> None:
    for block in snippets(str(page.relative_to(REPO))):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sae_"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name


def test_the_miniature_says_what_comes_next_and_its_sae_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver((make_miniature.OUT, "a b/mini")):
        make_miniature.main(["make_miniature"])
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("next: ")
    ]
    argv = shlex.split(line)[4:]
    _command.read_command(
        ["attribute", *argv], "attribute", _command.flags_of(attribute)
    )
    config = _flags.CONFIG.value
    config.update(
        {
            "ablate": 0,
            "bootstrap": 20,
            "firing_tokens": 2000,
            "corpus_tokens": 4000,
            "trust_sae": False,
        }
    )
    attribute.start(config, epath.Path(str(_flags.WORKDIR.value)))
    assert re.search(r"^ +1 +77 ", capsys.readouterr().out, re.M)
    with pytest.raises(ValueError, match="arguments without a name: more"):
        make_miniature.main(["make_miniature", "more"])
