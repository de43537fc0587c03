"""The measurements of all seeds of one behaviour put together, for the claims on pairs
and their number: rows behind the figures, and differences with their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.analyses.claim_settings import KINDS, ClaimCase
from sae_attr.analyses.claim_stages import EFFECTS, effects_of
from sae_attr.analyses.pair_draws import (
    DESIGNS,
    NUMBERS,
    PAIRS,
    REPEATED,
    interval,
)
from sae_attr.store import Result

COMPARED_AT = 35  # pairs of the post's first case

Row = dict[str, Any]


def headline_count(counts: Sequence[int]) -> int:
    """Returns the number of pairs at which designs are compared: the one nearest to the
    post's.
    """
    return min(counts, key=lambda count: abs(count - COMPARED_AT))


@dataclass(frozen=True, eq=False)
class BehaviourResults:
    """Results of all seeds of one behaviour.

    Args:
      cases: a seed each.
      results: stage -> result.
    """

    cases: Sequence[ClaimCase]
    results: Mapping[str, Result]

    def stacked(self, stage: str, array: str) -> np.ndarray:
        """Returns an array of a stage with the seeds as its first axis."""
        return np.stack([self._arrays(case, stage)[array] for case in self.cases])

    def meta(self, stage: str) -> list[Mapping[str, Any]]:
        """Returns the meta of a stage, a seed each."""
        return [self.results[case.stage_name(stage)].meta for case in self.cases]

    def _arrays(self, case: ClaimCase, stage: str) -> Mapping[str, Any]:
        return self.results[case.stage_name(stage)].arrays

    @property
    def about(self) -> Row:
        """Returns what every row begins with."""
        return {"behaviour": self.cases[0].behaviour, "seeds": len(self.cases)}

    def interval(self, values_sb: np.ndarray) -> dict[str, float]:
        """Returns mean and interval of a number of all seeds and draws."""
        return interval(values_sb, resamples=self.cases[0].settings.resamples)


def verdict(low: float, high: float) -> str:
    """Returns what an interval says of the claim that a difference is above 0: holds |
    reversed | undecided.
    """
    if low > 0:
        return "holds"
    return "reversed" if high < 0 else "undecided"


def effect_facts(of: BehaviourResults) -> list[Row]:
    """Returns for every seed, fine-tune and ground truth the behaviour's rate without an
    edit, the mean effect of all latents that were measured, which is what random ones
    do, and that of the best.
    """
    rows = []
    for case in of.cases:
        for changes, e in {0: case.evaluation, **case.diluted}.items():
            effects = of.results[e.stage_name("effects")]
            for effect, effect_n in effects_of(effects).items():
                measured_n = np.sort(effect_n[np.isfinite(effect_n)])
                rows.append(
                    {
                        "behaviour": case.behaviour,
                        "seed": case.seed,
                        "changes": changes,
                        "truth": effect,
                        "base": effects.meta["base"][effect],
                        "latents": len(measured_n),
                        "mean_effect": float(measured_n.mean()),
                        "best_effect": float(measured_n[-case.settings.top :].mean()),
                    }
                )
    return rows


# ---- pairs against other designs, and their number -----------------------------------


def design_rows(of: BehaviourResults) -> list[Row]:
    """Returns a row for every score, design, number of pairs, ground truth and number of
    the agreement: what the top latents of that many pairs do.
    """
    counts = of.cases[0].settings.counts
    truth = of.stacked("draws", "truth")
    rows = []
    for k, kind in enumerate(KINDS):
        for d, design in enumerate(DESIGNS):
            for c, count in enumerate(counts):
                for e, effect in enumerate(EFFECTS):
                    for m, number in enumerate(NUMBERS):
                        rows.append(
                            {
                                **of.about,
                                "score": kind.label,
                                "design": design,
                                "pairs": count,
                                "truth": effect,
                                "number": number,
                                **of.interval(truth[:, k, d, c, e, m]),
                            }
                        )
    return rows


def design_differences(of: BehaviourResults) -> list[Row]:
    """Returns pairs minus each other design, draw by draw, for every number of pairs."""
    truth = of.stacked("draws", "truth")
    names = list(DESIGNS)
    rows = []
    for d, design in enumerate(names):
        if design == PAIRS:
            continue
        gain = truth[:, :, names.index(PAIRS)] - truth[:, :, d]
        for c, count in enumerate(of.cases[0].settings.counts):
            rows += differences(of, gain[:, :, c], {"against": design, "pairs": count})
    return rows


def differences(of: BehaviourResults, gain: np.ndarray, about: Row) -> list[Row]:
    """Returns a row with a verdict for every score, ground truth and number.

    Args:
      gain: `[seed, score, effect, NUMBERS, draw]`, above 0 where the claim holds.
    """
    rows = []
    for k, kind in enumerate(KINDS):
        for e, effect in enumerate(EFFECTS):
            for m, number in enumerate(NUMBERS):
                numbers = of.interval(gain[:, k, e, m])
                row = {**of.about, "score": kind.label, **about}
                row |= {"truth": effect, "number": number, **numbers}
                row["claim"] = verdict(numbers["low"], numbers["high"])
                rows.append(row)
    return rows


def repeated_rows(of: BehaviourResults) -> list[Row]:
    """Returns how far the ranking of so many pairs is that of the pairs which were not
    drawn, for every score and number of pairs.
    """
    repeated = of.stacked("draws", "repeated")
    rows = []
    for k, kind in enumerate(KINDS):
        for c, count in enumerate(of.cases[0].settings.counts):
            for m, number in enumerate(REPEATED):
                row = {**of.about, "score": kind.label, "pairs": count}
                row["number"] = number
                rows.append({**row, **of.interval(repeated[:, k, c, m])})
    return rows


def count_differences(of: BehaviourResults) -> list[Row]:
    """Returns the largest number of pairs minus every other, for how well the ranking
    repeats.
    """
    counts = of.cases[0].settings.counts
    most = int(np.argmax(counts))
    repeated = of.stacked("draws", "repeated")
    rows = []
    for c, count in enumerate(counts):
        for k, kind in enumerate(KINDS):
            for m, number in enumerate(REPEATED):
                if c == most:
                    continue
                numbers = of.interval(repeated[:, k, most, m] - repeated[:, k, c, m])
                row = {**of.about, "score": kind.label, "number": number}
                row |= {"pairs": counts[most], "against": count, **numbers}
                row["claim"] = verdict(numbers["low"], numbers["high"])
                rows.append(row)
    return rows
