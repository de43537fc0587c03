"""Planted truth: paths whose turns, and curves whose peaks and rises, are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.transition import (
    largest_rise,
    local_cosine,
    mean_distance,
    peak,
    principal_path,
    running_mean,
    sharpest_turn,
    similarity_to,
)
from sae_attr.analyses.transition_settings import EventSettings, TransitionSettings
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, init_lora
from sae_attr.lm.params import init_params
from sae_attr.organism.adapter_path import (
    check_path_adapter,
    train_path,
    with_adapter,
)
from sae_attr.organism.parts import Trainer
from sae_attr.organism.recipe import TrainingRecipe, miniature
from sae_attr.parallel import make_mesh
from sae_attr.report.transition_text import transition_text

LAGS = (5, 10, 15)
TURN, STEPS = 40, 80


def turning_path(noise: float = 0.0) -> np.ndarray:
    """40 steps along a, then 40 along b, at a right angle to it."""
    steps = np.arange(STEPS + 1)
    path_so = np.zeros((STEPS + 1, 6))
    path_so[:, 0] = np.minimum(steps, TURN)
    path_so[:, 1] = np.maximum(steps - TURN, 0)
    return path_so + noise * np.random.default_rng(0).normal(size=path_so.shape)


@pytest.mark.parametrize("lag", LAGS)
def test_the_planted_turn_is_where_the_local_cosine_is_smallest(lag: int) -> None:
    cosine_s = local_cosine(turning_path(), lag)
    assert sharpest_turn(cosine_s) == TURN
    assert cosine_s[TURN] == pytest.approx(0, abs=1e-12)
    # Away from it the path is straight, and at its ends the cosine is undefined.
    np.testing.assert_allclose(cosine_s[lag : TURN - lag + 1], -1)
    np.testing.assert_allclose(cosine_s[TURN + lag : -lag], -1)
    assert np.isnan(cosine_s[:lag]).all()
    assert np.isnan(cosine_s[-lag:]).all()
    noisy = sharpest_turn(local_cosine(turning_path(noise=0.3), lag), below=0.7)
    assert noisy is not None
    assert abs(noisy - TURN) <= lag


def test_a_straight_path_has_no_turn() -> None:
    path_so = np.arange(STEPS + 1)[:, None] * np.array([1.0, -2.0, 0.5])
    for lag in LAGS:
        cosine_s = local_cosine(path_so, lag)
        np.testing.assert_allclose(cosine_s[lag:-lag], -1)
        assert sharpest_turn(cosine_s, below=0.7) is None


def test_a_path_that_has_arrived_does_not_turn_by_its_wandering() -> None:
    arrived_so = np.repeat(turning_path()[-1:], 40, axis=0)
    rng = np.random.default_rng(1)
    wandering_so = arrived_so + np.cumsum(0.02 * rng.normal(size=(40, 6)), axis=0)
    path_so = np.concatenate([turning_path(), wandering_so])
    cosine_s = local_cosine(path_so, 5, least_share=0.5)
    assert sharpest_turn(cosine_s) == TURN
    assert np.isnan(cosine_s[-30:]).all()
    assert np.isfinite(local_cosine(path_so, 5)[-30:-5]).all()
    # As published: by the length alone.
    assert np.isnan(local_cosine(path_so, 5, least_norm=1.0)[-30:]).all()


def test_bad_paths_are_named() -> None:
    with pytest.raises(ValueError, match=r"9 checkpoints, and a lag of 5 needs .* 11"):
        local_cosine(np.ones((9, 3)), 5)
    with pytest.raises(ValueError, match=r"least_norm is 0\.002: .* does not move"):
        local_cosine(np.ones((11, 3)), 5, least_norm=0.002)
    with pytest.raises(ValueError, match=r"\[11, 2, 3\]: .* take an adapter of rank 1"):
        local_cosine(np.ones((11, 2, 3)), 5)
    with pytest.raises(ValueError, match="does not move"):
        principal_path(np.ones((11, 3)))
    with pytest.raises(ValueError, match="window of 4 has no middle"):
        running_mean(np.ones(9), 4)
    with pytest.raises(ValueError, match=r"has 4 points, .* needs at least 7"):
        largest_rise(np.ones(4), 3)


def test_the_path_in_its_principal_components() -> None:
    path = principal_path(turning_path())
    assert path.share_m.sum() == pytest.approx(1)
    # Both legs are as long: the first component is their diagonal, along which the path
    # begins and ends equally far from the middle.
    assert path.along_sm[-1, 0] == pytest.approx(-path.along_sm[0, 0])
    assert path.along_sm[-1, 0] > 0
    last = similarity_to(turning_path(), turning_path()[-1])
    assert np.isnan(last[0])
    np.testing.assert_allclose(last[[TURN, -1]], [np.sqrt(0.5), 1])


def test_events_of_curves() -> None:
    steps = np.arange(101.0)
    bump_s = np.exp(-(((steps - 30) / 8) ** 2))
    bump_s[70] = 1.5  # one batch
    assert peak(bump_s) == 70
    assert peak(bump_s, 5) == 30
    assert peak(np.concatenate([[np.nan], bump_s]), 5) == 31
    assert peak(steps) is None
    assert peak(-steps) is None
    rate_s = 1 / (1 + np.exp(-(steps - 44) / 3))
    assert largest_rise(rate_s, 5) == 44
    assert largest_rise(0.01 * rate_s, 5, least=0.05) is None


def test_distances_are_over_the_runs_that_have_both() -> None:
    distance = mean_distance([40, 44, None, 42, 46], [30, 32, 31, 33, None])
    assert distance.runs == 3
    assert distance.mean == pytest.approx((10 + 12 + 9) / 3)
    assert 9 <= distance.low < distance.mean < distance.high <= 12
    assert distance.sd == pytest.approx(np.std([10, 12, 9], ddof=1))
    assert np.isnan(mean_distance([None], [3]).mean)
    assert np.isnan(mean_distance([4, 5], [3, 3]).low)


def tiny() -> tuple[Trainer, LMConfig, Any]:
    recipe = miniature()
    cfg = config_from_hf(recipe.hf())
    return (
        Trainer(recipe, make_mesh("data=1"), False),
        cfg,
        init_params(cfg, jax.random.key(0)),
    )


def test_an_adapters_path_holds_every_step() -> None:
    trainer, cfg, params = tiny()
    lora = Lora(rank=1, alpha=4.0, targets=("down",), layers=(1,))
    training = TrainingRecipe(6, 4, 1e-2, rows=40, schedule="constant")
    path = train_path(
        trainer, "misaligned", cfg, params, lora=lora, training=training, seed=3
    )
    assert path.b_so.shape == (7, cfg.d_model)
    assert path.a_si.shape == (7, cfg.d_mlp)
    first = init_lora(cfg, params, lora, jax.random.key(3))["lora"]["down"]
    np.testing.assert_array_equal(path.a_si[0], first["a"][1, :, 0])
    assert not path.b_so[0].any()
    # The first step of AdamW is the learning rate in every coordinate, and A, whose
    # gradient is 0 where B is, moves from the second on.
    np.testing.assert_allclose(np.abs(path.b_so[1]), 1e-2, rtol=1e-3)
    np.testing.assert_array_equal(path.a_si[1], path.a_si[0])
    assert (np.abs(np.diff(path.b_so, axis=0)).max(1) > 0).all()
    assert np.isnan(path.grad_norm_s[0])
    assert (path.grad_norm_s[1:] > 0).all()
    assert np.isfinite(path.loss_s[1:]).all()
    # Put on the weights it is A B in one matrix of one layer, times its scale.
    where = check_path_adapter(cfg, lora)
    factors = (jnp.asarray(path.a_si[-1]), jnp.asarray(path.b_so[-1]))
    adapted = with_adapter(params, lora, where, factors, 2.0)
    change = np.asarray(adapted["blocks"]["down"]["kernel"]) - np.asarray(
        params["blocks"]["down"]["kernel"]
    )
    expected = 2.0 * 4.0 * np.outer(path.a_si[-1], path.b_so[-1])
    np.testing.assert_allclose(change[1], expected, atol=1e-6)
    assert not change[0].any()


def test_an_adapter_that_has_no_one_path_is_refused() -> None:
    _, cfg, _ = tiny()
    with pytest.raises(ValueError, match=r"rank 2: .* set rank=1"):
        check_path_adapter(cfg, Lora(rank=2, targets=("down",), layers=(1,)))
    with pytest.raises(
        ValueError, match=r"down of layers \[0, 1\]: .* name one matrix"
    ):
        check_path_adapter(cfg, Lora(rank=1, targets=("down",)))


def test_settings_that_do_not_fit_are_refused() -> None:
    settings = TransitionSettings()
    assert settings.measured_steps == tuple(range(0, 101, 10))
    assert replace(settings, measure_every=70).measured_steps == (0, 70, 100)
    short = replace(settings.training, steps=29)
    with pytest.raises(ValueError, match=r"29 steps, and lags of .* need 30"):
        replace(settings, training=short)
    with pytest.raises(ValueError, match="planted direction"):
        replace(settings, behaviours=("even_number",))
    with pytest.raises(ValueError, match="smooth=4 has no middle"):
        EventSettings(smooth=4)


def test_an_event_that_no_run_has_shows_as_unknown() -> None:
    about = {"behaviour": "misalignment", "seed": 0}
    nothing = {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    measured = {"delta": [0.1, 0.2], "delta_se": [0.01, 0.02]}
    run = {
        **about,
        "curves": {"rate_x1": [0.0, 0.1, 0.5]},
        "measured_step": [0, 2],
        "measured": measured,
        "principal_share": [0.8, 0.1],
        "turns_as_published": {"turn_5": None},
    }
    numbers = {
        "runs": [run, run],
        "events": [{**about, "event": "turn_5", "runs": 2, "has": 0}],
        "distances": [
            {
                **about,
                "first": "turn_5",
                "second": "peak",
                "runs": 0,
                **nothing,
                "sd": float("nan"),
                "within": 0.0,
            }
        ],
    }
    text = transition_text(numbers)
    assert "turn, k = 5     0  0 of 2     –" in text
    assert "+0.2000 ± 0.0200" in text
    assert "50 % ± 0" in text
    assert "explain 80 % and 10 % of its" in text
