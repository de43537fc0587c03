"""What is measured of one fine-tune's directions: of any language model, its graded
answers and, where there is one, the model before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sae_attr.analyses.directions import (
    SideSums,
    Work,
    gradient_directions,
    layer_moments,
    mean_difference,
    model_difference,
    side_sums,
)
from sae_attr.attribution.scores import Moment
from sae_attr.attribution.token_table import token_weights
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.params import Params
from sae_attr.text.rows import TokenRow

MEAN, MODEL = "mean_difference", "model_difference"
GRADIENT, BEST = "gradient", "best_of_moment"
KINDS = (MEAN, MODEL, GRADIENT, BEST)

Batched = Callable[[Sequence[TokenRow]], Work]
"""Puts rows in batches."""


@dataclass(frozen=True, eq=False)
class DirectionRecord:
    """Directions of one fine-tune at every layer.

    Args:
      average: of the mean difference, of `directions.AVERAGES`.
      sums: of the fine-tune's activations on its answers.
      before: of the model before it on the same answers; None where there is none.
      gradient_hsd, best_hsd: the contrastive gradient and the moment's best direction,
        of all prompts and of either half of them.
      mean_sd: ā of every layer.
      limit_s: largest norm that counts; inf where there is no limit.
    """

    average: str
    sums: SideSums
    before: SideSums | None
    gradient_hsd: np.ndarray
    best_hsd: np.ndarray
    mean_sd: np.ndarray
    limit_s: np.ndarray

    @cached_property
    def directions(self) -> dict[str, np.ndarray]:
        """Kind -> direction `[s, d]`, of any length."""
        directions = {MEAN: mean_difference(self.sums, self.average)}
        if self.before is not None:
            directions[MODEL] = model_difference(self.sums, self.before)
        return directions | {GRADIENT: self.gradient_hsd[0], BEST: self.best_hsd[0]}

    @cached_property
    def halves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Kind -> the direction of either half of the prompts that have both sides."""
        both_p = (self.sums.answers_p2 > 0).all(1)
        first_p = both_p & (np.cumsum(both_p) % 2 == 1)
        of_means, of_models = [], []
        for kept_p in (first_p, both_p & ~first_p):
            kept = _some(self.sums, kept_p)
            of_means.append(mean_difference(kept, self.average))
            if self.before is not None:
                of_models.append(model_difference(kept, _some(self.before, kept_p)))
        pairs = {MEAN: (of_means[0], of_means[1])}
        if of_models:
            pairs[MODEL] = of_models[0], of_models[1]
        pairs[GRADIENT] = self.gradient_hsd[1], self.gradient_hsd[2]
        pairs[BEST] = self.best_hsd[1], self.best_hsd[2]
        return pairs

    def limits(self, sites: Sequence[Site]) -> dict[Site, float]:
        """Returns site -> largest norm that counts, of sites that have a limit."""
        limits = {}
        for site, limit in zip(sites, self.limit_s, strict=True):
            if np.isfinite(limit):
                limits[site] = float(limit)
        return limits

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the record as arrays by name; `record_of` is the way back."""
        arrays = {
            "sums_p2sd": self.sums.sums_p2sd,
            "answers_p2": self.sums.answers_p2,
            "gradient_hsd": self.gradient_hsd,
            "best_hsd": self.best_hsd,
            "mean_sd": self.mean_sd,
            "limit_s": self.limit_s,
        }
        if self.before is not None:
            arrays["before_p2sd"] = self.before.sums_p2sd
            arrays["before_answers_p2"] = self.before.answers_p2
        return arrays


def _some(sums: SideSums, kept_p: np.ndarray) -> SideSums:
    return SideSums(sums.sums_p2sd[kept_p], sums.answers_p2[kept_p])


def record_of(arrays: Mapping[str, Any], average: str) -> DirectionRecord:
    """Reads the arrays of a record."""
    plain = {}
    for name in ("gradient_hsd", "best_hsd", "mean_sd", "limit_s"):
        plain[name] = np.asarray(arrays[name])
    sums = SideSums(np.asarray(arrays["sums_p2sd"]), np.asarray(arrays["answers_p2"]))
    before = None
    if "before_p2sd" in arrays:
        before = SideSums(
            np.asarray(arrays["before_p2sd"]), np.asarray(arrays["before_answers_p2"])
        )
    return DirectionRecord(average, sums, before, **plain)


def measure_directions(
    params: Params,
    before: Params | None,
    rows: Sequence[TokenRow],
    batched: Batched,
    *,
    cfg: LMConfig,
    means: Mapping[Site, np.ndarray],
    limits: Mapping[Site, float],
    scope: str,
    average: str,
    exclude: frozenset[str] = frozenset(),
) -> tuple[DirectionRecord, dict[Site, Moment]]:
    """Measures the directions of graded answers at every site of `means`, and returns
    them with the moments over all prompts.

    Args:
      params: of the model that shows the behaviour.
      before: of the model that its fine-tune began with.
      rows: answers; their `side` says whether they show the behaviour.
      means: site -> ā on ordinary text.
      limits: site -> largest norm that counts.
      scope: of tokens that gradient and moment are summed over.
      exclude: kinds of tokens that these leave out.

    Raises:
      ValueError: answers that give no direction.
    """
    sites = tuple(means)
    model: dict[str, Any] = {"cfg": cfg, "sites": sites}
    sums = side_sums(params, rows, batched(rows), limits=limits, **model)
    sums_before = None
    if before is not None:
        sums_before = side_sums(before, rows, batched(rows), limits={}, **model)
    paired = of_both_sides(rows)
    weights_hk = halves_of(paired) * token_weights(paired, scope, exclude)
    first, second = layer_moments(params, paired, batched(paired), weights_hk, **model)
    moments = {site: first[site] + second[site] for site in sites}
    directions = [gradient_directions(m, means) for m in (moments, first, second)]
    record = DirectionRecord(
        average,
        sums,
        sums_before,
        np.stack([gradient_sd for gradient_sd, _ in directions]),
        np.stack([best_sd for _, best_sd in directions]),
        np.stack([means[site] for site in sites]),
        np.array([limits.get(site, np.inf) for site in sites]),
    )
    return record, moments


def of_both_sides(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Returns the rows of prompts that have answers with and without the behaviour."""
    sides: dict[int, set[int]] = {}
    for row in rows:
        sides.setdefault(row.pair, set()).add(row.side)
    return [row for row in rows if len(sides[row.pair]) == 2]


def halves_of(rows: Sequence[TokenRow]) -> np.ndarray:
    """Returns which half of the prompts the tokens of rows are of, every other prompt;
    bool `[2, k]`.
    """
    _, number_r = np.unique([row.pair for row in rows], return_inverse=True)
    half_k = np.repeat(number_r % 2, [len(row.ids) for row in rows])
    return np.stack([half_k == 0, half_k == 1])
