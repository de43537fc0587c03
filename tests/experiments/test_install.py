"""What an installed package holds, and that its experiments run from any folder."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests._processes import SECONDS
from tests.experiments._demo import REPO, environment


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that git tracks, built without a network."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if name.split("/")[0] in (
            "sae_attr",
            "experiments",
            "configs",
            "setup.py",
            "pyproject.toml",
            "README.md",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPO / name).read_bytes())
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    ran(pip, source)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_only_the_package_lies_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae_attr"}
    assert {
        "sae_attr/experiments/attribute.py",
        "sae_attr/configs/attribute.py",
    } <= set(names)


@pytest.mark.slow
def test_an_installed_experiment_finds_its_config_from_any_folder(
    wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv/bin/python")
    place = Path(
        ran(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            tmp_path,
        ).strip()
    )
    zipfile.ZipFile(wheel).extractall(place)
    # The libraries are those of this environment; its editable install of the project
    # is in a .pth that is not read again.
    numpy = Path(pytest.importorskip("numpy").__file__).parent.parent
    (place / "libraries.pth").write_text(f"{numpy}\n")
    inside = ran([python, "-c", "import sae_attr; print(sae_attr.__file__)"], tmp_path)
    assert inside.startswith(str(place))
    start = [python, "-m", "sae_attr.experiments.make_miniature", "--out=mini"]
    assert "python -m sae_attr.experiments.attribute" in ran(start, tmp_path)
    help_text = ran(
        [python, "-m", "sae_attr.experiments.attribute", "--help"], tmp_path
    )
    assert "--show_tokens" in help_text
    keys = (
        "lm=mini/model",
        "sae=mini/sae",
        "pairs=mini/pairs.jsonl",
        "corpus=mini/corpus.json",
    )
    shown = [
        python,
        "-m",
        "sae_attr.experiments.attribute",
        "--config=attribute",
        "--workdir=w",
        "--show_tokens=1",
    ]
    assert ran([*shown, *(f"--config.{key}" for key in keys)], tmp_path).strip()
