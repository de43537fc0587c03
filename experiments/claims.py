"""Measures the post's claims on organisms where the truth is exact; see
configs/claims.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.claim_results import claim_numbers
from sae_attr.analyses.claim_rows import headline_count
from sae_attr.analyses.claim_settings import ClaimCase, ClaimSettings, claim_cases
from sae_attr.analyses.claim_stages import claim_stages
from sae_attr.report.claim_text import claims_text
from sae_attr.report.figures import Drawing
from sae_attr.report.figures import claims as figures
from sae_attr.store import Result, Store

from . import _common
from ._organism_study import StudyReport, cases_of_config, run_study, write_report
from ._stages import RunOptions, start_from_flags

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


def report(
    cases: Sequence[ClaimCase], results: Mapping[str, Result]
) -> StudyReport | None:
    """Returns what the cases that are complete show; None where none is."""
    numbers = claim_numbers(cases, results)
    if not numbers["designs"]:
        return None
    settings = cases[0].settings
    count = headline_count(settings.counts)
    text = claims_text(numbers, pairs=count, top=settings.top)
    drawings = {}
    for name, (draw, rows) in FIGURES.items():
        if numbers[rows]:
            drawings[f"claim_{name}"] = Drawing(draw, {"rows": numbers[rows]})
    return StudyReport(text, numbers, drawings)


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/claims.py makes it.
    """
    store = Store(workdir / "store")
    cases = open_cases(config, store, workdir)
    run_study(
        config,
        workdir,
        store,
        claim_stages(cases),
        write=partial(write_report, "claims", config, workdir, partial(report, cases)),
        last=(".draws", ".dilution"),
        wrote=f"wrote claims.txt, claims.json and figures to {workdir}",
        **options,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
