"""Tests whether an SAE fits its model where it is said to fit; see configs/check_sae.py
for the command.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.tables import json_text
from sae_attr.sae_check import CheckBands, check_record, check_table, judge_sae
from sae_attr.store import Store, write_atomic
from sae_attr.study.attribution_stages import run_setup
from sae_attr.study.dry_run.setup_report import check_dry_run
from sae_attr.study.setup import Setup
from sae_attr.study.stages import sae_check
from sae_attr.study.stages.context import Context

from . import _common
from ._config import settings_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR


def opened(config: ConfigDict, workdir: epath.Path) -> Setup:
    """Opens the SAE and its model; nothing is loaded yet.

    Raises:
      ValueError: an input that is missing, or no text to check on.
    """
    _common.fix_day(config, workdir)
    settings = _common.settings_of(config, needs=("lm", "sae", "corpus"))
    if not settings.sae_check_tokens:
        raise ValueError(
            "sae_check_tokens is 0, so there is nothing to check on; take a few "
            "thousand"
        )
    store = Store(workdir / "store", writer=parallel.is_main())
    mesh = parallel.make_mesh(str(config.mesh))
    # An SAE that does not fit is this experiment's result, no reason to stop.
    return Setup(replace(settings, trust_sae=True), store, mesh, parallel.is_main())


def check(config: ConfigDict, workdir: epath.Path, *, keep: bool) -> dict[str, Any]:
    """Measures, judges and prints; returns what result.json holds.

    Args:
      config: as configs/check_sae.py makes it.
      workdir: for the store and, where `keep` is set, result.json.
    """
    setup = opened(config, workdir)
    settings = setup.settings
    stage = run_setup(setup, [sae_check.stage(Context(setup))])[sae_check.NAME]
    if "skipped" in stage.meta:
        raise ValueError(stage.meta["skipped"])
    stored = sae_check.check_of(setup, stage)
    bands = settings_of(CheckBands, config.bands, where="config.bands")
    judged = judge_sae(
        stored.measurement,
        stored.stated_metrics,
        counts_special=not setup.exclude,
        bands=bands,
    )
    result = {
        **check_record(judged),
        "bands": vars(bands),
        "inputs": {
            "lm": setup.lm_key,
            "sae": setup.sae_key,
            "sae_source": setup.sae_files.source,
            "stage": stage.key,
        },
        "settings": vars(settings),
        "versions": _common.versions(),
    }
    if parallel.is_main():
        if keep:
            write_atomic(workdir / "result.json", json_text(result))
        print(check_table(judged))
    return result


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a check needs, without weights; nothing is written."""
    return check_dry_run(opened(config, workdir), rates_of)


def main(argv: list[str]) -> None:
    """Runs `check` on the flags; exit status 1 where the SAE is out of a band."""
    _common.begin(argv)
    if DRY_RUN.value:
        with tempfile.TemporaryDirectory() as folder:
            workdir = epath.Path(WORKDIR.value or folder)
            run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    if WORKDIR.value:
        result = check(CONFIG.value, epath.Path(WORKDIR.value), keep=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = check(CONFIG.value, epath.Path(folder), keep=False)
    sys.exit(0 if result["passes"] else 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    _common.run_app(main)
