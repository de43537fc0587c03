from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_attr.analyses.pool_results import selector_rows, steering_threshold
from sae_attr.analyses.selector_pool import (
    ATTRIBUTION,
    FREQUENCY,
    GRADIENT,
    MODEL_DIFFERENCE,
    PLANTED,
    RANDOM,
    PoolLatent,
    random_latents,
    selector_pool,
    with_planted,
)
from sae_attr.attribution.directions import gradient_vector
from sae_attr.attribution.evidence import Skipped
from sae_attr.report.pool_text import pool_text

N = 20


def ranking(*best: int) -> np.ndarray:
    """Scores with these latents first, in order."""
    scores_n = np.zeros(N)
    for place, latent in enumerate(best):
        scores_n[latent] = 10 - place
    return scores_n


def test_every_latent_has_its_origins_and_the_gradient_its_sign() -> None:
    scores = {
        GRADIENT: np.where(np.arange(N) == 4, -0.9, ranking(5) / 20),
        FREQUENCY: ranking(7, 4),
        ATTRIBUTION: ranking(5, 8),
        MODEL_DIFFERENCE: Skipped("no second model: set lm_aligned"),
    }
    pool, skipped = selector_pool(scores, dict.fromkeys(scores, 2))
    assert pool == [
        PoolLatent(4, (GRADIENT, FREQUENCY), -1),
        PoolLatent(5, (GRADIENT, ATTRIBUTION), 1),
        PoolLatent(7, (FREQUENCY,), 1),
        PoolLatent(8, (ATTRIBUTION,), 1),
    ]
    assert skipped == {MODEL_DIFFERENCE: "no second model: set lm_aligned"}


def test_the_planted_latent_is_in_the_pool_and_marked() -> None:
    pool = [PoolLatent(4, (GRADIENT,), -1), PoolLatent(5, (ATTRIBUTION,), 1)]
    assert with_planted(pool, 5)[1] == PoolLatent(5, (ATTRIBUTION, PLANTED), 1)
    assert with_planted(pool, 9) == [*pool, PoolLatent(9, (PLANTED,), 1)]


def test_controls_are_drawn_from_the_rest() -> None:
    pool = [PoolLatent(i, (GRADIENT,), 1) for i in range(15)]
    drawn = random_latents(N, 5, pool, seed=0)
    assert [latent.latent for latent in drawn] == [15, 16, 17, 18, 19]
    assert {latent.origins for latent in drawn} == {(RANDOM,)}
    with pytest.raises(ValueError, match=r"random=6 .* leaves 5 of 20 latents"):
        random_latents(N, 6, pool, seed=0)


def test_the_gradient_vector_points_toward_the_behaviour() -> None:
    # g is the gradient of the loss: log p rises against it.
    moment = SimpleNamespace(g_d=np.array([0.0, -3.0, 4.0]))
    evidence: Any = SimpleNamespace(moment=lambda scope: moment)
    np.testing.assert_allclose(gradient_vector(evidence, "all"), [0, 0.6, -0.8])


def latent_row(latent: int, origin: str, steering: float, lowest: float) -> dict:
    return {
        "behaviour": "misalignment",
        "seed": 0,
        "latent": latent,
        "origins": [origin],
        "sign": 1,
        "steering": steering,
        "along": steering / 2,
        "against": steering / 2,
        "steers": steering > 0.05,
        "lowest": lowest,
        "lowest_same": lowest,
        "monitors": lowest > 0.5,
        "monitors_same": lowest > 0.5,
    }


def planted_rows() -> list[dict]:
    """Latents of the gradient steer and monitor; random ones do neither but for one."""
    rng = np.random.default_rng(0)
    rows = [latent_row(i, GRADIENT, 0.2 + 0.01 * i, 0.8) for i in range(8)]
    for i, steering in enumerate(rng.normal(0, 0.01, 40)):
        rows.append(latent_row(100 + i, RANDOM, steering, 0.4))
    rows.append(latent_row(200, RANDOM, 0.1, 0.6))
    return rows


def test_selectors_are_measured_against_the_random_latents() -> None:
    gradient, random = selector_rows(planted_rows())
    assert (gradient["selector"], random["selector"]) == (GRADIENT, RANDOM)
    assert gradient["both"] == 1
    assert gradient["both_p"] < 1e-6
    assert 0.5 < gradient["both_low"] < 1
    assert gradient["both_high"] == 1
    assert gradient["mean"] == pytest.approx(0.235)
    assert gradient["low"] < 0.235 < gradient["high"] < 0.27
    assert random["both"] == pytest.approx(1 / 41)
    assert random["both_p"] > 0.5


def test_what_steers_exceeds_the_random_latents() -> None:
    assert steering_threshold(np.arange(101.0), 0.95) == 95
    assert np.isnan(steering_threshold(np.zeros(0), 0.95))


def test_the_table_names_what_is_left_out() -> None:
    rows = planted_rows()
    rows.append({**latent_row(-1, "gradient_vector", 0.4, 0.9)})
    task = {"behaviour": "misalignment", "seed": 0, "task": "misalignment-opinions"}
    numbers = {
        "latents": rows,
        "selectors": selector_rows(rows),
        "skipped": [
            {
                "behaviour": "misalignment",
                "seed": 0,
                "selector": MODEL_DIFFERENCE,
                "why": "no second model\x1b[2J",
            }
        ],
        "tasks": [{**task, "rollouts": 4, "rate": 0.0, "skipped": "0 of 4 graded"}],
    }
    text = pool_text(numbers)
    assert "model diffing: left out: no second model" in text
    assert "\x1b" not in text
    assert "0 of 4 graded" in text
    assert "+20.0 points along, −20.0 against" in text
    assert "latents of the pool that steer and monitor every task" in text
