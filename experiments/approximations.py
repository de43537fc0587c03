"""Compares approximations of Δ with exact ablation; see configs/approximations.py for
the command.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.tables import json_text, text_table
from sae_attr.store import Store, write_atomic
from sae_attr.study.approximations import Compare, compare_approximations
from sae_attr.study.dry_run.setup_report import attribution_dry_run
from sae_attr.study.setup import Setup

from . import _common
from ._config import settings_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import CONFIG, DRY_RUN, TOKENS_PER_SECOND

OUT = flags.DEFINE_string(
    "out", None, "JSON file for the numbers; stages are stored beside it."
)


def table_text(results: Mapping[str, Mapping[str, float]], top: int) -> str:
    """Returns the comparison as a table, a line per method."""
    titles = {
        "pearson": "Pearson",
        "spearman": "Spearman",
        "top_overlap": f"top {top}",
        "slope": "slope",
        "pearson_rows": "rows",
        "seconds": "seconds",
    }
    columns: dict[str, Any] = {"method": list(results)}
    for key, title in titles.items():
        columns[title] = [numbers.get(key) for numbers in results.values()]
    return text_table(columns, dict.fromkeys(titles.values(), ".3f"))


def opened(config: ConfigDict, out: epath.Path) -> Setup:
    """Opens the attribution whose approximations are compared; nothing is loaded yet."""
    store = Store(out.parent / f"{out.stem}_store", writer=True)
    mesh = parallel.make_mesh(str(config.mesh))
    return Setup(_common.settings_of(config), store, mesh, progress=False)


def dry_run(config: ConfigDict, out: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what the attribution needs, without weights; nothing is written. What
    each approximation costs beside it is not estimated.
    """
    return attribution_dry_run(opened(config, out), rates_of)


def main(argv: Sequence[str]) -> None:
    """Runs the comparison, prints its tables and writes the numbers."""
    _common.begin(argv, cluster=False)
    config, out = CONFIG.value, epath.Path(str(OUT.value))
    if DRY_RUN.value:
        run_dry(dry_run, config, out, TOKENS_PER_SECOND.value)
    began = time.perf_counter()
    setup = opened(config, out)
    setup.check(weights=True)
    compare = settings_of(Compare, config.compare, where="config.compare")
    result = compare_approximations(setup, compare)
    result["versions"] = _common.versions()
    result["wall_seconds"] = time.perf_counter() - began
    write_atomic(out, json_text(result))
    print(
        f"{len(result['latents'])} latents, {result['rows']} completions, against "
        "exact joint mean ablation"
    )
    print(table_text(result["against_exact"], compare.top))
    found = {
        "encoder-true, against exact code": result["encoder_true_against_exact_code"],
        **result["dtypes"],
    }
    print(
        "\nencoder-true against what the code adds; Δ of all latents in other "
        f"precisions (top 100)\n{table_text(found, 20)}"
    )
    print(f"\n{result['wall_seconds']:.0f} s; wrote {out}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    _common.run_app(main)
