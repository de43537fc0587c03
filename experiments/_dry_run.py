"""`--dry_run` on the command line: how fast to count with, and how the run ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.study.dry_run.rates import (
    Batch,
    Rates,
    RatesOf,
    measured_rates,
    stated_rates,
)
from sae_attr.study.dry_run.report import DryRun


def rates_of_flags(tokens_per_second: Sequence[str], mesh: str) -> RatesOf:
    """Returns how the rates of a model are found: as the flag --tokens_per_second states
    them, else by a short measurement on this device.

    Raises:
      ValueError: anything but two numbers above 0.
    """
    stated = [_number(text) for text in tokens_per_second]
    if stated and (len(stated) != 2 or min(stated) <= 0):
        raise ValueError(
            f"--tokens_per_second={','.join(tokens_per_second)} is not understood; give "
            "two numbers above 0, tokens read and tokens sampled per second: "
            "--tokens_per_second=1781,107"
        )

    def rates(cfg: LMConfig, batch: Batch, dtype: str) -> Rates:
        if stated:
            read, sampled = stated
            return stated_rates(cfg, read=read, sampled=sampled, rows=batch.rows)
        return measured_rates(cfg, parallel.make_mesh(mesh), batch=batch, dtype=dtype)

    return rates


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def run_dry(
    dry_run: Callable[[ConfigDict, epath.Path, RatesOf], DryRun],
    config: ConfigDict,
    workdir: epath.Path,
    tokens_per_second: Sequence[str],
) -> NoReturn:
    """Runs an experiment's dry run, prints it and ends the program.

    Args:
      dry_run: finds out what the run of a config in a workdir needs.
      tokens_per_second: as for `rates_of_flags`.
    """
    rates = rates_of_flags(tokens_per_second, str(config.get("mesh") or ""))
    report = dry_run(config, workdir, rates)
    end(report)


def end(report: DryRun) -> NoReturn:
    """Prints a dry run and ends the program: exit status 0 where everything fits, 1 with
    the list of faults where not.
    """
    if parallel.is_main():
        print(report.text())
    sys.exit(1 if report.faults else 0)
