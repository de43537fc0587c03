"""Tests whether an SAE fits its model where it is said to fit; see configs/check_sae.py
for the command.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.tables import json_text
from sae_attr.sae_check import Bands, judge, record, table
from sae_attr.store import Store, write_atomic
from sae_attr.study.attribution_stages import fitness_stage
from sae_attr.study.setup import Setup

from . import _common
from ._config import settings_of
from ._flags import CONFIG, WORKDIR


def check(config: ConfigDict, workdir: epath.Path, *, keep: bool) -> dict[str, Any]:
    """Measures, judges and prints; what result.json holds.

    Args:
      config: as configs/check_sae.py makes it.
      workdir: for the store and, where `keep` is set, result.json.
    """
    _common.fix_day(config, workdir)
    settings = _common.settings_of(config, needs=("lm", "sae", "corpus"))
    if not settings.fitness_tokens:
        raise ValueError(
            "fitness_tokens is 0, so there is nothing to test on; take a few thousand"
        )
    store = Store(workdir / "store", writer=parallel.is_main())
    study = Setup(
        settings, store, parallel.make_mesh(str(config.mesh)), parallel.is_main()
    )
    measured, promise, _, result = fitness_stage(study)
    bands = settings_of(Bands, config.bands, where="config.bands")
    verdict = judge(measured, promise, counts_special=not study.exclude, bands=bands)
    found = {
        **record(measured, promise, verdict),
        "bands": vars(bands),
        "inputs": {
            "lm": study.lm_key,
            "sae": study.sae_key,
            "sae_source": study.sae_files.source,
            "stage": result.key,
        },
        "settings": vars(settings),
        "versions": _common.versions(),
    }
    if parallel.is_main():
        if keep:
            write_atomic(workdir / "result.json", json_text(found))
        print(table(measured, promise, verdict))
    return found


def main(argv: list[str]) -> None:
    """`check` with what the flags say; exit status 1 where the SAE is out of a band."""
    _common.begin(argv)
    if WORKDIR.value:
        found = check(CONFIG.value, epath.Path(WORKDIR.value), keep=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = check(CONFIG.value, epath.Path(folder), keep=False)
    sys.exit(0 if found["passes"] else 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    _common.run_app(main)
