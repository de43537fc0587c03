"""Stage `firing`: firing rates, mean latent activations and the mean error."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.attribution.latent_statistics import CodeStatistics, code_statistics
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.stages import norm_limits
from sae_attr.study.stages.context import Context, Inputs

NAME = "firing"
VERSION = 1  # raised when the stage gives other numbers than before
LEAST = 1000  # positions; a rate over fewer says nothing about a rare latent


def stage(c: Context) -> Stage:
    """Makes the stage: arrays `rate_n`, `mean_n`, `error_m`.

    They are NaN, and `meta["tokens"]` 0, where fewer than 1,000 positions fit within
    the dense limit.
    """
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        if setup.firing_positions < LEAST:
            n, m = setup.sae_cfg.n_latents, setup.sae_cfg.d_out
            return _unknown(n, m), {"tokens": 0}
        statistics = code_statistics(
            setup.params,
            setup.corpus.batches(setup.firing_positions),
            setup.sae,
            cfg=setup.cfg,
            site=setup.site,
            read=setup.read_site,
            mesh=setup.mesh,
            limits=norm_limits.limits_of(inputs[norm_limits.NAME]),
            progress=setup.progress,
        )
        arrays = {name: getattr(statistics, name) for name in _ARRAYS}
        return arrays, {"tokens": statistics.tokens}

    fields = {**c.text_fields(), "masks": c.mask_fields(), **_positions(c)}
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(norm_limits.NAME,),
        files=("lm", "corpus", "sae"),
    )


_ARRAYS = ("rate_n", "mean_n", "error_m")


def _positions(c: Context) -> dict[str, int]:
    s = c.setup.settings
    if not c.file_stages:
        return {"positions": c.setup.firing_positions}
    return {
        "dense_limit": s.dense_limit,
        "firing_tokens": s.firing_tokens,
        "corpus_tokens": s.corpus_tokens,
    }


def _unknown(n: int, m: int) -> dict[str, np.ndarray]:
    sizes = {"rate_n": n, "mean_n": n, "error_m": m}
    return {name: np.full(size, np.nan, np.float32) for name, size in sizes.items()}


def statistics_of(result: Result) -> CodeStatistics:
    """Reads the statistics from the stage's result."""
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in result.arrays.items()}
    return CodeStatistics(**arrays, tokens=result.meta["tokens"])
