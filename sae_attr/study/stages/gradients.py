"""Stage `gradients`: activation and gradient of every token of every completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sae_attr.attribution.integrated import Path
from sae_attr.attribution.token_table import (
    TokenTable,
    gradient_batches,
    table_from_batches,
)
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.finished_parts import agreed, shard_name
from sae_attr.study.setup import Setup
from sae_attr.study.stages import mean_activation, outliers
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.text.rows import TokenRow

NAME = "gradients"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: arrays `acts_kd`, `grads_kd`, `nll_r` and, for a transcoder,
    `inputs_kd`. A killed run goes on at its next batch.
    """
    setup, s = c.setup, c.setup.settings
    integrated = s.gradient == "integrated"

    def run(inputs: Inputs, progress: Progress) -> Computed:
        rows = setup.encoded.rows
        path = _line(setup, inputs) if integrated else None
        return _gradients(setup, rows, path, progress)

    fields = {**c.site_fields(), "loss": s.loss, "gradient": sorted(s.rules)}
    needs: tuple[str, ...] = ()
    if integrated:
        needs = (mean_activation.NAME, outliers.NAME)
        scope = s.presets()[0].tokens
        fields["gradient"] = {"steps": s.gradient_steps, "scope": scope}
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=needs,
        files=("lm",),
        pairs=True,
    )


def _line(setup: Setup, inputs: Inputs) -> Path:
    """Returns the line that integrated gradients are averaged along."""
    rows = outliers.masked_rows(setup, inputs[outliers.NAME])
    mean = mean_activation.mean_of(inputs[mean_activation.NAME])
    scope = setup.settings.presets()[0].tokens
    return Path(mean.mean_d, setup.where(rows, scope), setup.settings.gradient_steps)


def _gradients(
    setup: Setup, rows: Sequence[TokenRow], path: Path | None, progress: Progress
) -> Computed:
    s = setup.settings
    work = setup.batched(rows)
    names = [shard_name(batch.tokens_bt.shape, i) for i, (batch, _) in enumerate(work)]
    done = agreed(progress.done(), names)
    left = {
        name: item for name, item in zip(names, work, strict=True) if name not in done
    }
    fresh: dict[str, Any] = {}
    if left:
        results = gradient_batches(
            setup.params,
            left.values(),
            cfg=setup.cfg,
            site=setup.site,
            mesh=setup.mesh,
            loss=s.loss,
            remat=s.remat,
            rules=s.rules,
            path=path,
            read=setup.read_site,
        )
        bar = tqdm(
            zip(left, results, strict=True),
            total=len(work),
            initial=len(done),
            desc="gradients",
            unit="batch",
            disable=not setup.progress,
        )
        for name, arrays in bar:
            progress.add(name, arrays)
            if not setup.store.writer:
                fresh[name] = arrays  # only the writer has files to read back
    batches = (fresh.get(name) or progress.get(name)[0] for name in names)
    table = table_from_batches(rows, batches)
    arrays = {
        "acts_kd": table.acts_kd,
        "grads_kd": table.grads_kd,
        "nll_r": table.nll_r,
    }
    if table.inputs_kd is not None:
        arrays["inputs_kd"] = table.inputs_kd
    return arrays, {"batches": len(work)}


def table_of(rows: Sequence[TokenRow], result: Result) -> TokenTable:
    """Makes the token table of rows from the stage's result."""
    arrays = result.arrays
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    return TokenTable(
        rows,
        arrays["acts_kd"],
        arrays["grads_kd"],
        start_r,
        np.asarray(arrays["nll_r"]),
        arrays.get("inputs_kd"),
    )
