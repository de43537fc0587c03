"""Stage `mean_activation`: ā and the mean norm of ordinary text."""

from __future__ import annotations

import numpy as np

from sae_attr.activations import MeanActivation, mean_activation
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.stages import norm_limits
from sae_attr.study.stages.context import Context, Inputs

NAME = "mean_activation"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: array `mean_d`; norm, tokens and outliers in `meta`."""
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        mean = mean_activation(
            setup.params,
            setup.corpus.batches(),
            cfg=setup.cfg,
            site=setup.site,
            mesh=setup.mesh,
            limits=norm_limits.limits_of(inputs[norm_limits.NAME]),
            progress=setup.progress,
        )
        counts = {"tokens": mean.tokens, "outliers": mean.outliers}
        return {"mean_d": mean.mean_d}, {"norm": mean.norm, **counts}

    fields = {**c.text_fields(), "masks": c.mask_fields()}
    fields["tokens"] = setup.settings.corpus_tokens
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(norm_limits.NAME,),
        files=("lm", "corpus"),
    )


def mean_of(result: Result) -> MeanActivation:
    """Reads the mean activation from the stage's result."""
    meta = result.meta
    return MeanActivation(
        np.asarray(result.arrays["mean_d"]),
        norm=meta["norm"],
        tokens=meta["tokens"],
        outliers=meta["outliers"],
    )
