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
from sae_attr.study.setup import Study
from sae_attr.study.skipped import Skipped

RIVALS = ("delta_code", "delta_activation")


def _weights(study: Study, table: TokenTable, name: str) -> np.ndarray:
    """Signed weights of completion tokens (`delta_code`), or a plain mean over prompts'
    tokens (`delta_activation`).
    """
    if name == "delta_code":
        return token_weights(table.rows, "completion", study.exclude)
    w_k = np.abs(token_weights(table.rows, "prompt", study.exclude))
    return w_k / w_k.sum()


def code_differences(
    study: Study,
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
        w_k = _weights(study, table, name)
        values = weighted_codes(encode_fn, table.reads_kd, w_k, block=block)
        if name == "delta_activation":
            values = values - weighted_codes(
                encode_fn, _aligned_acts(study, table), w_k, block=block
            )
        out[name] = values.astype(np.float32)
    return out


def code_rival(study: Study, table: TokenTable, name: str) -> np.ndarray | Skipped:
    """Returns `delta_code` or `delta_activation` of all latents, float32 `[n]`, or why
    it is left out.
    """
    n, limit = study.sae_cfg.n_latents, study.settings.dense_limit
    if name == "delta_activation" and study.no_second_model:
        return Skipped(study.no_second_model)
    if study.sae_cfg.no_token_codes:
        return Skipped(study.sae_cfg.no_token_codes)
    cost = n * int((_weights(study, table, name) != 0).sum())
    if cost > limit:
        return Skipped(
            f"{cost:.3g} latents x tokens exceed dense_limit {limit:.3g}", by_limit=True
        )
    encode_fn = functools.partial(encode, study.sae)
    return code_differences(
        study, table, [name], encode_fn, block=max(1, min(4096, 2**25 // n))
    )[name]


def _aligned_acts(study: Study, table: TokenTable) -> np.ndarray:
    """The second model's activations on the same tokens, `[k, d]`."""
    params = study.load(str(study.settings.lm_aligned))
    step = jax.jit(
        lambda p, b: site_acts(
            p, b.tokens_bt, b.valid_bt, cfg=study.cfg, site=study.read_site
        )
    )
    acts_kd = np.empty_like(table.reads_kd)
    for batch, row_b in study.batched(table.rows):
        acts_btd = to_host(step(params, shard_batch(batch, study.mesh)))
        for b, row in enumerate(row_b):
            if row >= 0:
                acts_kd[table.tokens_of(row)] = acts_btd[b, : len(table.rows[row].ids)]
    return acts_kd


def code_stage(
    study: Study,
    table: TokenTable,
    latents: np.ndarray,
    names: Sequence[str],
    inputs: Mapping[str, str],
) -> Result:
    """`delta_code`, `delta_activation`, `firing_rate` of chosen latents `[k]`, for
    gates that look at one latent each.
    """

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        sae = study.sae_of(latents)
        encode_fn = functools.partial(encode, sae)
        found = code_differences(
            study, table, [n for n in names if n in RIVALS], encode_fn, block=4096
        )
        if "firing_rate" in names:
            found["firing_rate"], _ = firing_rates(
                study.params,
                study.corpus_work(study.settings.firing_tokens),
                sae,
                cfg=study.cfg,
                site=study.read_site,
                mesh=study.mesh,
                limits=study.limits,
                progress=study.progress,
            )
        return found, {}

    fields = {
        **study.corpus_fields(),
        "latents": latents,
        "names": list(names),
        "tokens": study.settings.firing_tokens,
    }
    read = {"corpus": study.corpus_key, "sae": study.sae_key, "lm": study.lm_key}
    if "delta_activation" in names:
        read["lm_aligned"] = study.aligned_key
    return study.stage("codes", fields, {**inputs, **read}, compute)
