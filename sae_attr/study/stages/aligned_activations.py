"""Stage `aligned_activations`: the second model's activations on the same tokens."""

from __future__ import annotations

import jax
import numpy as np

from sae_attr.activations import site_acts
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Computed, Progress, Stage
from sae_attr.study.setup import Setup
from sae_attr.study.stages.context import Context, Inputs

NAME = "aligned_activations"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: `acts_kd` at the site that the SAE reads; nothing, with the
    reason in `meta["skipped"]`, where there is no second model.
    """
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        if setup.no_second_model:
            return {}, {"skipped": setup.no_second_model}
        if setup.sae_cfg.no_token_codes:
            return {}, {"skipped": setup.sae_cfg.no_token_codes}
        return {"acts_kd": aligned_acts(setup)}, {}

    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=c.site_fields(),
        files=("lm", "lm_aligned", "sae"),
        pairs=True,
    )


def aligned_acts(setup: Setup) -> np.ndarray:
    """Computes the second model's activations on every token of the pairs, `[k, d]`."""
    params = setup.model_files.load(str(setup.settings.lm_aligned))
    step = jax.jit(
        lambda p, b: site_acts(
            p, b.tokens_bt, b.valid_bt, cfg=setup.cfg, site=setup.read_site
        )
    )
    rows = setup.encoded.rows
    acts_r = [np.zeros(0)] * len(rows)
    for batch, row_b in setup.batched(rows):
        acts_btd = to_host(step(params, shard_batch(batch, setup.mesh)))
        for b, row in enumerate(row_b):
            if row >= 0:
                acts_r[row] = acts_btd[b, : len(rows[row].ids)]
    return np.concatenate(acts_r).astype(np.float32)
