"""Ranks every latent of an SAE by what it did to a completion; see configs/attribute.py
for the command.
"""

from __future__ import annotations

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.figures import ablation_figure, render
from sae_attr.report.ranking_text import (
    latent_table,
    legend,
    origin_table,
    ranked_text,
    summary_text,
)
from sae_attr.report.tables import csv_text, json_text
from sae_attr.store import Store, own_workdir, write_atomic
from sae_attr.study.columns import written
from sae_attr.study.outcome import Outcome, compute
from sae_attr.study.setup import Setup
from sae_attr.text.rows import shown_tokens

from . import _common
from ._flags import ALLOW_CHANGE, CONFIG, SHOW_TOKENS, WORKDIR

PLAIN = (
    "mesh",
    "batch_size",
    "corpus_batch",
    "remat",
    "trust_sae",
)  # where and how fast, not what


def write(outcome: Outcome, workdir: epath.Path) -> list[str]:
    """Writes every file of a run; returns their names."""
    primary = outcome.summary["primary"]
    files: dict[str, bytes | str] = {
        "latents.csv" if name == primary else f"latents_{name}.csv": csv_text(
            written(columns)
        )
        for name, columns in outcome.columns.items()
    }
    if outcome.ablation is not None:
        rendered = render(ablation_figure(outcome.ablation), outcome.ablation)
        files |= {
            f"figures/attribution_vs_ablation.{suffix}": data
            for suffix, data in rendered.items()
        }
    files["scores.npz"] = _common.npz_bytes(outcome.scores)
    files["result.json"] = json_text(
        {**outcome.summary, "versions": _common.versions()}
    )
    for name, content in files.items():
        write_atomic(workdir / name, content)
    return sorted(files)


def show(outcome: Outcome) -> None:
    """Prints the tables and what a reader must know about them."""
    summary = outcome.summary
    for name, columns in outcome.columns.items():
        preset = summary["presets"][name]
        caption = f"{name}: tokens={preset['tokens']}, sides={preset['sides']}, {ranked_text(preset['ranked'])}"
        print(f"\n{caption}\n{latent_table(columns)}")
        print(f"\nwhere Δ comes from\n{origin_table(columns)}")
    print(
        f"\n{legend(summary['exact_ablation'].get('scope'))}\n\n{summary_text(summary)}"
    )
    for text in summary["warnings"]:
        print(f"warning: {text}")


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    shown: int = 0,
    allow_change: bool = False,
) -> None:
    """Checks every input, then runs all stages under the workdir's lock, and prints
    what a reader must know.

    Args:
      config: as configs/attribute.py makes it.
      workdir: for results and for what a killed run continues from.
      shown: print what is scored of this many rows, and stop.
      allow_change: use a workdir that was made with another config.
    """
    _common.fix_day(config, workdir)
    settings, mesh = _common.settings_of(config), parallel.make_mesh(str(config.mesh))
    setup = Setup(
        settings,
        Store(workdir / "store", writer=parallel.is_main()),
        mesh,
        parallel.is_main(),
    )
    first = parallel.from_main(
        not (workdir / "config.json").exists()
    )  # a later run may need no weights at all
    setup.check(weights=first and not shown)
    rows = setup.encoded.rows
    logging.info(
        "%d prompts, %d completions, %d latents at %s",
        len(setup.pairs),
        len(rows),
        len(setup.decoder),
        setup.site,
    )
    if shown:
        print(
            "\n\n".join(
                shown_tokens(row, setup.tokenizer, exclude=setup.exclude)
                for row in rows[:shown]
            )
        )
        return
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=PLAIN,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        outcome = compute(setup)
        if parallel.is_main():
            names = write(outcome, workdir)  # before a word is printed, which may fail
            show(outcome)
            print(f"\nwrote to {workdir}: {', '.join(names)}")
            print(
                f"the best latents with every statistic: {workdir / 'latents.csv'}; "
                f"every score: {workdir / 'scores.npz'}"
            )


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    start(
        CONFIG.value, workdir, shown=SHOW_TOKENS.value, allow_change=ALLOW_CHANGE.value
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
