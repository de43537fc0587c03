"""Stage `outliers`: the tokens of the pairs whose norm exceeds a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sae_attr.activations import rows_beyond
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.setup import Setup
from sae_attr.study.stages import norm_limits
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.text.rows import TokenRow

NAME = "outliers"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: bool `beyond_k` over the tokens of all rows, one after another."""
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        rows = setup.encoded.rows
        limits = norm_limits.limits_of(inputs[norm_limits.NAME])
        beyond_r = [np.zeros(len(row.ids), bool) for row in rows]
        if limits:
            beyond_rt = rows_beyond(
                setup.params,
                setup.batched(rows),
                limits,
                cfg=setup.cfg,
                mesh=setup.mesh,
            )
            beyond_r = [beyond_rt[r][: len(row.ids)] for r, row in enumerate(rows)]
        return {"beyond_k": np.concatenate(beyond_r)}, {}

    fields = {**c.site_fields(), "masks": c.mask_fields()}
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(norm_limits.NAME,),
        files=("lm",),
        pairs=True,
    )


def masked_rows(setup: Setup, result: Result) -> list[TokenRow]:
    """Returns the rows of all completions, the first k tokens and outliers masked."""
    rows = setup.encoded.rows
    ends = np.cumsum([len(row.ids) for row in rows])
    beyond_r = np.split(np.asarray(result.arrays["beyond_k"]), ends[:-1])
    out = []
    for row, beyond in zip(rows, beyond_r, strict=True):
        first = np.arange(len(row.ids)) < setup.masks.first_k
        out.append(replace(row, masked=first | beyond))
    return out
