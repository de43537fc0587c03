"""Trains crosscoders and an SAE of the difference on a fine-tune and the model before it,
and says which latents are the fine-tune's own; see configs/crosscoders.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.crosscoder_results import crosscoder_numbers
from sae_attr.analyses.crosscoder_settings import (
    CrosscoderCase,
    CrosscoderSettings,
    crosscoder_cases,
)
from sae_attr.analyses.crosscoder_stages import STEERING, crosscoder_stages
from sae_attr.report.crosscoder_text import crosscoder_text
from sae_attr.report.figures import Drawing
from sae_attr.report.figures.crosscoders import crosscoder_figure
from sae_attr.store import Result, Store

from . import _common
from ._organism_study import StudyReport, cases_of_config, run_study, write_report
from ._stages import RunOptions, start_from_flags


def report(
    cases: Sequence[CrosscoderCase], results: Mapping[str, Result]
) -> StudyReport | None:
    """Returns what the organisms that are complete show; None where none is."""
    numbers = crosscoder_numbers(cases, results)
    if not numbers["dictionaries"]:
        return None
    specificity = cases[0].settings.specificity
    drawn = {
        "rows": numbers["latents"],
        "ft_only": specificity.ft_only,
        "error": specificity.error,
        "reconstruction": specificity.reconstruction,
    }
    figures = {"crosscoders_figure": Drawing(crosscoder_figure, drawn)}
    return StudyReport(crosscoder_text(numbers), numbers, figures)


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/crosscoders.py makes it.
    """
    store = Store(workdir / "store")
    cases = cases_of_config(
        config, CrosscoderSettings, crosscoder_cases, store=store, workdir=workdir
    )
    run_study(
        config,
        workdir,
        store,
        crosscoder_stages(cases),
        write=partial(
            write_report, "crosscoders", config, workdir, partial(report, cases)
        ),
        last=(f".{STEERING}",),
        wrote=f"wrote crosscoders.txt, crosscoders.json and a figure to {workdir}",
        **options,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
