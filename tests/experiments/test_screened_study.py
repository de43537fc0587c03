"""Studies that screen latents by held-out pairs, on the miniature: what is refused, and
a whole study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_attr.store import stored_results
from sae_attr.study.cost import Reading, case_costs
from sae_attr.study.stage_order import study_stages
from tests._compile import quick_compile
from tests.experiments import _demo
from tests.experiments.test_case_study import run
from tests.experiments.test_exact_study import exact_config, opened

pytestmark = pytest.mark.usefixtures("quick")
SCREEN = {"screen": 20, "screen_pairs": 12, "screen_strength": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"screen": -1}, "screen is -1; give a number of latents"),
        ({"screen_by": "luck"}, "screen_by 'luck' is unknown; choose of delta_attr"),
        ({"screen_rank": "up"}, "screen_rank 'up' is unknown; choose of both, away"),
        (
            {"screen_strength": 0.0},
            "strength of screening is 0.0, which steers nothing",
        ),
        ({"screen_strength": -1.0}, "screen_strength is -1.0; give its size"),
        ({"screen_pairs": 1}, "screen_pairs is 1; a standard error needs at least 2"),
    ],
)
def test_settings_that_screen_nothing_are_refused(
    miniature: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(miniature, tmp_path, **(SCREEN | changes))


def test_the_cost_counts_every_candidate_on_every_pair(
    miniature: Path, tmp_path: Path
) -> None:
    case = opened(miniature, tmp_path, **SCREEN)
    reading = Reading(layers=2, above=1, widths={"pairs": 10})
    costs = {cost.stage: cost for cost in case_costs(case, reading)}
    steered = case.study.top * 2 + case.study.random
    cost = costs["rude.screen.away"]
    assert cost.exact == (1 + 20 + steered) * 12
    assert cost.exact_tokens == cost.exact * 10  # texts of one token are not read
    assert cost.read == cost.exact_tokens
    # One more method is steered.
    without = opened(miniature, tmp_path, screen=0)
    before = {cost.stage: cost.exact for cost in case_costs(without, reading)}
    assert "rude.screen.away" not in before
    assert costs["rude.rates.away"].exact > before["rude.rates.away"]


@pytest.fixture(scope="session")
def screened_study(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """The workdir of a finished study with a screen."""
    workdir = tmp_path_factory.mktemp("screened") / "studied"
    with quick_compile():
        run(exact_config(miniature, **SCREEN), workdir)
    return workdir


@pytest.mark.slow
def test_a_study_screens_and_steers_the_best_by_the_screen(
    screened_study: Path, miniature: Path
) -> None:
    case = opened(miniature, screened_study, **SCREEN)
    results = stored_results(case.runtime.store, study_stages([case]))
    pairs = results["rude.pair"].meta
    ranked = {record["id"] for record in pairs["records"]}
    held = {record["id"] for record in pairs["held_out"]}
    assert len(held) == 12
    assert not ranked & held
    for direction, sign in (("away", -1), ("toward", 1)):
        screen = results[f"rude.screen.{direction}"]
        latents = np.asarray(screen.arrays["latents_k"])
        change_k = np.asarray(screen.arrays["change_kp"]).mean(1)
        assert latents[(sign * change_k).argmax()] == _demo.PLANTED
        assert screen.meta["strength"] == sign * 0.5
    selection = results["rude.select"].arrays
    assert selection["method.screened"][0] == _demo.PLANTED
    assert not np.isin(selection["method.screened"], selection["method.random"]).any()
    assert set(selection["latents_u"]) <= set(latents) | {-1}
    result = json.loads((screened_study / "result.json").read_text())
    methods = {count["method"] for count in result["cases"]["rude"]["counts"]}
    assert "screened" in methods
