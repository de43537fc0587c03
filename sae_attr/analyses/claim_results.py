"""The measurements of all seeds put together: for each claim of the post the numbers
behind its figure, differences with their intervals, and whether the claim holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.claim_rows import (
    BehaviourResults,
    Row,
    count_differences,
    design_differences,
    design_rows,
    differences,
    effect_facts,
    repeated_rows,
    verdict,
)
from sae_attr.analyses.claim_settings import KINDS, ON_POLICY, ClaimCase
from sae_attr.analyses.claim_stages import EFFECTS
from sae_attr.analyses.pair_draws import NUMBERS
from sae_attr.store import Result

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
    on_policy = of.stacked("draws", f"source.{ON_POLICY}")
    rows = []
    for source in measured_sources(of):
        if source != ON_POLICY:
            values = of.stacked("draws", f"source.{source}")
            rows += differences(of, on_policy - values, {"against": source})
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
        "effects": [],
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
        numbers["effects"] += effect_facts(of)
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
