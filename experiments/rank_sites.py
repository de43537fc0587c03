"""Ranks the latents of several SAEs together; see configs/rank_sites.py for the
command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.hooks import Site
from sae_attr.report.tables import csv_text, json_text, text_table
from sae_attr.store import Store, write_atomic
from sae_attr.study.columns import written
from sae_attr.study.dry_run.setup_report import sites_dry_run
from sae_attr.study.setup import Setup
from sae_attr.study.site_ranking import rank_setups, ranking_columns, ranking_summary

from . import _common
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR

# Where and how fast a run is, not what it computes.
PLAIN = ("mesh", "batch_size", "corpus_batch", "remat", "trust_sae")


def parse_entry(text: str) -> tuple[str, dict[str, str]]:
    """Reads `SAE?site=layer2.mlp_out&site_in=layer2.mlp_in` as path and sites.

    Raises:
      ValueError: another key.
    """
    path, _, query = text.partition("?")
    sites = dict(parse_qsl(query, keep_blank_values=True))
    if (query and not sites) or set(sites) - {"site", "site_in"}:
        raise ValueError(
            f"{text!r} is not understood; write SAE, or "
            "SAE?site=layer2.mlp_out&site_in=layer2.mlp_in"
        )
    return path, sites


def setups_of(config: ConfigDict, store: Store, mesh: Any) -> dict[Site, Setup]:
    """Makes a setup per SAE, in the order of the config; they share model and rows.

    Raises:
      ValueError: no SAE, two of one site, or SAEs that were trained on different tokens
        where the config does not say which count.
    """
    texts = [text.strip() for text in str(config.saes).split(",")]
    entries = [parse_entry(text) for text in texts if text]
    if not entries:
        raise ValueError("the config names no SAE; add --config.saes=SAE1,SAE2")
    values = {**config.to_dict(), "sae": entries[0][0]}
    del values["saes"]
    settings = _common.settings_of(ConfigDict(values))
    first = Setup(settings, store, mesh, parallel.is_main())
    setups: dict[Site, Setup] = {}
    for path, sites in entries:
        setup = first.beside(path, **sites)
        if setup.site in setups:
            raise ValueError(
                f"{path} and {setups[setup.site].settings.sae} are both of "
                f"{setup.site}; give one a site"
            )
        _check_same_tokens(setup, first)
        setups[setup.site] = setup
    return setups


def _check_same_tokens(setup: Setup, first: Setup) -> None:
    """Raises ValueError if other tokens count for an SAE than for the first one."""
    for name, example in (("exclude", "\"('special',)\""), ("prepend_bos", "True")):
        here, there = (
            str(getattr(x, name) or "nothing").removeprefix("frozenset")
            for x in (setup, first)
        )
        if here != there:
            raise ValueError(
                f"{name} would be {here} for {setup.settings.sae} and {there} for "
                f"{first.settings.sae}, but one pass has one set of rows; "
                f"say which, for instance --config.{name}={example}"
            )


def table_text(columns: Mapping[str, np.ndarray], count: int = 20) -> str:
    """Returns the first places as a table."""
    titles = {
        "rank": "rank",
        "site": "site",
        "latent": "latent",
        "delta": "Δ",
        "se": "± se",
        "consistency": "signs",
        "tokens": "nearest tokens",
    }
    shown = {title: columns[name][:count] for name, title in titles.items()}
    formats = {"Δ": ".3g", "± se": ".2g", "signs": ".0%"}
    return text_table(shown, formats, right=("latent",))


def start(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Checks every input, runs under the workdir's lock, prints the table and writes
    latents.csv and result.json.
    """
    _common.fix_day(config, workdir)
    mesh = parallel.make_mesh(str(config.mesh))
    store = Store(workdir / "store", writer=parallel.is_main())
    setups = setups_of(config, store, mesh)
    for setup in setups.values():
        setup.check(weights=False)
    with _common.own_workdir_of(config, workdir, ignore=PLAIN):
        ranking, evidence = rank_setups(setups)
        columns = ranking_columns(ranking, evidence)
        result = ranking_summary(ranking, evidence)
        result["versions"] = _common.versions()
        if parallel.is_main():
            write_atomic(workdir / "latents.csv", csv_text(written(columns)))
            write_atomic(workdir / "result.json", json_text(result))
            print(table_text(columns))
            for site, count in result["latents_in_top"].items():
                print(f"{site}: {count} of the top {len(columns['rank'])}")
            print(f"\nwrote to {workdir}: latents.csv, result.json")
    return result


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a ranking needs, without weights; nothing is written."""
    _common.fix_day(config, workdir)
    mesh = parallel.make_mesh(str(config.mesh))
    setups = setups_of(config, Store(workdir / "store"), mesh)
    return sites_dry_run(setups, rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with what the flags say."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(CONFIG.value, workdir)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
