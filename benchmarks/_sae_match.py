"""Trains SAEs until their measured L0 is a target, so that what else is measured can be
compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sae_attr.sae.metrics import fit, l0
from sae_attr.sae.model import SAE, encode
from sae_attr.sae.selection import kth_largest

OFF, TRIES = 0.02, 5


class Recipe(NamedTuple):
    """One way to train: settings of the trainer's config, and the knob that moves L0,
    None where k sets it.

    `up`: a larger knob raises L0.
    """

    name: str
    fields: dict[str, Any]
    knob: str | None = None
    first: float = 0.0
    up: bool = False


def matched(
    run: Callable[[float], SAE],
    objective: str,
    recipe: Recipe,
    valid_kd: np.ndarray,
    target: float,
    knob: float,
    tries: int = TRIES,
) -> tuple[SAE, float, bool]:
    """Returns an SAE whose L0 on the validation tokens is the target, the knob that
    gave it, and whether it is within 2 %.

    TopK needs nothing; the one threshold of BatchTopK and Matryoshka is set on those
    tokens; for the others the knob is searched, by the secant through the two nearest
    points on logarithms, until L0 is within 1 % or the tries are used up.
    """
    if recipe.knob is None:
        sae = run(knob)
        if objective in ("batch_topk", "matryoshka"):
            sae = _with_l0(sae, valid_kd, target)
        return sae, knob, True
    tried: list[tuple[float, float, float, SAE]] = []
    for _ in range(tries):
        sae = run(knob)
        off = float(np.log(max(l0(fit(sae, valid_kd)), 1e-2) / target))
        tried = sorted(
            [*tried, (abs(off), off, float(np.log(knob)), sae)], key=lambda one: one[0]
        )
        if tried[0][0] < OFF / 2:
            break
        knob = _next_knob([(at, off) for _, off, at, _ in tried], recipe.up)
        if any(abs(np.log(knob) - at) < 1e-3 for _, _, at, _ in tried):
            break  # the knob does not move L0 any more
    return tried[0][3], float(np.exp(tried[0][2])), tried[0][0] <= OFF


def _with_l0(sae: SAE, acts_kd: np.ndarray, target: float) -> SAE:
    """With the one threshold that leaves `target` latents a token on the first 16 384
    of these tokens.
    """
    assert sae.threshold_n is not None
    open_sae = replace(sae, threshold_n=jnp.zeros_like(sae.threshold_n))
    codes_kn = encode(open_sae, jnp.asarray(acts_kd[:16384]))
    value = kth_largest(codes_kn, round(len(codes_kn) * target))
    return replace(sae, threshold_n=jnp.full_like(sae.threshold_n, value))


def _next_knob(points: list[tuple[float, float]], up: bool) -> float:
    """From (log knob, log of L0 over target), the nearest first: between the two sides
    of 0 if there are points on both.
    """
    at, off = points[0]
    slope, usual = None, 1.0 if up else -0.6
    other = next(
        (p for p in points[1:] if p[1] * off < 0),
        points[1] if len(points) > 1 else None,
    )
    if other is not None and other[0] != at:
        slope = (other[1] - off) / (other[0] - at)
    if slope is None or slope * usual <= 0.01:
        slope = usual
    return float(np.exp(at - np.clip(off / slope, -2, 2)))
