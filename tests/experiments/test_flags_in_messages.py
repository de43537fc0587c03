"""The flag that a message names exists in the experiment that prints it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

REPO = Path(__file__).resolve().parents[2]
FLAG = re.compile(
    r"--config\.((?:[a-z_]+|\{self\.name\}|\{name\})(?:\.(?:[a-z_]+|\{self\.name\}|\{name\}))*)"
)
EXPERIMENTS = sorted(p.stem for p in (REPO / "experiments").glob("[a-z]*.py"))


def flags_in(path: Path) -> list[str]:
    """Flags that the literals of a file name in full; those that are put together from
    a variable are not among them.
    """
    named = FLAG.findall(path.read_text(encoding="utf-8"))
    return sorted(
        {flag for flag in named if not flag.endswith(("{name}", "{self.name}"))}
    )


def has(config: ConfigDict, flag: str) -> bool:
    """Whether a config has a key, at any depth; a case's name stands for any."""
    node = config
    for part in flag.split("."):
        if part in ("{self.name}", "{name}"):
            part = next(iter(node))
        if part not in node:
            return False
        node = node[part]
    return True


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_flags_that_an_experiment_names_are_keys_of_its_config(name: str) -> None:
    flags = flags_in(REPO / "experiments" / f"{name}.py")
    if flags:
        config = importlib.import_module(f"configs.{name}").get_config()
        assert [flag for flag in flags if not has(config, flag)] == []


# Modules of study/ that hold the work of one experiment may name its flags.
ONE_EXPERIMENT = {"steering_": "steer", "sae_training": "train_sae"}


def config_named_by(path: Path) -> Any:
    """The config whose flags a module of study/ may name."""
    for beginning, experiment in ONE_EXPERIMENT.items():
        if path.name.startswith(beginning):
            return importlib.import_module(f"configs.{experiment}").get_config()
    return importlib.import_module("configs.case_study").get_config()


def test_the_library_names_flags_of_case_studies_alone() -> None:
    """Elsewhere it does not know which experiment runs: `Setup.flag` is told."""
    for path in sorted((REPO / "sae_attr").rglob("*.py")):
        flags = flags_in(path)
        if path.parent.name == "study":
            config = config_named_by(path)
            assert [flag for flag in flags if not has(config, flag)] == [], path
        else:
            assert flags == [], path


@pytest.mark.parametrize("setting", ["trust_sae", "exclude"])
@pytest.mark.parametrize(
    ("experiment", "keys_at"),
    [("attribute", ""), ("case_study", "cases.misalignment.attribution.")],
)
def test_what_a_study_names_is_a_key_where_it_says(
    experiment: str, keys_at: str, setting: str
) -> None:
    config = importlib.import_module(f"configs.{experiment}").get_config()
    assert has(config, f"{keys_at}{setting}")
