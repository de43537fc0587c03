"""Samples completions with latents steered, beside those without; see configs/steer.py
for the command.
"""

from __future__ import annotations

import json

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.draw import Sampling
from sae_attr.lm.end_tokens import ending_ids
from sae_attr.report.tables import json_text
from sae_attr.store import Store, write_atomic
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.dry_run.steer_report import steer_dry_run
from sae_attr.study.setup import Setup
from sae_attr.study.steering_job import (
    SteeringJob,
    completions,
    open_job,
    setup_of_vectors,
    unit_of,
)
from sae_attr.study.steering_results import shown_completions, summary
from sae_attr.study.steering_settings import SteerSettings

from . import _common
from ._config import part_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR

PLAIN = ("mesh", "batch_size")  # where and how fast, not what
# `tokens` and `batch_size` mean something else in an attribution's settings.
UNSTUDIED = {"tokens": None, "batch_size": 8}


def check_inputs(config: ConfigDict) -> None:
    """Raises ValueError for inputs that the config lacks."""
    absent = [name for name in ("lm", "prompts") if not config[name]]
    if config.sae and config.vectors:
        raise ValueError("give only one of --config.sae and --config.vectors")
    if not (config.sae or config.vectors):
        absent.append("sae or vectors")
    if absent:
        raise ValueError(
            f"the config must have {', '.join(absent)} (of sae and vectors exactly "
            "one); add --config.NAME=PATH"
        )


def job_of(config: ConfigDict, store: Store) -> SteeringJob:
    """Opens the sweep that a config states."""
    settings = part_of(SteerSettings, config)
    check_inputs(config)
    files = part_of(
        Settings,
        config,
        sae=config.sae or "",
        pairs="",
        corpus=config.corpus or "",
        **UNSTUDIED,
    )
    mesh = parallel.make_mesh(str(config.mesh))
    setup = Setup(files, store, mesh, parallel.is_main())
    if config.vectors:
        setup = setup_of_vectors(setup)
    stop_ids = ending_ids(setup.ends, config.sampling.stop_ids, vocab=setup.cfg.vocab)
    sampling = part_of(Sampling, config.sampling, stop_ids=stop_ids)
    return open_job(settings, setup, sampling)


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> None:
    """Checks every input, then samples all completions under the workdir's lock, prints
    and writes them.

    Args:
      config: as configs/steer.py makes it.
      workdir: for results and for what a killed run continues from.
      allow_change: use a workdir that was made with another config.
    """
    _common.fix_day(config, workdir)
    job = job_of(config, Store(workdir / "store", writer=parallel.is_main()))
    sampled_here = job.settings.sweeps_by == "here"
    if sampled_here and parallel.from_main(not (workdir / "config.json").exists()):
        # What is wrong with the weights is said before anything is written.
        _ = job.setup.params
    logging.info(
        "%d completions of %d prompts at %s",
        len(job.plan.rows),
        len(job.prompts),
        job.setup.site,
    )
    with _common.own_workdir_of(
        config, workdir, ignore=PLAIN, allow_change=allow_change
    ):
        unit = unit_of(job)
        result = completions(job, unit["value"])
        if not parallel.is_main():
            return
        records = result.meta["rows"]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_atomic(workdir / "completions.jsonl", "".join(lines))
        stops_given = config.sampling.stop_ids is not None
        facts = summary(job, unit, result) | {
            "config": config.to_dict(),
            "ends": "given" if stops_given else job.setup.ends,
            "versions": _common.versions(),
        }
        write_atomic(workdir / "result.json", json_text(facts))
        print(shown_completions(job, records))
        print(f"\nwrote to {workdir}: completions.jsonl, result.json")


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a sweep needs, without weights; nothing is written."""
    _common.fix_day(config, workdir)
    return steer_dry_run(job_of(config, Store(workdir / "store")), rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with the command line's flags."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(CONFIG.value, workdir, allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
