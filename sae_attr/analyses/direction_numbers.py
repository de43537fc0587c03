"""The numbers of a study of directions on organisms, from the results of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.direction_adapters import adapter_rows
from sae_attr.analyses.direction_record import DirectionRecord
from sae_attr.analyses.direction_removals import removals
from sae_attr.analyses.direction_results import WRITES, MeasuredTune, tune_numbers
from sae_attr.analyses.direction_settings import DirectionCase
from sae_attr.analyses.direction_stages import records_of
from sae_attr.attribution.presets import decoder_rows
from sae_attr.steering.paired import EffectSettings
from sae_attr.store import Result

Row = dict[str, Any]
Results = Mapping[str, Result]


def direction_numbers(
    cases: Sequence[DirectionCase], results: Results
) -> dict[str, list[Row]]:
    """Returns the rows of `tune_numbers`, `answers` and `adapters` of the cases that are
    complete, each with its seed.
    """
    numbers: dict[str, list[Row]] = {}
    for case in cases:
        if not is_complete(case, results):
            continue
        decoder = case.setup.decoder
        of_case = tune_numbers(
            measured_tunes(case, results),
            np.asarray(decoder_rows(decoder, np.arange(len(decoder))), np.float64),
            case.recipe.sae.layer,
            top=case.settings.top,
            settings=EffectSettings(resamples=case.settings.resamples, seed=case.seed),
        )
        of_case["answers"] = answer_counts(case, results)
        of_case["adapters"] = adapter_rows(case, results)
        for name, rows in of_case.items():
            with_seed = [{"seed": case.seed, **row} for row in rows]
            numbers.setdefault(name, []).extend(with_seed)
    return numbers


def is_complete(case: DirectionCase, results: Results) -> bool:
    """Returns True if everything that was measured of a case is there."""
    for tune in case.settings.tunes:
        for part in ("directions", "transfer", "adapters"):
            if case.stage_name(tune, part) not in results:
                return False
    return True


def measured_tunes(case: DirectionCase, results: Results) -> list[MeasuredTune]:
    """Reads what was measured of every fine-tune of a case."""
    s, records = case.settings, records_of(case, results)
    tunes = []
    for name in s.tunes:
        transfer = results[case.stage_name(name, "transfer")].arrays
        directions = results[case.stage_name(name, "directions")].arrays
        behaviour_cp = np.asarray(transfer["behaviour_cp"])
        tune = MeasuredTune(
            name,
            records[name],
            written_rows(results[case.stage_name(name, "adapter")]),
            removals(records, s.removed, s.draws),
            behaviour_cp,
            np.asarray(transfer["coherence_cp"]),
            np.arange(behaviour_cp.shape[1]),
            np.asarray(directions["delta_n"]),
        )
        tunes.append(tune)
    return tunes


def written_rows(adapter: Result) -> dict[tuple[str, int], np.ndarray]:
    """Returns (matrix, layer) -> B `[r, d]` of every adapter that writes to the residual
    stream.
    """
    written = {}
    for name in WRITES:
        if f"{name}.b" in adapter.arrays:
            for layer, b_rd in enumerate(np.asarray(adapter.arrays[f"{name}.b"])):
                if b_rd.any():
                    written[name, layer] = b_rd
    return written


def answer_counts(case: DirectionCase, results: Results) -> list[Row]:
    """Returns a row per fine-tune: answers that were asked for, that are graded, that
    show the behaviour, and prompts with both sides.
    """
    records: dict[str, DirectionRecord] = records_of(case, results)
    rows = []
    for tune, record in records.items():
        result = results[case.stage_name(tune, "answers")]
        shown = int(np.sum(np.asarray(result.arrays["side_r"]) > 0))
        row: Row = {"tune": tune, **result.meta, "shown": shown}
        row["paired"] = int((record.sums.answers_p2 > 0).all(1).sum())
        rows.append(row)
    return rows
