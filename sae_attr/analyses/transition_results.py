"""The transition of a rank-1 adapter in numbers: curves of every run, the steps of its
events, and how far these lie apart over runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.directions import paired_cosines
from sae_attr.analyses.transition import (
    largest_rise,
    local_cosine,
    mean_distance,
    peak,
    principal_path,
    running_mean,
    sharpest_turn,
    similarity_to,
)
from sae_attr.analyses.transition_measures import VECTORS
from sae_attr.analyses.transition_settings import EventSettings, TransitionRuns
from sae_attr.analyses.transition_stages import (
    MEASURED,
    PATH,
    RATES,
    path_of,
)
from sae_attr.organism.adapter_path import AdapterPath
from sae_attr.store import Result

Row = dict[str, Any]
Curves = dict[str, list[float]]
PEAK = "peak"


def turn_name(lag: int) -> str:
    """Names the turn at a lag of the local cosine."""
    return f"turn_{lag}"


def rise_name(scale: float) -> str:
    """Names the largest rise of the rate of the adapter times a scale."""
    return f"rise_x{scale:g}"


def event_names(case: TransitionRuns) -> list[str]:
    """Names the events of a run in the order in which they are reported."""
    s = case.settings
    turns = [turn_name(lag) for lag in s.events.lags]
    return [*turns, PEAK, *(rise_name(scale) for scale in s.scales)]


def transition_numbers(
    cases: Sequence[TransitionRuns], results: Mapping[str, Result]
) -> dict[str, list[Row]]:
    """Returns rows of the cases of which every run is complete: `runs` with curves and
    events, `events` with their mean over runs, and `distances` between them.
    """
    numbers: dict[str, list[Row]] = {"runs": [], "events": [], "distances": []}
    for case in cases:
        names = [
            case.stage_name(stage, run)
            for run in range(case.settings.runs)
            for stage in (PATH, RATES, MEASURED)
        ]
        if all(name in results for name in names):
            runs = [run_row(case, results, run) for run in range(case.settings.runs)]
            numbers["runs"] += runs
            numbers["events"] += event_rows(case, runs)
            numbers["distances"] += distance_rows(case, runs)
    return numbers


# ---- one run -------------------------------------------------------------------------


def run_row(case: TransitionRuns, results: Mapping[str, Result], run: int) -> Row:
    """Returns the curves of a run over `step`, those over `measured_step`, and the steps
    of its events, None for one that it has not.
    """
    s = case.settings
    path = path_of(results[case.stage_name(PATH, run)])
    rates = results[case.stage_name(RATES, run)].arrays
    rate_cs = np.asarray(rates["rate_cs"], np.float64)
    curves = path_curves(path, s.events)
    events = path_events(path, s.events)
    for scale, rate_s, coherent_s in zip(
        s.scales, rate_cs, np.asarray(rates["coherent_cs"]), strict=True
    ):
        curves[f"rate_x{scale:g}"] = rate_s.tolist()
        curves[f"coherent_x{scale:g}"] = coherent_s.tolist()
        events[rise_name(scale)] = largest_rise(
            rate_s, s.events.rise_lag, s.events.least_rise
        )
    principal = principal_path(path.b_so)
    return {
        **case.about,
        "run": run,
        "step": list(range(len(path.b_so))),
        "curves": curves,
        "measured_step": list(s.measured_steps),
        "measured": _measured_curves(case, results, run, path),
        "principal_share": principal.share_m.tolist(),
        "principal": principal.along_sm.tolist(),
        "events": events,
        "turns_as_published": _turns(path, s.events, least_share=0.0),
    }


def path_curves(path: AdapterPath, events: EventSettings) -> Curves:
    """Returns the curves that the path alone has: local cosines, the length of B, cosines
    of A and B with those of the last step, the gradient's norm and the loss.
    """
    curves = {}
    for lag in events.lags:
        cosine_s = _local_cosine(path, lag, events, events.least_share)
        curves[f"cosine_{lag}"] = cosine_s.tolist()
    smooth_s = running_mean(path.grad_norm_s, events.smooth)
    curves |= {
        "length": np.linalg.norm(path.b_so, axis=1).tolist(),
        "b_to_last": similarity_to(path.b_so, path.b_so[-1]).tolist(),
        "a_to_last": similarity_to(path.a_si, path.a_si[-1]).tolist(),
        "grad_norm": path.grad_norm_s.tolist(),
        "grad_norm_mean": smooth_s.tolist(),
        "loss": path.loss_s.tolist(),
    }
    return curves


def path_events(path: AdapterPath, events: EventSettings) -> dict[str, int | None]:
    """Returns the steps of the turns and of the gradient's peak."""
    steps = _turns(path, events, events.least_share)
    steps[PEAK] = peak(path.grad_norm_s, events.smooth)
    return steps


