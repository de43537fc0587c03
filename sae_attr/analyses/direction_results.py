"""What was measured of several fine-tunes of one model, as rows with intervals: of the
figure, the tables and directions.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from sae_attr.analyses.direction_record import KINDS, MEAN, DirectionRecord
from sae_attr.analyses.direction_removals import RANDOM, Removal
from sae_attr.analyses.directions import (
    drawn_differences,
    paired_cosines,
    random_cosine,
    share_in_span,
)
from sae_attr.analyses.mitigation import rate_estimate
from sae_attr.comparison_records import Estimate
from sae_attr.steering.paired import EffectSettings, interval, prompt_draws

Row = dict[str, Any]
WRITES = ("o", "down")  # matrices that write to the residual stream
# Draws of a direction are whole vectors of every layer: more of them fill the memory.
MOST_DRAWN = 200


@dataclass(frozen=True, eq=False)
class MeasuredTune:
    """Holds what was measured of one fine-tune.

    Args:
      name: of it.
      record: its directions.
      written: (matrix, layer) -> B of an adapter that writes to the residual stream,
        `[r, d]`.
      conditions: what was projected out of it, nothing first.
      behaviour_cp, coherence_cp: its rates under each condition.
      group_p: `groups.group_numbers` of the prompts.
      delta_n: Δ of every latent.
    """

    name: str
    record: DirectionRecord
    written: Mapping[tuple[str, int], np.ndarray]
    conditions: Sequence[Removal]
    behaviour_cp: np.ndarray
    coherence_cp: np.ndarray
    group_p: np.ndarray
    delta_n: np.ndarray

    def at_layer(self, layer: int) -> dict[str, np.ndarray]:
        """Returns kind of direction, or adapter that writes there -> its direction."""
        vectors = {}
        for kind, direction_sd in self.record.directions.items():
            vectors[kind] = direction_sd[layer]
        for (matrix, at), b_rd in self.written.items():
            if at == layer:
                # Of a higher rank the direction that it writes most along.
                vectors[f"B of {matrix}"] = np.linalg.svd(b_rd)[2][0]
                if len(b_rd) == 1:
                    vectors[f"B of {matrix}"] = b_rd[0]
        return vectors


def tune_numbers(
    tunes: Sequence[MeasuredTune],
    dec_nd: np.ndarray,
    layer: int,
    *,
    top: int,
    settings: EffectSettings,
) -> dict[str, list[Row]]:
    """Returns the rows of several fine-tunes of one model: `transfer`, `between`,
    `cosines`, `spans` and `latents`.

    Args:
      dec_nd: unit decoder rows of the SAE.
      layer: whose residual stream it reads.
      top: latents of the highest Δ.
      settings: of intervals.
    """
    numbers: dict[str, list[Row]] = {"between": between_rows(tunes, settings)}
    for tune in tunes:
        of_tune = {
            "transfer": transfer_rows(tune, settings),
            "cosines": cosine_rows(tune),
            "spans": span_rows(tune),
            "latents": latent_rows(tune, dec_nd, layer, top),
        }
        for name, rows in of_tune.items():
            numbers.setdefault(name, []).extend(rows)
    return numbers


def estimate_columns(name: str, estimate: Estimate) -> Row:
    """Returns an estimate as three columns."""
    ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {name: estimate.value, **ends}


# ---- the transfer matrix -------------------------------------------------------------


def transfer_rows(tune: MeasuredTune, settings: EffectSettings) -> list[Row]:
    """Returns a row per direction that is projected out, none first: `rate`, `change`
    and `coherence` with intervals over prompts, the share of the rate that is `left`,
    and `relation` own | other | random; of random directions the mean over draws, and
    the `lowest` and `highest`.
    """
    rows = []
    for place, removal in enumerate(tune.conditions):
        if removal.draw:
            continue
        places = [place]
        if removal.kind == RANDOM:
            places = _places(tune.conditions, removal)
        row: Row = {"tune": tune.name, "removed": removal.kind, "of": removal.tune}
        row["relation"] = removal.relation(tune.name)
        rows.append(row | _rates(tune, places, settings))
    return rows


def _places(conditions: Sequence[Removal], first: Removal) -> list[int]:
    """Returns the places of all draws of a condition."""
    places = []
    for place, condition in enumerate(conditions):
        if replace(condition, draw=0) == first:
            places.append(place)
    return places


def _rates(tune: MeasuredTune, places: list[int], settings: EffectSettings) -> Row:
    rate_cp = np.asarray(tune.behaviour_cp, np.float64)
    of_draws = rate_cp[places].mean(1)
    row: Row = {"draws": len(places)}
    row |= {"lowest": of_draws.min(), "highest": of_draws.max()}
    row["left"] = of_draws.mean() / rate_cp[0].mean()
    measured = {
        "rate": rate_cp[places],
        "change": rate_cp[places] - rate_cp[0],
        "coherence": np.asarray(tune.coherence_cp)[places],
    }
    for name, values_dp in measured.items():
        estimate = rate_estimate(values_dp, tune.group_p, settings=settings)
        row |= estimate_columns(name, estimate)
    return row


# ---- cosines -------------------------------------------------------------------------


def between_rows(tunes: Sequence[MeasuredTune], settings: EffectSettings) -> list[Row]:
    """Returns a row per pair of fine-tunes, kind and layer: the `cosine` of the same kind
    of direction in both; for mean differences with its interval over the prompts of
    both; and the size that random directions seldom exceed.
    """
    drawn = {}
    for number, tune in enumerate(tunes):
        drawn[tune.name] = _drawn(tune.record, settings, number)
    rows = []
    for first, second in combinations(tunes, 2):
        for kind in KINDS:
            pair = [tune.record.directions.get(kind) for tune in (first, second)]
            if pair[0] is None or pair[1] is None:
                continue
            cosine_s = paired_cosines(pair[0], pair[1])
            ends_2s = np.full((2, len(cosine_s)), np.nan)
            if kind == MEAN:
                cosine_bs = paired_cosines(drawn[first.name], drawn[second.name])
                ends_2s = np.stack(interval(cosine_bs, settings.level))
            for layer, cosine in enumerate(cosine_s):
                row: Row = {"first": first.name, "second": second.name, "kind": kind}
                low, high = (float(end) for end in ends_2s[:, layer])
                row |= estimate_columns("cosine", Estimate(float(cosine), low, high))
                row |= {"layer": layer, "random": random_cosine(pair[0].shape[-1])}
                rows.append(row)
    return rows


def _drawn(
    record: DirectionRecord, settings: EffectSettings, number: int
) -> np.ndarray:
    """Returns the mean difference of resampled prompts `[b, s, d]`; each fine-tune's
    prompts are drawn by themselves.
    """
    resamples = min(settings.resamples, MOST_DRAWN)
    drawing = EffectSettings(resamples=resamples, seed=settings.seed + number)
    counts_bp = prompt_draws(len(record.sums.answers_p2), settings=drawing)
    return drawn_differences(record.sums, counts_bp, record.average)


def cosine_rows(tune: MeasuredTune) -> list[Row]:
    """Returns a row per layer and pair of directions: its `cosine`; `first` and `second`
    are kinds of direction, or the B of an adapter that writes to the residual stream
    there. A pair of a kind with itself is its two halves of the prompts.
    """
    rows = []
    for layer in range(len(tune.record.mean_sd)):
        pairs = {}
        for first, second in combinations(tune.at_layer(layer).items(), 2):
            pairs[first[0], second[0]] = first[1], second[1]
        for kind, (a_sd, b_sd) in tune.record.halves.items():
            pairs[kind, kind] = a_sd[layer], b_sd[layer]
        for (first, second), (a_d, b_d) in pairs.items():
            row: Row = {"tune": tune.name, "layer": layer}
            row |= {"first": first, "second": second}
            row["cosine"] = float(paired_cosines(a_d, b_d))
            rows.append(row | {"random": random_cosine(len(a_d))})
    return rows


def span_rows(tune: MeasuredTune) -> list[Row]:
    """Returns a row per layer and kind: the `share` of the direction's square in the
    span of what `adapters` up to that layer write, and that of a `random` one.
    """
    rows = []
    for layer, mean_d in enumerate(tune.record.mean_sd):
        below = [b_rd for (_, at), b_rd in tune.written.items() if at <= layer]
        if not below:
            continue
        rows_kd = np.concatenate(below)
        if len(rows_kd) >= len(mean_d):
            break  # they span the whole stream
        for kind, direction_sd in tune.record.directions.items():
            row: Row = {"tune": tune.name, "layer": layer, "kind": kind}
            row |= {"adapters": len(below), "random": len(rows_kd) / len(mean_d)}
            row["share"] = share_in_span(direction_sd[layer], rows_kd)
            rows.append(row)
    return rows


# ---- latents -------------------------------------------------------------------------


def latent_rows(
    tune: MeasuredTune, dec_nd: np.ndarray, layer: int, top: int
) -> list[Row]:
    """Returns a row per latent of the highest Δ and direction at the SAE's layer: the
    `cosine`, and the `share` of all latents whose cosine is at least as large in size.
    """
    rows = []
    best = np.argsort(-tune.delta_n)[:top]
    for kind, vector_d in tune.at_layer(layer).items():
        cosine_n = paired_cosines(dec_nd, np.broadcast_to(vector_d, dec_nd.shape))
        size_n = np.abs(cosine_n)
        for rank, latent in enumerate(best, 1):
            row: Row = {"tune": tune.name, "direction": kind, "rank": rank}
            row |= {"latent": int(latent), "delta": float(tune.delta_n[latent])}
            row |= {"cosine": float(cosine_n[latent])}
            row["share"] = float(np.mean(size_n >= size_n[latent]))
            rows.append(row)
    return rows
