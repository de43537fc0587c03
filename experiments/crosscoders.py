"""Trains crosscoders and an SAE of the difference on a fine-tune and the model before it,
and says which latents are the fine-tune's own; see configs/crosscoders.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

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
from sae_attr.report.figures import Drawing, render
from sae_attr.report.figures.crosscoders import crosscoder_figure
from sae_attr.report.tables import json_text
from sae_attr.store import Result, Store, write_atomic
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._organism_study import cases_of_config, left_out_text, run_study
from ._stages import ALL, start_from_flags


def write(
    workdir: epath.Path,
    config: ConfigDict,
    cases: Sequence[CrosscoderCase],
    results: Mapping[str, Result],
    left_out: Sequence[str] = (),
) -> str:
    """Writes crosscoders.txt, crosscoders.json and the figure of the cases that are
    complete; returns the text, "" where none is.
    """
    numbers = crosscoder_numbers(cases, results)
    if not numbers["dictionaries"]:
        return ""
    text = crosscoder_text(numbers) + left_out_text(left_out)
    content = {
        **numbers,
        "left_out": list(left_out),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "crosscoders.txt", text)
    write_atomic(workdir / "crosscoders.json", json_text(content))
    s = cases[0].settings.specificity
    drawn = {"rows": numbers["latents"], "ft_only": s.ft_only, "error": s.error}
    drawn["reconstruction"] = s.reconstruction
    for suffix, data in render(Drawing(crosscoder_figure, drawn)).items():
        write_atomic(workdir / f"crosscoders_figure.{suffix}", data)
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
      config: as configs/crosscoders.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
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
        write=partial(write, workdir, config, cases),
        last=(f".{STEERING}",),
        wrote=f"wrote crosscoders.txt, crosscoders.json and a figure to {workdir}",
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
