"""Makes a pool of latents from four selectors, steers them and tests them as monitors on
every task, and follows them over the fine-tune's checkpoints; see configs/pool.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.checkpoint_results import checkpoint_rows
from sae_attr.analyses.checkpoint_stages import checkpoint_stages
from sae_attr.analyses.number_control_results import control_numbers
from sae_attr.analyses.number_controls import controls_stage
from sae_attr.analyses.pool_results import pool_numbers
from sae_attr.analyses.pool_settings import PoolCase, PoolSettings, pool_cases
from sae_attr.analyses.pool_stages import pool_stages
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.report.checkpoint_text import checkpoints_text
from sae_attr.report.figures import Drawing
from sae_attr.report.figures.pool import pool_figure
from sae_attr.report.number_control_text import controls_text
from sae_attr.report.pool_text import pool_text
from sae_attr.store import Result, Store

from . import _common
from ._organism_study import StudyReport, cases_of_config, run_study, write_report
from ._stages import RunOptions, start_from_flags


def open_cases(config: ConfigDict, store: Store, workdir: epath.Path) -> list[PoolCase]:
    """Returns the cases that a config names; nothing is loaded yet."""
    return cases_of_config(
        config, PoolSettings, pool_cases, store=store, workdir=workdir
    )


def report(
    cases: Sequence[PoolCase], results: Mapping[str, Result]
) -> StudyReport | None:
    """Returns what the cases that are complete show; None where none is."""
    numbers = pool_numbers(cases, results)
    if not numbers["latents"]:
        return None
    checkpoints = [row for case in cases for row in checkpoint_rows(case, results)]
    controls = control_numbers(cases, results)
    parts = [pool_text(numbers), controls_text(controls), checkpoints_text(checkpoints)]
    text = "\n".join(part for part in parts if part)
    figures = {"pool_figure": Drawing(pool_figure, {"rows": numbers["latents"]})}
    shown = {**numbers, **controls, "checkpoints": checkpoints}
    return StudyReport(text, shown, figures)


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/pool.py makes it.
    """
    store = Store(workdir / "store")
    cases = open_cases(config, store, workdir)
    stages = pool_stages(cases)
    for case in cases:
        if case.evaluation.behaviour == EVEN_NUMBER:
            stages.append(controls_stage(case))
        stages += checkpoint_stages(case)
    run_study(
        config,
        workdir,
        store,
        stages,
        write=partial(write_report, "pool", config, workdir, partial(report, cases)),
        last=(".pool_monitoring",),
        wrote=f"wrote pool.txt, pool.json and a figure to {workdir}",
        **options,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
