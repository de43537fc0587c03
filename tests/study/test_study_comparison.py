"""Two finished studies compared: bins of firing rate, titles, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_attr.store import Result
from sae_attr.study.study_comparison import (
    ComparisonSettings,
    compare_studies,
    first_rows,
    rate_strata,
)

N = 40


def finished(folder: str, ranked: list[int], *, sae: str = "a") -> Any:
    """A study of one case that ranks some latents before all others, and steered
    them.
    """
    scores_n = np.zeros(N, np.float32)
    scores_n[ranked] = np.arange(len(ranked), 0, -1)
    summary = {
        "primary": "faithful",
        "presets": {"faithful": {"gating": "both", "tokens": "prompt"}},
    }
    rates_n = np.linspace(0, 1, N)
    change_u = np.full(len(ranked), 0.25)
    toward = {f"toward.{name}_u": change_u for name in ("change", "low", "high")}
    results = {
        "attribute": ({"both_prompt": scores_n, "firing_rate": rates_n}, {"summary": summary}),
        "select": (
            {"method.delta_attribution": np.array(ranked), "latents_u": np.array(ranked), "push_u": np.ones(len(ranked))},
            {},
        ),
        "effects": (toward, {"base_rates": {"toward": 0.125}}),
    }  # fmt: skip
    case = SimpleNamespace(
        name="em",
        settings=SimpleNamespace(title="Misaligned"),
        study=SimpleNamespace(methods=("delta_attribution",)),
        setup=SimpleNamespace(sae_key=sae),
        files=SimpleNamespace(sae=f"{sae}.sae"),
    )

    def result(_: Any, stage: str) -> Result:
        arrays, meta = results[stage]
        return Result(arrays, meta, "", 0.0, True, None)  # pyright: ignore[reportArgumentType]

    return SimpleNamespace(workdir=folder, cases=lambda: (case,), result=result)


def test_the_first_latent_of_each_is_looked_up_in_the_other() -> None:
    one, other = finished("runs/one", [7, 30, 31]), finished("runs/two", [30, 9])
    (record,) = compare_studies([one, other], ComparisonSettings())
    first, second = first_rows([record])
    assert first["study"] == "runs/one: Misaligned"
    assert (first["latent"], first["rank there"], first["of"]) == (7, 3 + 7, N)
    assert (first["toward"], first["from"]) == (25, 12.5)
    assert np.isnan(first["toward there"])  # the other study did not steer it
    assert (second["latent"], second["rank there"], second["toward there"]) == (30, 2, 25)  # fmt: skip
    assert record.shared == (30,)
    # Of one bin each study draws 30 or 31; the whole dictionary would make it rarer.
    (plain,) = compare_studies([one, other], ComparisonSettings(strata=1))
    assert record.overlap_p > plain.overlap_p
    assert plain.expected == pytest.approx(3 * 2 / N)


def test_bins_are_of_equal_size_and_dead_latents_one_of_their_own() -> None:
    strata_n = rate_strata(np.array([0.0, 0.4, 0.1, 0.3, 0.2]), 2)
    assert strata_n is not None
    assert strata_n.tolist() == [0, 2, 1, 2, 1]
    assert rate_strata(np.array([0.1, np.nan]), 2) is None
    assert rate_strata(np.array([0.1, 0.2]), 1) is None


def test_what_cannot_be_compared() -> None:
    one, other = finished("runs/one", [7]), finished("runs/two", [7], sae="b")
    with pytest.raises(ValueError, match="nothing to compare it with"):
        compare_studies([one], ComparisonSettings())
    with pytest.raises(ValueError, match=r"different SAEs \(a\.sae, b\.sae\)"):
        compare_studies([one, other], ComparisonSettings())
    with pytest.raises(ValueError, match="first_by 'rank' is unknown"):
        ComparisonSettings(first_by="rank")  # pyright: ignore[reportArgumentType]
