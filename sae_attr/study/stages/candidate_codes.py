"""Stage `candidate_codes`: of candidates alone, what the dense limit left out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sae_attr.attribution.activation_differences import (
    DIFFERENCES,
    activation_difference,
)
from sae_attr.attribution.latent_statistics import CodeStatistics, firing_rates
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.sae.model import encode
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.setup import Setup
from sae_attr.study.stages import firing, norm_limits, rankings, scores
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.study.stages.evidence import NEEDS, evidence_of

NAME = "candidate_codes"
VERSION = 1  # raised when the stage gives other numbers than before
RATE = "firing_rate"


def stage(c: Context) -> Stage:
    """Makes the stage: `latents_k` and, of `delta_code`, `delta_activation` and
    `firing_rate`, an array `[k]` for each that is left out by the limit alone.

    A gate that looks at one latent at a time is needed for that; without, and where
    nothing is left out, there are no arrays.
    """
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        statistics = firing.statistics_of(inputs[firing.NAME])
        names = left_out(setup, inputs[scores.NAME], statistics)
        if not names or setup.sae_cfg.gate not in LOCAL_GATES:
            return {}, {}
        latents = candidates(setup, inputs[rankings.NAME])
        arrays = {"latents_k": latents}
        sae = setup.sae_of(latents)
        evidence = evidence_of(setup, inputs)
        for name in names:
            if name in DIFFERENCES:
                arrays[name] = activation_difference(
                    evidence, name, functools.partial(encode, sae), block=4096
                )
        if RATE in names:
            arrays[RATE], _ = firing_rates(
                setup.params,
                setup.corpus.batches(setup.settings.firing_tokens),
                sae,
                cfg=setup.cfg,
                site=setup.read_site,
                mesh=setup.mesh,
                limits=norm_limits.limits_of(inputs[norm_limits.NAME]),
                progress=setup.progress,
            )
        return arrays, {}

    fields = {"firing_tokens": setup.settings.firing_tokens, **c.text_fields()}
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(norm_limits.NAME, *NEEDS, scores.NAME, rankings.NAME),
        files=("lm", "corpus", "sae"),
        pairs=True,
    )


def candidates(setup: Setup, result: Result) -> np.ndarray:
    """Returns the candidates of all presets, ascending."""
    best = [r.latents_k for r in rankings.rankings_of(setup, result).values()]
    return np.unique(np.concatenate(best))


def left_out(
    setup: Setup, score_result: Result, statistics: CodeStatistics
) -> list[str]:
    """Returns the latent activations' numbers that only the dense limit leaves out."""
    by_limit = score_result.meta["by_limit"]
    names = [name for name in DIFFERENCES if name in by_limit]
    if setup.sae_cfg.no_token_codes or not setup.settings.firing_tokens:
        return names
    if not np.isfinite(statistics.rate_n).any():
        names.append(RATE)
    return names


class Filled(NamedTuple):
    """Holds what is known of latent activations: by candidates alone where need be, NaN
    for the others; and why scores are left out.
    """

    scores: dict[str, np.ndarray]
    rates_n: np.ndarray
    skipped: dict[str, str]


def filled(
    setup: Setup,
    score_result: Result,
    statistics: CodeStatistics,
    arrays: Mapping[str, np.ndarray],
) -> Filled:
    """Adds the stage's arrays to the scores and firing rates of all latents."""
    n = setup.sae_cfg.n_latents
    scores_by_key = {k: np.asarray(v) for k, v in score_result.arrays.items()}
    skipped = dict(score_result.meta["skipped"])
    rates_n = statistics.rate_n
    if setup.sae_cfg.no_token_codes:
        skipped[RATE] = setup.sae_cfg.no_token_codes
        scores_by_key["delta_code"] = np.full(n, np.nan, np.float32)
    for name in left_out(setup, score_result, statistics):
        why = skipped.get(name) or (
            "fewer than 1,000 positions within dense_limit "
            f"{setup.settings.dense_limit:.3g}"
        )
        values_n = np.full(n, np.nan, np.float32)
        if name in arrays:
            values_n[np.asarray(arrays["latents_k"])] = arrays[name]
            skipped[name] = f"{why}; computed for the candidates"
        else:
            skipped[name] = f"{why}; a {setup.sae_cfg.gate} code needs all latents"
        scores_by_key[name] = values_n
        if name == RATE:
            rates_n = values_n
    return Filled(scores_by_key, rates_n, skipped)
