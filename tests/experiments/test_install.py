"""What an installed package holds, and that its experiments run from any folder."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import _command
from experiments.__main__ import experiments, main
from tests._processes import SECONDS
from tests.experiments._demo import REPO, SMALL, environment, table

BUILD = "from setuptools import build_meta; build_meta.build_wheel({out!r})"
CODE = ("sae_attr", "experiments", "configs")


def ran(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> list[str]:
    """The files that a wheel is made of, without those that git ignores."""
    files = [*CODE, "setup.py", "pyproject.toml", "README.md"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", *files],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    names = filter(None, listed.stdout.split("\0"))
    return [name for name in names if (REPO / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout's files, built without a network."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in sources():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPO / name).read_bytes())
    cached = source / "sae_attr/__pycache__/hooks.pyc"
    cached.parent.mkdir()
    cached.write_bytes(b"of another Python")
    ran([sys.executable, "-c", BUILD.format(out=str(out))], source)
    return next(out.glob("*.whl"))


def test_a_wheel_holds_every_file_of_the_code_and_nothing_at_the_top(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for name in sources():
        if name.startswith("sae_attr/"):
            expected.add(name)
        elif name.split("/")[0] in CODE:
            expected.add(f"sae_attr/{name}")
    files = {name for name in names if ".dist-info/" not in name}
    assert files == expected


@pytest.mark.slow
def test_an_install_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    place, bin_folder = install(wheel, tmp_path / "venv")
    work = tmp_path / "empty"
    work.mkdir()
    python, command = str(bin_folder / "python"), str(bin_folder / "sae_attr")
    inside = ran([python, "-c", "import sae_attr; print(sae_attr.__file__)"], work)
    assert inside.startswith(str(place))
    assert "  case_study " in ran([command, "--help"], work)
    start = [python, "-m", "sae_attr.experiments.make_miniature", "--out=mini"]
    assert "python -m sae_attr.experiments.attribute" in ran(start, work)
    help_text = ran([command, "case_study", "--config=organism", "--help"], work)
    assert "usage: sae_attr case_study" in help_text
    assert "config organism:" in help_text
    values = {
        **SMALL,
        "lm": "mini/model",
        "sae": "mini/sae",
        "pairs": "mini/pairs.jsonl",
        "corpus": "mini/corpus.json",
    }
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    ran([command, "attribute", "--config=attribute", "--workdir=w", *overrides], work)
    assert table(work / "w/latents.csv")[0]["latent"] == "77"
    template = "from sae_attr.report.page import render; print(render.__file__)"
    assert str(place) in ran([python, "-c", template], work)


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Installs the wheel alone into a fresh environment, which borrows this one's
    libraries; returns its site-packages and its folder of commands.
    """
    venv.create(folder, with_pip=False)
    bin_folder = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python")]
    ran([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(ran([str(bin_folder / "python"), "-c", ask], folder).strip())
    # This environment's editable install of the project is in a .pth, which a folder
    # that is named in another .pth does not have read.
    libraries = Path(np.__file__).parent.parent
    (place / "libraries.pth").write_text(f"{libraries}\n")
    return place, bin_folder


# ---- the command ---------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_command_lists_every_experiment(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    text = capsys.readouterr().out
    names = {path.stem for path in (REPO / "experiments").glob("[!_]*.py")}
    assert names == set(experiments())
    for name, sentence in experiments().items():
        assert f"\n  {name} " in text
        assert sentence[0].isupper()
        assert "; see" not in sentence


@pytest.mark.parametrize(
    ("name", "hint"),
    [("case-study", "did you mean case_study?"), ("zzz", "'zzz'; There are approx")],
)
def test_a_name_that_is_none_gets_the_nearest(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 1
    assert hint in capsys.readouterr().err


def test_messages_repeat_the_command_that_was_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = type("Spec", (), {"name": "sae_attr.experiments.steer"})
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    argv = ["steer.py", "--workdir=a b"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/sae_attr", "steer"])
    assert _command.command_line(argv) == "sae_attr steer '--workdir=a b'"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sae_attr.experiments"])
    expected = "python -m sae_attr.experiments.steer '--workdir=a b'"
    assert _command.command_line(argv) == expected


@pytest.mark.parametrize("name", _command.packaged())
def test_a_config_is_named_without_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, module = _command.load_config(name)
    assert len(config) > 0
    assert module.__name__ == f"configs.{name}"
