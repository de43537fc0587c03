"""Follows a rank-1 adapter over its fine-tune: where its path turns, where the
gradient's norm peaks and where the behaviour rises; see configs/transition.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.transition_results import transition_numbers
from sae_attr.analyses.transition_settings import (
    TransitionCase,
    TransitionSettings,
    transition_cases,
)
from sae_attr.analyses.transition_stages import MEASURED, transition_stages
from sae_attr.report.figures import Drawing, render, transition_figure
from sae_attr.report.tables import json_text
from sae_attr.report.transition_text import transition_text
from sae_attr.store import Result, Store, write_atomic
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._organism_study import cases_of_config, left_out_text, run_study
from ._stages import ALL, start_from_flags


def open_cases(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[TransitionCase]:
    """Returns the cases that a config names; nothing is loaded yet."""
    return cases_of_config(
        config, TransitionSettings, transition_cases, store=store, workdir=workdir
    )


def write(
    workdir: epath.Path,
    config: ConfigDict,
    cases: Sequence[TransitionCase],
    results: Mapping[str, Result],
    left_out: Sequence[str] = (),
) -> str:
    """Writes transition.txt, transition.json and the figure of the cases that are
    complete; returns the text, "" where none is.
    """
    numbers = transition_numbers(cases, results)
    if not numbers["runs"]:
        return ""
    text = transition_text(numbers) + left_out_text(left_out)
    content = {
        **numbers,
        "left_out": list(left_out),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "transition.txt", text)
    write_atomic(workdir / "transition.json", json_text(content))
    for suffix, data in render(Drawing(transition_figure, numbers)).items():
        write_atomic(workdir / f"transition_figure.{suffix}", data)
    return text


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    choice: StageChoice = ALL,
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/transition.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    store = Store(workdir / "store")
    cases = open_cases(config, store, workdir)
    run_study(
        config,
        workdir,
        store,
        transition_stages(cases),
        write=partial(write, workdir, config, cases),
        last=(f".{MEASURED}",),
        wrote=f"wrote transition.txt, transition.json and a figure to {workdir}",
        choice=choice,
        shown=shown,
        allow_change=allow_change,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
