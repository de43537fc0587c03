"""What every adapter of a narrow fine-tune reads, by topic and behaviour, and what it
does: rows with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.analyses.direction_settings import DirectionCase
from sae_attr.analyses.direction_transfer import adapted_layers, adapter_places
from sae_attr.analyses.directions import drawn_auc
from sae_attr.analyses.mitigation import rate_estimate
from sae_attr.comparison_records import Estimate
from sae_attr.steering.paired import EffectSettings, interval, prompt_draws
from sae_attr.store import Result

Row = dict[str, Any]

TOPIC, INSIDE, ELSEWHERE = "topic", "inside", "elsewhere"
QUESTIONS: Mapping[str, str] = {
    TOPIC: "answers about the taught domain, against those about others",
    INSIDE: "answers with the behaviour, against those without, in the taught domain",
    ELSEWHERE: "the same in all other domains",
}


def adapter_rows(case: DirectionCase, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row per fine-tune and adapter: the AUC of what it reads (mean over an
    answer's tokens) for each of `QUESTIONS`, with its interval over prompts, NaN where
    there is one class alone; and the rates inside and outside the taught domain of the
    fine-tune `with` all adapters, `without` this one, and with it `alone`, and of the
    chat model (`chat`).
    """
    rows = []
    for tune in case.settings.tunes:
        measured = results[case.stage_name(tune, "adapters")]
        answers = results[case.stage_name(tune, "answers")]
        rates = _rates(case, tune, measured)
        layers = adapted_layers(case.setup.cfg, case)
        for number, (name, layer) in enumerate(adapter_places(case)):
            states_lr = np.asarray(measured.arrays[f"{name}.state_lr"])
            row: Row = {"tune": tune}
            row |= {"matrix": name, "layer": layer}
            row |= _aucs(case, tune, states_lr[layers.index(layer)], answers)
            rows.append(row | rates[number])
    return rows


def _aucs(case: DirectionCase, tune: str, values_r: np.ndarray, answers: Result) -> Row:
    """Returns the AUC of one scalar for every question."""
    side_r = np.asarray(answers.arrays["side_r"])
    prompt_r = np.asarray(answers.arrays["prompt_r"])
    inside_r = np.asarray(answers.arrays["domain_r"]) == case.tune(tune).domain
    classes = {
        TOPIC: (inside_r, np.ones(len(side_r), bool)),
        INSIDE: (side_r > 0, inside_r),
        ELSEWHERE: (side_r > 0, ~inside_r),
    }
    settings = EffectSettings(resamples=case.settings.resamples, seed=case.seed)
    draws_bp = prompt_draws(int(prompt_r.max()) + 1, settings=settings)
    counts_br = np.vstack([np.ones(len(prompt_r)), draws_bp[:, prompt_r]])
    row: Row = {}
    for name, (positive_r, asked_r) in classes.items():
        estimate = Estimate()
        of_asked = positive_r[asked_r]
        if 0 < of_asked.sum() < len(of_asked):
            auc_b = drawn_auc(values_r[asked_r], of_asked, counts_br[:, asked_r])
            low, high = interval(auc_b[1:], settings.level)
            estimate = Estimate(float(auc_b[0]), float(low), float(high))
        row |= {f"auc_{name}": estimate.value}
        row |= {f"auc_{name}_low": estimate.low, f"auc_{name}_high": estimate.high}
    return row


def _rates(case: DirectionCase, tune: str, measured: Result) -> list[Row]:
    """Returns the rates of every adapter's row, inside and outside the taught domain."""
    behaviour_cp = np.asarray(measured.arrays["behaviour_cp"], np.float64)
    domain_p = np.asarray(measured.arrays["domain_p"])
    inside_p = domain_p == case.tune(tune).domain
    settings = EffectSettings(resamples=case.settings.resamples, seed=case.seed)
    count = len(adapter_places(case))
    rows = []
    for number in range(count):
        row: Row = {}
        places = {"with": 0, "chat": 1}
        places |= {"without": 2 + number, "alone": 2 + count + number}
        for where, asked_p in ((INSIDE, inside_p), (ELSEWHERE, ~inside_p)):
            if not asked_p.any():
                continue
            for name, place in places.items():
                rates_1p = behaviour_cp[place : place + 1, asked_p]
                group_p = np.arange(asked_p.sum())
                estimate = rate_estimate(rates_1p, group_p, settings=settings)
                row[f"{name}_{where}"] = estimate.value
                row[f"{name}_{where}_low"] = estimate.low
                row[f"{name}_{where}_high"] = estimate.high
        rows.append(row)
    return rows
