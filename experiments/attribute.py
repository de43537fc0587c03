"""Ranks every latent of an SAE by what it did to a completion; see configs/attribute.py
for the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.figures import Drawing, ablation_figure, render
from sae_attr.report.tables import csv_text, json_text
from sae_attr.store import (
    Result,
    Store,
    stage_statuses,
    stored_results,
    write_atomic,
)
from sae_attr.study.attribution_stages import attribution_stages
from sae_attr.study.columns import written
from sae_attr.study.dry_run.setup_report import attribution_dry_run
from sae_attr.study.ranking_report import RankingReport, report_of, report_text
from sae_attr.study.setup import Setup
from sae_attr.study.stages import attribute
from sae_attr.text.rows import shown_tokens

from . import _common
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import (
    ALLOW_CHANGE,
    CONFIG,
    DRY_RUN,
    SHOW_TOKENS,
    TOKENS_PER_SECOND,
    WORKDIR,
)
from ._stages import LIST, StageChoice, choice_of_flags, run_chosen, states_text

# Where and how fast a run is, not what it computes.
PLAIN = ("mesh", "batch_size", "corpus_batch", "remat", "trust_sae")


def write(
    report: RankingReport, workdir: epath.Path, run: Mapping[str, Any]
) -> list[str]:
    """Writes every file of a run; returns their names.

    Args:
      run: what result.json holds beside the report: keys, timings, versions.
    """
    primary = report.summary["primary"]
    files: dict[str, bytes | str] = {}
    for name, columns in report.columns.items():
        file = "latents.csv" if name == primary else f"latents_{name}.csv"
        files[file] = csv_text(written(columns))
    if report.ablation is not None:
        figure = render(Drawing(ablation_figure, report.ablation))
        for suffix, data in figure.items():
            files[f"figures/attribution_vs_ablation.{suffix}"] = data
    files["scores.npz"] = _common.npz_bytes(report.scores)
    files["result.json"] = json_text({**report.summary, **run})
    for name, content in files.items():
        write_atomic(workdir / name, content)
    return sorted(files)


def about_run(
    setup: Setup, report: RankingReport, results: Mapping[str, Result]
) -> dict[str, Any]:
    """Returns what result.json says of this very run: settings as they were set, keys
    and timings of the stages, versions.
    """
    keys = {name: result.key for name, result in results.items()}
    timings = {
        name: {"seconds": round(result.seconds, 3), "loaded": result.cached}
        for name, result in results.items()
    }
    choices = {**report.summary["choices"], "settings": vars(setup.settings)}
    return {
        "choices": choices,
        "inputs": {**report.summary["inputs"], "stages": keys},
        "timings": timings,
        "versions": _common.versions(),
    }


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    selection: StageChoice | None = None,
    listed: bool = False,
    shown: int = 0,
    allow_change: bool = False,
) -> None:
    """Checks every input, then runs all stages under the workdir's lock, and prints
    what a reader must know.

    Args:
      config: as configs/attribute.py makes it.
      workdir: for results and for what a killed run continues from.
      selection: of stages; None: all.
      listed: print the state of every stage, and stop.
      shown: print what is scored of this many rows, and stop.
      allow_change: use a workdir that was made with another config.
    """
    _common.fix_day(config, workdir)
    main = parallel.is_main()
    store = Store(workdir / "store", writer=main)
    mesh = parallel.make_mesh(str(config.mesh))
    setup = Setup(_common.settings_of(config), store, mesh, main)
    # A later run may need no weights at all.
    first = parallel.from_main(not (workdir / "config.json").exists())
    setup.check(weights=first and not shown and not listed)
    rows = setup.encoded.rows
    logging.info(
        "%d prompts, %d completions, %d latents at %s",
        len(setup.pairs),
        len(rows),
        len(setup.decoder),
        setup.site,
    )
    if shown:
        texts = [
            shown_tokens(row, setup.tokenizer, exclude=setup.exclude)
            for row in rows[:shown]
        ]
        print("\n\n".join(texts))
        return
    stages = attribution_stages(setup)
    if listed:
        print(states_text(store, stages))
        return
    with _common.own_workdir_of(
        config, workdir, ignore=PLAIN, allow_change=allow_change
    ):
        results = run_chosen(store, stages, selection or StageChoice())
        if main:
            _finish(setup, workdir, results | _stored(store, stages, results))


def _stored(store: Store, stages: Any, results: Mapping[str, Result]) -> Any:
    """Returns the stages that are done, but were not selected."""
    return stored_results(store, stages, lambda name: name not in results)


def _finish(setup: Setup, workdir: epath.Path, results: Mapping[str, Result]) -> None:
    """Writes and prints the report, or says which stage is still to be run."""
    if attribute.NAME not in results:
        stages = attribution_stages(setup)
        left = [
            s.name for s in stage_statuses(setup.store, stages) if s.state != "done"
        ]
        print(f"\nstill to be run: {', '.join(left)}")
        return
    report = report_of(results[attribute.NAME])
    # Files come before a word is printed, which may fail.
    names = write(report, workdir, about_run(setup, report, results))
    print(report_text(report))
    print(f"\nwrote to {workdir}: {', '.join(names)}")
    print(
        f"the best latents with every statistic: {workdir / 'latents.csv'}; "
        f"every score: {workdir / 'scores.npz'}"
    )


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what an attribution needs, without its weights; nothing is written."""
    _common.fix_day(config, workdir)
    mesh = parallel.make_mesh(str(config.mesh))
    setup = Setup(_common.settings_of(config), Store(workdir / "store"), mesh)
    return attribution_dry_run(setup, rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with what the flags say."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(
        CONFIG.value,
        workdir,
        selection=choice_of_flags(),
        listed=LIST.value,
        shown=SHOW_TOKENS.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