def _turns(
    path: AdapterPath, events: EventSettings, least_share: float
) -> dict[str, int | None]:
    turns = {}
    for lag in events.lags:
        cosine_s = _local_cosine(path, lag, events, least_share)
        turns[turn_name(lag)] = sharpest_turn(cosine_s, events.turn_below)
    return turns


def _local_cosine(
    path: AdapterPath, lag: int, events: EventSettings, least_share: float
) -> np.ndarray:
    return local_cosine(
        path.b_so, lag, least_norm=events.least_norm, least_share=least_share
    )


def _measured_curves(
    case: TransitionRuns, results: Mapping[str, Result], run: int, path: AdapterPath
) -> Curves:
    """Returns Δ of the top latents with its error; steering of `VECTORS`, and the mean
    over the top and the random latents with its error over latents; cosines of the
    directions with their last ones and with B.
    """
    result = results[case.stage_name(MEASURED, run)]
    arrays, top = result.arrays, result.meta["top"]
    steering_mk = np.asarray(arrays["steering_mk"], np.float64)
    curves = {
        "delta": np.asarray(arrays["delta_m"]).tolist(),
        "delta_se": np.asarray(arrays["delta_se_m"]).tolist(),
    }
    b_mo = path.b_so[list(case.settings.measured_steps)]
    for v, name in enumerate(VECTORS):
        direction_md = np.asarray(arrays[f"{name}_md"])
        curves[f"steering_{name}"] = steering_mk[:, v].tolist()
        curves[f"{name}_to_last"] = similarity_to(
            direction_md, direction_md[-1]
        ).tolist()
        if b_mo.shape == direction_md.shape:
            curves[f"{name}_to_b"] = paired_cosines(direction_md, b_mo).tolist()
    first = len(VECTORS)
    groups = {
        "top": steering_mk[:, first : first + top],
        "random": steering_mk[:, first + top :],
    }
    for name, steering_mg in groups.items():
        members = steering_mg.shape[1]
        if members > 1:
            error_m = steering_mg.std(1, ddof=1) / np.sqrt(members)
            curves[f"steering_{name}"] = steering_mg.mean(1).tolist()
            curves[f"steering_{name}_se"] = error_m.tolist()
    return curves


# ---- over runs -----------------------------------------------------------------------


def event_rows(case: TransitionRuns, runs: Sequence[Row]) -> list[Row]:
    """Returns a row for every event: in how many runs it is there, its mean step, the
    standard deviation and the first and last of them.
    """
    rows = []
    for name in event_names(case):
        steps = [row["events"][name] for row in runs if row["events"][name] is not None]
        row: Row = {**case.about, "event": name, "runs": len(runs), "has": len(steps)}
        if steps:
            row |= {"mean": float(np.mean(steps)), "steps": steps}
            row |= {"first": min(steps), "last": max(steps)}
        if len(steps) > 1:
            row["sd"] = float(np.std(steps, ddof=1))
        rows.append(row)
    return rows


def distance_rows(case: TransitionRuns, runs: Sequence[Row]) -> list[Row]:
    """Returns a row for every pair of a turn, the peak and a rise: how many steps later
    the first comes, with its interval over runs, and the share of runs in which they lie
    within the shortest lag of the local cosine.
    """
    s = case.settings
    turns = [turn_name(lag) for lag in s.events.lags]
    rises = [rise_name(scale) for scale in s.scales]
    pairs = [(turn, PEAK) for turn in turns]
    pairs += [(turn, rise) for turn in turns for rise in rises]
    pairs += [(PEAK, rise) for rise in rises]
    rows = []
    for first, second in pairs:
        first_r = [row["events"][first] for row in runs]
        second_r = [row["events"][second] for row in runs]
        distance = mean_distance(first_r, second_r)
        row: Row = {**case.about, "first": first, "second": second}
        row |= distance._asdict()
        row["within"] = _share_within(first_r, second_r, min(s.events.lags))
        rows.append(row)
    return rows


def _share_within(
    first_r: Sequence[int | None], second_r: Sequence[int | None], steps: int
) -> float:
    """The share of all runs in which both events are there and lie so near."""
    near = 0
    for first, second in zip(first_r, second_r, strict=True):
        if first is not None and second is not None:
            near += abs(first - second) <= steps
    return near / len(first_r)
