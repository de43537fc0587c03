"""Rivals that look at codes: `delta_code` within the model, `delta_activation` between
two, and firing rates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sae_attr.activations import site_acts
from sae_attr.attribution.corpus import firing_rates, weighted_codes
from sae_attr.attribution.table import TokenTable, token_weights
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import encode
from sae_attr.store import Result
from sae_attr.study.setup import Setup
from sae_attr.study.skipped import Skipped

RIVALS = ("delta_code", "delta_activation")


def _weights(setup: Setup, table: TokenTable, name: str) -> np.ndarray:
    """Signed weights of completion tokens (`delta_code`), or a plain mean over prompts'
    tokens (`delta_activation`).
    """
    if name == "delta_code":
        return token_weights(table.rows, "completion", setup.exclude)
    w_k = np.abs(token_weights(table.rows, "prompt", setup.exclude))
    return w_k / w_k.sum()


def code_differences(
    setup: Setup,
    table: TokenTable,
    names: Sequence[str],
    encode_fn: Callable[[jax.Array], jax.Array],
    *,
    block: int,
) -> dict[str, np.ndarray]:
    """The rivals of `names` as float32 `[n]` or, with an `encode_fn` of fewer latents,
    of those.

    `delta_code` is the mean code on C − on C′; `delta_activation` the mean code in the
    studied model − in `lm_aligned`, both on the evaluation prompts (Wang et al. 2025),
    signed.
    """
    out: dict[str, np.ndarray] = {}
    for name in names:
        w_k = _weights(setup, table, name)
        values = weighted_codes(encode_fn, table.reads_kd, w_k, block=block)
        if name == "delta_activation":
            values = values - weighted_codes(
                encode_fn, _aligned_acts(setup, table), w_k, block=block
            )
        out[name] = values.astype(np.float32)
    return out


def code_rival(setup: Setup, table: TokenTable, name: str) -> np.ndarray | Skipped:
    """Returns `delta_code` or `delta_activation` of all latents, float32 `[n]`, or why
    it is left out.
    """
    n, limit = setup.sae_cfg.n_latents, setup.settings.dense_limit
    if name == "delta_activation" and setup.no_second_model:
        return Skipped(setup.no_second_model)
    if setup.sae_cfg.no_token_codes:
        return Skipped(setup.sae_cfg.no_token_codes)
    cost = n * int((_weights(setup, table, name) != 0).sum())
    if cost > limit:
        return Skipped(
            f"{cost:.3g} latents x tokens exceed dense_limit {limit:.3g}", by_limit=True
        )
    encode_fn = functools.partial(encode, setup.sae)
    return code_differences(
        setup, table, [name], encode_fn, block=max(1, min(4096, 2**25 // n))
    )[name]


def _aligned_acts(setup: Setup, table: TokenTable) -> np.ndarray:
    """The second model's activations on the same tokens, `[k, d]`."""
    params = setup.model_files.load(str(setup.settings.lm_aligned))
    step = jax.jit(
        lambda p, b: site_acts(
            p, b.tokens_bt, b.valid_bt, cfg=setup.cfg, site=setup.read_site
        )
    )
    acts_kd = np.empty_like(table.reads_kd)
    for batch, row_b in setup.batched(table.rows):
        acts_btd = to_host(step(params, shard_batch(batch, setup.mesh)))
        for b, row in enumerate(row_b):
            if row >= 0:
                acts_kd[table.tokens_of(row)] = acts_btd[b, : len(table.rows[row].ids)]
    return acts_kd


def code_stage(
    setup: Setup,
    table: TokenTable,
    latents: np.ndarray,
    names: Sequence[str],
    inputs: Mapping[str, str],
) -> Result:
    """`delta_code`, `delta_activation`, `firing_rate` of chosen latents `[k]`, for
    gates that look at one latent each.
    """

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        sae = setup.sae_files.of(latents)
        encode_fn = functools.partial(encode, sae)
        found = code_differences(
            setup, table, [n for n in names if n in RIVALS], encode_fn, block=4096
        )
        if "firing_rate" in names:
            found["firing_rate"], _ = firing_rates(
                setup.params,
                setup.corpus.batches(setup.settings.firing_tokens),
                sae,
                cfg=setup.cfg,
                site=setup.read_site,
                mesh=setup.mesh,
                limits=setup.limits,
                progress=setup.progress,
            )
        return found, {}

    fields = {
        **setup.corpus_fields(),
        "latents": latents,
        "names": list(names),
        "tokens": setup.settings.firing_tokens,
    }
    read = {"corpus": setup.corpus_key, "sae": setup.sae_key, "lm": setup.lm_key}
    if "delta_activation" in names:
        read["lm_aligned"] = setup.aligned_key
    return setup.stage("codes", fields, {**inputs, **read}, compute)
