"""Numbers of the figures with strips: steering in both directions, and exact ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.comparison_records import MethodCount
from sae_attr.study.case import Case
from sae_attr.study.case_results import CaseResults
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages.ablated_rates import NAME as ABLATED_RATES

# What a strip shows of its method's count, by the names there: the mean with its
# interval, and the latents outside the band beside what chance puts there.
_COUNTS_IN_STRIPS = {
    "mean": "mean",
    "mean_low": "low",
    "mean_high": "high",
    "outside": "outside",
    "expected": "expected",
    "q": "q",
}


def effect_numbers(results: CaseResults, *, signed: bool = False) -> dict[str, Any]:
    """Returns the numbers of `figures.effects_figure` for steering.

    Args:
      signed: by the sign of each latent's gradient.
    """
    meta = results.of["effects"].meta
    kind = "signed_" if signed else ""
    panels = []
    for direction in DIRECTIONS:
        panel = meta[f"{kind}panels"][direction]
        panels.append(_completed(results.case, panel, meta[f"{kind}counts"]))
    behaviour = results.case.settings.behaviour
    return {"behaviour": behaviour, "signed": signed, "panels": panels}


def ablated_numbers(results: CaseResults) -> dict[str, Any] | None:
    """Returns the numbers of `figures.effects_figure` for the exact ablation of single
    latents; None where it was not measured.
    """
    result = results.of.get(ABLATED_RATES)
    if result is None or "skipped" in result.meta:
        return None
    panel = _completed(results.case, result.meta["panel"], result.meta["counts"])
    behaviour = results.case.settings.behaviour
    return {"behaviour": behaviour, "ablated": True, "panels": [panel]}


def ablated_counts(results: CaseResults) -> tuple[MethodCount, ...]:
    """Returns the counts of latents whose exact ablation lowers the rate beyond the
    range of random ones; none where it was not measured.
    """
    result = results.of.get(ABLATED_RATES)
    if result is None:
        return ()
    return tuple(MethodCount(**row) for row in result.meta.get("counts", ()))


def _completed(
    case: Case, panel: Mapping[str, Any], counts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns a panel with the steered model's name, and with the counts of its methods
    in their strips.
    """
    of_methods = {}
    for count in counts:
        if count["direction"] == panel["direction"]:
            of_methods[count["method"]] = count
    strips = []
    for strip in panel["strips"]:
        count = of_methods[strip["method"]]
        shown = {name: count[key] for name, key in _COUNTS_IN_STRIPS.items()}
        labels = case.latents.labels(strip["latents"])
        strips.append({**strip, **shown, "latents": labels})
    model = case.steered_model(panel["direction"])
    return {**panel, "model": model, "strips": strips}
