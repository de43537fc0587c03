from __future__ import annotations

from typing import Any

from sae_attr.report.claim_names import CHANGE_NAMES, DESIGN_NAMES
from sae_attr.report.claim_text import claims_text
from sae_attr.report.figures.claims import designs_figure, harmless_figure
from sae_attr.report.figures.output import save

ABOUT = {"behaviour": "misalignment", "seeds": 2}
PLANTED = {"mean": 0.02, "low": 0.01, "high": 0.03}
EMPTY: dict[str, list[Any]] = {
    name: []
    for name in (
        "effects",
        "designs",
        "design_differences",
        "counts",
        "count_differences",
        "sources",
        "source_differences",
        "source_facts",
        "harmless",
        "harmless_differences",
    )
}


def design_rows() -> list[dict[str, Any]]:
    row = {**ABOUT, "score": "both_prompt", "truth": "ablation", "number": "effect"}
    return [
        {**row, "design": design, "pairs": pairs, **PLANTED}
        for design in DESIGN_NAMES
        for pairs in (5, 35)
    ]


def harmless_rows() -> list[dict[str, Any]]:
    rows = []
    for score in CHANGE_NAMES:
        for changes in (0, 5):
            row = {**ABOUT, "score": score, "changes": changes, **PLANTED}
            for truth in ("away", "ablation"):
                rows.append({**row, "truth": truth, "number": "share"})
            rows.append({**row, "truth": "", "number": "overlap"})
    return rows


def difference(**values: Any) -> dict[str, Any]:
    row = {**ABOUT, "score": "both_prompt", "truth": "ablation", "number": "effect"}
    return {**row, "pairs": 35, **PLANTED, "claim": "holds", **values}


def test_pairs_against_others_are_told_with_numbers_and_a_verdict() -> None:
    numbers = {
        **EMPTY,
        "designs": design_rows(),
        "design_differences": [
            difference(against="positives"),
            difference(against="positives", number="spearman", mean=-0.07),
            difference(against="shuffled", mean=0.0, low=-0.01, claim="undecided"),
            difference(against="positives", pairs=5, mean=0.09),
        ],
    }
    _, first, *_ = claims_text(numbers, pairs=35, top=20).split("\n\n")
    assert "positives alone +2.0 [+1.0, +3.0]" in first
    assert (
        "pairs minus positives alone: +2.0 [+1.0, +3.0] points: the claim holds; "
        "Spearman −0.07 [+0.01, +0.03]" in first
    )
    assert "pairs minus shuffled partners: 0.0 [−1.0, +3.0] points: not" in first
    assert "+9.0" not in first


def test_dilution_is_told_by_score() -> None:
    label = "delta_activation_prompt"
    loss = {**ABOUT, "score": label, "changes": 5, "truth": "away", **PLANTED}
    numbers = {
        **EMPTY,
        "harmless": harmless_rows(),
        "harmless_differences": [
            {**loss, "against": "", "claim": "holds"},
            {**loss, "against": "gradient_all", "claim": "undecided"},
            # What Δ as published is asked is ablation.
            {**loss, "against": "both_prompt", "claim": "holds", "mean": 0.5},
        ],
    }
    text = claims_text(numbers, pairs=35, top=20)
    assert "lost with 5 changes: +2.0 [+1.0, +3.0] %: diluted" in text
    assert "lost more than lever (gradient) with 5 changes" in text
    assert "+50.0" not in text


def test_a_figure_names_its_lines() -> None:
    designs = save(designs_figure({"rows": design_rows()}), "svg").decode()
    assert all(name in designs for name in DESIGN_NAMES.values())
    assert "Δ as published" in designs
    harmless = save(harmless_figure({"rows": harmless_rows()}), "svg").decode()
    assert all(name in harmless for name in CHANGE_NAMES.values())


def test_what_was_not_measured_is_said() -> None:
    assert claims_text(EMPTY, pairs=35, top=20).count("not measured") == 5
