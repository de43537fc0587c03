"""Looks up the first latent of each finished case study in every other one; see
configs/compare_studies.py for the command.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.report.sentences import overlap_sentence
from sae_attr.report.tables import columns_from_rows, json_text, text_table
from sae_attr.store import write_atomic
from sae_attr.study.finished_study import open_finished
from sae_attr.study.study_comparison import (
    ComparisonSettings,
    compare_studies,
    first_rows,
)

from . import _common
from ._config import settings_of
from ._flags import CONFIG

OUT = flags.DEFINE_string("out", None, "JSON file for the comparison.")
FORMATS = {
    "rank there": ",",
    "of": ",",
    "chance": ".2%",
    **dict.fromkeys(("toward", "from", "toward there", "from there"), ".1f"),
}


def start(config: ConfigDict) -> dict[str, Any]:
    """Compares the studies and prints the table; returns what goes into the file."""
    _common.require(config, "studies")
    settings = settings_of(ComparisonSettings, config, leave_out=("studies",))
    studies = [open_finished(str(path), progress=False) for path in config.studies]
    records = compare_studies(studies, settings)
    print(text_table(columns_from_rows(first_rows(records)), FORMATS))
    sentences = [overlap_sentence(record) for record in records]
    print("\n" + "\n".join(sentences))
    return {
        "comparisons": [asdict(record) for record in records],
        "findings": sentences,
        "config": config.to_dict(),
        "versions": _common.versions(),
    }


def main(argv: list[str]) -> None:
    """Runs `start` and writes the file."""
    _common.begin(argv, cluster=False)
    out = epath.Path(str(OUT.value))
    write_atomic(out, json_text(start(CONFIG.value)))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    _common.run_app(main)
