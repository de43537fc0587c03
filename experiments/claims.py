"""Measures the post's claims on organisms where the truth is exact; see
configs/claims.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.claim_results import claim_numbers
from sae_attr.analyses.claim_rows import headline_count
from sae_attr.analyses.claim_settings import ClaimCase, ClaimSettings, claim_cases
from sae_attr.analyses.claim_stages import claim_stages
from sae_attr.report.claim_text import claims_text
from sae_attr.report.figures import Drawing, render
from sae_attr.report.figures import claims as figures
from sae_attr.report.tables import json_text
from sae_attr.store import Result, Store, write_atomic
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._organism_study import cases_of_config, left_out_text, run_study
from ._stages import ALL, start_from_flags

# File -> function that draws it, and the rows that it draws.
FIGURES = {
    "pairs": (figures.designs_figure, "designs"),
    "counts": (figures.counts_figure, "counts"),
    "sources": (figures.sources_figure, "sources"),
    "harmless": (figures.harmless_figure, "harmless"),
}


def open_cases(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[ClaimCase]:
    """Returns the cases that a config names; nothing is loaded yet."""
    return cases_of_config(
        config, ClaimSettings, claim_cases, store=store, workdir=workdir
    )


def write(
    workdir: epath.Path,
    config: ConfigDict,
    cases: Sequence[ClaimCase],
    results: Mapping[str, Result],
    left_out: Sequence[str] = (),
) -> str:
    """Writes claims.txt, claims.json and the figures of the cases that are complete;
    returns the text, "" where none is.
    """
    numbers = claim_numbers(cases, results)
    if not numbers["designs"]:
        return ""
    settings = cases[0].settings
    count = headline_count(settings.counts)
    text = claims_text(numbers, pairs=count, top=settings.top)
    text += left_out_text(left_out)
    content = {
        **numbers,
        "left_out": list(left_out),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "claims.txt", text)
    write_atomic(workdir / "claims.json", json_text(content))
    for name, (draw, rows) in FIGURES.items():
        if numbers[rows]:
            rendered = render(Drawing(draw, {"rows": numbers[rows]}))
            for suffix, data in rendered.items():
                write_atomic(workdir / f"claim_{name}.{suffix}", data)
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
      config: as configs/claims.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    store = Store(workdir / "store")
    cases = open_cases(config, store, workdir)
    run_study(
        config,
        workdir,
        store,
        claim_stages(cases),
        write=partial(write, workdir, config, cases),
        last=(".draws", ".dilution"),
        wrote=f"wrote claims.txt, claims.json and figures to {workdir}",
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
