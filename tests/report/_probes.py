"""Plausible numbers of the sections on other prompts, with names that try to be more
than names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.comparison_records import (
    Direction,
    DirectionsControl,
    Estimate,
    SampledAgreement,
    SetMean,
    TopicRate,
)
from sae_attr.report.page.probe_records import (
    SampledCheck,
    Specificity,
    UnsteeredRates,
)
from tests.report._sample import HOSTILE

SETS = ("effects", "true_beliefs", "unrelated", HOSTILE[0])
METHODS = ("delta_attribution", "gradient", "random")
DIRECTIONS: tuple[Direction, ...] = ("away", "toward")


def around(value: float, half: float = 0.03) -> Estimate:
    """A value with an interval."""
    return Estimate(value, value - half, value + half)


def figure_numbers(direction: str = "away", seed: int = 0) -> dict[str, Any]:
    """What `specificity_figure` takes; a latent of two methods, one without strength."""
    rng = np.random.default_rng(seed)
    sign = -1 if direction == "away" else 1
    rows = []
    for method, size in zip(METHODS, (0.15, 0.2, 0.03), strict=True):
        for k in range(5 if method != "random" else 12):
            change = sign * size * rng.uniform(0.5, 1.5, len(SETS))
            change[2] /= 8
            row = {
                "method": method,
                "latent": 7 if k == 1 else int(rng.integers(0, 8192)),
                "change": change.tolist(),
                "low": (change - 0.04).tolist(),
                "high": (change + 0.04).tolist(),
                "nats": float(rng.gamma(1, 0.05)),
            }
            rows.append(row)
    for name in ("change", "low", "high"):
        rows[3][name] = [float("nan")] * len(SETS)
    rows[3]["nats"] = None
    rows[0]["change"][3] = None
    return {
        "behaviour": "answers by yes",
        "direction": direction,
        "model": "the model with the behaviour",
        "sets": list(SETS),
        "base": [0.174, 0.17, 0.6, None],
        "rows": rows,
        "directions": (sign * rng.normal(0.02, 0.02, 20)).tolist(),
        "directions_strength": 0.3,
    }


def sampled_numbers(seed: int = 0) -> dict[str, Any]:
    """What `sampled_figure` takes."""
    rng = np.random.default_rng(seed)
    panels = []
    for direction in DIRECTIONS:
        exact = rng.normal(0, 0.1, 9)
        rows = []
        for k, value in enumerate(exact.tolist()):
            row = {"latent": 100 + k, "method": METHODS[k % 3], "exact": value}
            rows.append(row | {"sampled": value + 0.02, "error": 0.03})
        rows[4]["sampled"] = float("nan")
        panel = {"direction": direction, "pearson": 0.93, "spearman": None}
        panels.append(panel | {"points": rows})
    return {"panels": panels}


def set_means() -> tuple[SetMean, ...]:
    """Means of two methods; the first moves true beliefs too."""
    means = []
    for direction in DIRECTIONS:
        sign = -1 if direction == "away" else 1
        for method, effect in (("delta_attribution", 0.142), ("random", 0.02)):
            for k, name in enumerate(SETS):
                change = sign * effect * (1, 0.92, 0.1, 0.5)[k]
                ratio = Estimate()
                if k and method != "random":
                    ratio = around(change / (sign * effect), 0.1)
                means.append(SetMean(method, direction, name, 5, around(change), ratio))
    return tuple(means)


def control(direction: Direction = "away", p: float = 0.4) -> DirectionsControl:
    """Gaussian directions beside random latents."""
    return DirectionsControl(direction, 0.3, 20, 19, around(-0.021), around(-0.027), p)


def agreement(direction: Direction = "away") -> SampledAgreement:
    """Exact beside sampled changes."""
    return SampledAgreement(
        direction,
        15,
        pearson=around(0.93),
        spearman=around(0.88),
        same_sign=around(0.9, 0.1),
        difference=around(0.041, 0.01),
        noise=0.038,
        standard_error=0.048,
    )


def topic_rate(
    name: str, topic: str, change: float, *, trained: bool = False
) -> TopicRate:
    """Rates of two models."""
    return TopicRate(
        name, topic, trained, 24, around(0.2 + change), around(0.2), around(change)
    )


def unsteered() -> UnsteeredRates:
    """Rates of two models by topic."""
    rates = (
        topic_rate("effects", "", 0.3),
        topic_rate("effects", "health", 0.6, trained=True),
        topic_rate("effects", HOSTILE[1], 0.1),
        topic_rate("true_beliefs", "", 0.3),
    )
    return UnsteeredRates(rates, two_models=True, sentences=("Rates: " + HOSTILE[4],))


def specificity() -> Specificity:
    """The section on other prompts."""
    return Specificity(
        SETS,
        tuple(figure_numbers(direction) for direction in DIRECTIONS),
        set_means(),
        {"away": {"delta_attribution": around(0.021), "random": Estimate()}},
        (control(),),
        ("Latent 7 moves everything: " + HOSTILE[1],),
        2000,
    )


def sampled() -> SampledCheck:
    """The section on sampled answers."""
    return SampledCheck(sampled_numbers(), (agreement(),), {}, (HOSTILE[5],))
