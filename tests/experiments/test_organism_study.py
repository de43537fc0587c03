"""A study of several cases of which one has nothing to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from experiments._organism_study import left_out_text, run_study
from sae_attr.store import NothingToCompute, Result, Stage, Store
from sae_attr.study.stage_choice import StageChoice

WHY = "quiet: no prompt of 8 gave both sides; ask more prompts"


def case(name: str) -> list[Stage]:
    def pairs(inputs: Any, progress: Any) -> Any:
        if name == "quiet":
            raise NothingToCompute(WHY)
        return {}, {}

    pairs_name = f"{name}.pairs"
    end = Stage(f"{name}.end", lambda inputs, progress: ({}, {}), {}, (pairs_name,))
    return [Stage(pairs_name, pairs), end]


def write(results: Mapping[str, Result], left_out: Sequence[str]) -> str:
    complete = [name for name in results if name.endswith(".end")]
    return ", ".join(complete) + left_out_text(left_out) if complete else ""


def run(workdir: Path, *names: str) -> None:
    stages = [stage for name in names for stage in case(name)]
    run_study(
        ConfigDict({"mesh": ""}),
        epath.Path(workdir),
        Store(workdir / "store"),
        stages,
        write=write,
        last=(".end",),
        wrote="wrote it",
        choice=StageChoice(),
        shown=False,
        allow_change=False,
    )


def test_the_other_cases_go_on_and_the_text_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "quiet", "loud")
    assert capsys.readouterr().out == f"loud.end\nLeft out: {WHY}\nwrote it\n"


def test_a_study_whose_every_case_is_left_out_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt of 8 gave both sides"):
        run(tmp_path, "quiet")
