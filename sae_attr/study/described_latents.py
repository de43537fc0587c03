"""The latents that a reader describes, and the latents that its tests compare them
with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_attr.report.method_style import RANDOM
from sae_attr.study.case import Case
from sae_attr.study.selection import Selection

_NEAREST = 20  # latents nearest in firing rate, of which one is drawn


def described_by_method(case: Case, selection: Selection) -> dict[str, list[int]]:
    """Returns method -> its latents that are described, random ones among them; those of
    further dictionaries are not, since passages are looked for by the case's SAE.
    """
    latents, settings = {}, case.study
    for method, of_method in selection.compared().items():
        is_random = method == RANDOM
        count = settings.described_random if is_random else settings.described
        latents[method] = case.latents.of_sae(of_method)[:count].tolist()
    return latents


def described_latents(case: Case, selection: Selection) -> np.ndarray:
    """Returns the latents that are described, each once, ascending."""
    latents: set[int] = set()
    for of_method in described_by_method(case, selection).values():
        latents |= set(of_method)
    return np.array(sorted(latents), int)


def alike_latents(
    rates_n: np.ndarray, latents: Sequence[int], rng: np.random.Generator
) -> dict[int, int]:
    """Returns latent -> another one of like firing rate, drawn among the 20 nearest in
    log rate that fire at all; among all where rates are not known.

    Args:
      rates_n: firing rate of every latent of the dictionary.
    """
    log_n = np.log10(np.where(np.isfinite(rates_n), rates_n, 0) + 1e-7)
    free = np.isfinite(rates_n) & (rates_n > 0)
    if not free.any():
        free = np.ones(len(rates_n), bool)
        log_n = np.zeros(len(rates_n))
    free[np.asarray(latents, int)] = False
    pool = np.flatnonzero(free)
    alike = {}
    for latent in latents:
        order = rng.permutation(pool)  # so that equals are drawn from, not the first
        gap = np.abs(log_n[order] - log_n[latent])
        nearest = order[np.argsort(gap, kind="stable")[:_NEAREST]]
        if len(nearest):
            alike[latent] = int(rng.choice(nearest))
    return alike
