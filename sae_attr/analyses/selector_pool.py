"""A pool of latents from several selectors, each with its origin, beside random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_attr.attribution.evidence import Skipped

GRADIENT, FREQUENCY = "gradient", "frequency"
ATTRIBUTION, MODEL_DIFFERENCE = "attribution", "model_difference"
RANDOM = "random"
PLANTED = "planted"  # the latent that carries a task's behaviour by construction
SELECTORS = (GRADIENT, FREQUENCY, ATTRIBUTION, MODEL_DIFFERENCE)


@dataclass(frozen=True)
class PoolLatent:
    """One latent of the pool.

    Args:
      latent: its index.
      origins: the selectors among whose best it is; `random` alone for a control.
      sign: +1, or -1 of a latent that points against the behaviour: it is steered and
        read with its opposite.
    """

    latent: int
    origins: tuple[str, ...]
    sign: int


def selector_pool(
    scores: Mapping[str, np.ndarray | Skipped], counts: Mapping[str, int]
) -> tuple[list[PoolLatent], dict[str, str]]:
    """Returns the union of every selector's best latents, in the order of selectors and
    ranks, and selector -> why it is left out.

    A latent that several selectors name is there once, with all its origins. The
    gradient selects by |cos|: a latent that points against it has the sign -1.

    Args:
      scores: selector -> score of every latent, larger is better; `gradient` is the
        cosine with its sign.
      counts: selector -> how many of its best there are.
    """
    origins: dict[int, list[str]] = {}
    signs: dict[int, int] = {}
    skipped = {}
    for name, count in counts.items():
        score = scores[name]
        if isinstance(score, Skipped):
            skipped[name] = score.why
            continue
        ranked_n = np.abs(score) if name == GRADIENT else score
        for latent in np.argsort(-ranked_n, kind="stable")[:count]:
            origins.setdefault(int(latent), []).append(name)
            if name == GRADIENT:
                signs[int(latent)] = 1 if score[latent] >= 0 else -1
    pool = [PoolLatent(i, tuple(of), signs.get(i, 1)) for i, of in origins.items()]
    return pool, skipped


def with_planted(pool: Sequence[PoolLatent], planted: int) -> list[PoolLatent]:
    """Returns the pool with the planted latent marked, or added where no selector took
    it.
    """
    marked = []
    for latent in pool:
        if latent.latent == planted:
            latent = replace(latent, origins=(*latent.origins, PLANTED))
        marked.append(latent)
    if planted not in {latent.latent for latent in pool}:
        marked.append(PoolLatent(planted, (PLANTED,), 1))
    return marked


def random_latents(
    n_latents: int, count: int, pool: Sequence[PoolLatent], seed: int
) -> list[PoolLatent]:
    """Draws controls that are not in the pool.

    Raises:
      ValueError: more than there are.
    """
    others = np.setdiff1d(np.arange(n_latents), [latent.latent for latent in pool])
    if count > len(others):
        raise ValueError(
            f"random={count} controls are asked for, but the pool leaves {len(others)} "
            f"of {n_latents} latents; lower random, or use a larger SAE"
        )
    drawn = np.random.default_rng(seed).choice(others, count, replace=False)
    return [PoolLatent(int(i), (RANDOM,), 1) for i in np.sort(drawn)]
