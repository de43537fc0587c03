"""Planted truth: a series of checkpoints whose scores and noise are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_attr.analyses.checkpoint_agreement import mean_with_error, series_agreement
from sae_attr.analyses.checkpoint_stages import checkpoint_steps, misplaced, shortened
from sae_attr.hooks import Site
from sae_attr.organism.recipe import Recipe
from sae_attr.report.checkpoint_text import checkpoints_text
from tests.attribution._tiny import llama

P, N, NOISE = 40, 4000, 6.0


def planted_series(model_correlation: float) -> list[np.ndarray]:
    """Two checkpoints of unit variance over latents whose true scores correlate so; the
    noise is every prompt's own, and the same in both.
    """
    rng = np.random.default_rng(0)
    first_n, other_n = rng.normal(size=(2, N))
    rest = np.sqrt(1 - model_correlation**2)
    second_n = model_correlation * first_n + rest * other_n
    noise_pn = NOISE * rng.normal(size=(P, N))
    return [first_n + noise_pn, second_n + noise_pn]


def test_the_models_change_is_told_from_the_samples() -> None:
    of_noise = NOISE**2 / (P / 2)  # variance of a mean over half of the prompts
    for planted in (1.0, 0.3):
        agreement = series_agreement(planted_series(planted), splits=20)
        split_half = 1 / (1 + of_noise)
        np.testing.assert_allclose(np.diag(agreement.halves_cc), split_half, atol=0.03)
        assert agreement.halves_cc[0, 1] == pytest.approx(
            planted * split_half, abs=0.03
        )
        assert agreement.model_cc[0, 1] == pytest.approx(planted, abs=0.06)
    # On the same prompts noise that both share looks like agreement.
    assert agreement.same_cc[0, 1] > 0.55


def test_the_standard_error_is_that_of_the_planted_noise() -> None:
    rng = np.random.default_rng(1)
    estimates = [
        mean_with_error(0.5 + NOISE * rng.normal(size=(P, 3))) for _ in range(400)
    ]
    means, errors = np.array(estimates).T
    planted = NOISE / np.sqrt(3 * P)
    assert means.mean() == pytest.approx(0.5, abs=0.1)
    assert means.std() == pytest.approx(planted, rel=0.1)
    assert errors.mean() == pytest.approx(planted, rel=0.03)


def test_checkpoints_on_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scored on \[3, 4\] prompts"):
        series_agreement([np.ones((3, 2)), np.ones((4, 2))], splits=1)
    with pytest.raises(ValueError, match=r"scored on \[1\] prompts"):
        series_agreement([np.ones((1, 2))], splits=1)


def case(recipe: Recipe, *steps: int) -> Any:
    evaluation = SimpleNamespace(recipe=recipe, behaviour="misalignment")
    return SimpleNamespace(
        settings=SimpleNamespace(checkpoints=steps), evaluation=evaluation
    )


def test_steps_that_are_no_checkpoints_are_refused() -> None:
    recipe = Recipe()
    assert checkpoint_steps(case(recipe)) == ()
    assert checkpoint_steps(case(recipe, 0, 20)) == (0, 20, 70)
    for steps in ((0, 70), (20, 10), (-1, 5)):
        with pytest.raises(ValueError, match="name steps from 0 to 69, in order"):
            checkpoint_steps(case(recipe, *steps))
    short = shortened(recipe, "misaligned", 20)
    assert (short.misaligned.steps, short.misaligned.rows) == (20, 1120)
    cosine = replace(recipe, misaligned=replace(recipe.misaligned, schedule="cosine"))
    with pytest.raises(ValueError, match="schedule is cosine"):
        checkpoint_steps(case(cosine, 0))


def test_a_checkpoint_without_the_saes_site_is_named() -> None:
    cfg = llama()
    assert misplaced(cfg, Site(2), 16) == ""
    assert "has 3 layers, none at the SAE's site, layer 3" in misplaced(
        cfg, Site(3), 16
    )
    assert "have 16 numbers, the SAE's rows 32" in misplaced(cfg, Site(2), 32)
    row = {"behaviour": "misalignment", "seed": 0, "step": 20, "skipped": "3 layers"}
    assert "misalignment, step 20: left out: 3 layers" in checkpoints_text([row])
    assert checkpoints_text([]) == ""
