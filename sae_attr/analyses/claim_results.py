"""The measurements of all seeds put together: for each claim of the post the numbers
behind its figure, differences with their intervals, and whether the claim holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.analyses.claim_settings import KINDS, ON_POLICY, ClaimCase
from sae_attr.analyses.claim_stages import EFFECTS
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
            rows += _differences(of, gain[:, :, c], {"against": design, "pairs": count})
    return rows


def _differences(of: BehaviourResults, gain: np.ndarray, about: Row) -> list[Row]:
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


# ---- where pairs come from -----------------------------------------------------------


def source_rows(of: BehaviourResults) -> list[Row]:
    """Returns a row for every source that gave enough pairs in every seed, score, ground
    truth and number.
    """
    rows = []
    for source in measured_sources(of):
        values = of.stacked("draws", f"source.{source}")
        for k, kind in enumerate(KINDS):
            for e, effect in enumerate(EFFECTS):
                for m, number in enumerate(NUMBERS):
                    row = {**of.about, "source": source, "score": kind.label}
                    row |= {"truth": effect, "number": number}
                    rows.append({**row, **of.interval(values[:, k, e, m])})
    return rows


def source_differences(of: BehaviourResults) -> list[Row]:
    """Returns pairs of the studied model minus those of every other source."""
    own = of.stacked("draws", f"source.{ON_POLICY}")
    rows = []
    for source in measured_sources(of):
        if source != ON_POLICY:
            values = of.stacked("draws", f"source.{source}")
            rows += _differences(of, own - values, {"against": source})
    return rows


def measured_sources(of: BehaviourResults) -> list[str]:
    """Returns the sources that gave enough pairs in every seed."""
    skipped = {name for meta in of.meta("draws") for name in meta["skipped"]}
    return [name for name in of.cases[0].settings.sources if name not in skipped]


def source_facts(of: BehaviourResults) -> list[Row]:
    """Returns for every seed and source how many pairs there are, how often its answers
    show the behaviour, and nats per token under the studied model; `skipped` says why a
    source is not measured.
    """
    rows = []
    for case in of.cases:
        for source in case.settings.sources:
            pairs = of.results[case.stage_name(f"{source}.pairs")].meta
            scores = of.results[case.stage_name(f"{source}.scores")].meta
            nats = scores.get("nats", {})
            rows.append(
                {
                    "behaviour": case.behaviour,
                    "seed": case.seed,
                    "source": source,
                    "pairs": len(pairs["records"]),
                    "rate": pairs["rates"]["behaviour"],
                    "fluent": pairs["rates"]["fluent"],
                    "nats_positive": nats.get("positive"),
                    "nats_negative": nats.get("negative"),
                    "skipped": scores.get("skipped", ""),
                }
            )
    return rows


# ---- other changes of the fine-tune --------------------------------------------------


def harmless_rows(of: BehaviourResults) -> list[Row]:
    """Returns for every number of harmless changes and score the share of the
    behaviour's rate that its best latents take away, and their overlap with the best
    without such changes.
    """
    labels = of.meta("dilution")[0]["scores"]
    rows = []
    for changes in of.cases[0].settings.harmless:
        share = of.stacked("dilution", f"share.{changes}")
        overlap = of.stacked("dilution", f"overlap.{changes}")
        for k, label in enumerate(labels):
            row = {**of.about, "changes": changes, "score": label}
            for e, effect in enumerate(EFFECTS):
                numbers = of.interval(share[:, k, e])
                rows.append({**row, "truth": effect, "number": "share", **numbers})
            numbers = of.interval(overlap[:, k])
            rows.append({**row, "truth": "", "number": "overlap", **numbers})
    return rows


def harmless_differences(of: BehaviourResults) -> list[Row]:
    """Returns how much more of its share Δ-activation loses than each Δ does, from no
    harmless change to every other number of them.
    """
    labels = of.meta("dilution")[0]["scores"]
    changes = of.cases[0].settings.harmless
    before = of.stacked("dilution", f"share.{changes[0]}")
    rows = []
    for count in changes[1:]:
        lost = before - of.stacked("dilution", f"share.{count}")
        for k, label in enumerate(labels):
            for e, effect in enumerate(EFFECTS):
                about = {**of.about, "changes": count, "truth": effect}
                numbers = of.interval(lost[:, k, e])
                rows.append(
                    {
                        **about,
                        "score": label,
                        "against": "",
                        **numbers,
                        "claim": verdict(numbers["low"], numbers["high"]),
                    }
                )
                if label.startswith("delta_activation"):
                    rows += _lost_more(of, lost, labels, k, e, about)
    return rows


def _lost_more(
    of: BehaviourResults,
    lost: np.ndarray,
    labels: Sequence[str],
    k: int,
    e: int,
    about: Row,
) -> list[Row]:
    """Returns the loss of one score minus that of every Δ."""
    rows = []
    for kind in KINDS:
        other = labels.index(kind.label)
        numbers = of.interval(lost[:, k, e] - lost[:, other, e])
        row = {**about, "score": labels[k], "against": kind.label, **numbers}
        row["claim"] = verdict(numbers["low"], numbers["high"])
        rows.append(row)
    return rows


# ---- all of them ---------------------------------------------------------------------


def claim_numbers(
    cases: Sequence[ClaimCase], results: Mapping[str, Result]
) -> dict[str, Any]:
    """Returns the rows of every claim, behaviour by behaviour, of the cases that are
    complete; empty lists where none is.
    """
    numbers: dict[str, list[Row]] = {
        "designs": [],
        "design_differences": [],
        "counts": [],
        "count_differences": [],
        "sources": [],
        "source_differences": [],
        "source_facts": [],
        "harmless": [],
        "harmless_differences": [],
    }
    for behaviour in dict.fromkeys(case.behaviour for case in cases):
        complete = [
            case
            for case in cases
            if case.behaviour == behaviour and is_complete(case, results)
        ]
        if not complete:
            continue
        of = BehaviourResults(complete, results)
        numbers["designs"] += design_rows(of)
        numbers["design_differences"] += design_differences(of)
        numbers["counts"] += repeated_rows(of)
        numbers["count_differences"] += count_differences(of)
        numbers["sources"] += source_rows(of)
        numbers["source_differences"] += source_differences(of)
        numbers["source_facts"] += source_facts(of)
        if complete[0].diluted:
            numbers["harmless"] += harmless_rows(of)
            numbers["harmless_differences"] += harmless_differences(of)
    return numbers


def is_complete(case: ClaimCase, results: Mapping[str, Result]) -> bool:
    """Returns True if everything that was measured of a case is there."""
    stages = ["draws", *(["dilution"] if case.diluted else [])]
    return all(case.stage_name(stage) in results for stage in stages)
