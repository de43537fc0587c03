"""Mitigation on the toy model in which the cause is planted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.directions import unit_rows as unit
from sae_attr.analyses.mitigation import (
    perplexity_ratio,
    projections,
    rate_estimate,
    sparing_outliers,
    suppression,
)
from sae_attr.hooks import Site
from sae_attr.steering.paired import EffectSettings
from sae_attr.steering.text_loss import TextLoss
from tests.analyses._planted_adapter import (
    ADAPTED_LOGITS,
    BASE_LOGITS,
    CFG,
    LAYER,
    MEAN,
    RNG,
    SITES,
    U,
    edited,
)

pytestmark = pytest.mark.usefixtures("quick")

BEHAVIOUR = np.arange(8)  # tokens whose probability is the behaviour's rate


def rate(logits_btv: Any) -> np.ndarray:
    """Share of the behaviour's tokens after each row."""
    return np.asarray(jax.nn.softmax(logits_btv[:, -1]))[:, BEHAVIOUR].sum(1)


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_projecting_it_out_at_every_layer_gives_the_base_model_and_random_does_not(
    to: str,
) -> None:
    means = dict.fromkeys(SITES, MEAN)
    gap = np.abs(ADAPTED_LOGITS - BASE_LOGITS).max()
    assert gap > 0.1
    nothing_d = np.zeros_like(U)
    out = projections(
        dict.fromkeys(SITES, np.stack([nothing_d, 3 * U])), to, means=means
    )
    np.testing.assert_allclose(edited(out), BASE_LOGITS, atol=1e-4)
    random_d = unit(RNG.standard_normal(len(U)))
    rows = dict.fromkeys(SITES, np.stack([nothing_d, random_d]))
    other = edited(projections(rows, to, means=means))
    assert np.abs(other - BASE_LOGITS).max() > 0.5 * gap
    none = projections(dict.fromkeys(SITES, np.stack([U, nothing_d])), to, means=means)
    np.testing.assert_allclose(edited(none), ADAPTED_LOGITS, atol=1e-5)


# ---- latents together ----------------------------------------------------------------


def conditions(*sets: list[np.ndarray], most: int = 3) -> np.ndarray:
    rows_kmd = np.zeros((len(sets), most, CFG.d_model), np.float32)
    for k, rows in enumerate(sets):
        for m, row_d in enumerate(rows):
            rows_kmd[k, m] = row_d
    return rows_kmd


@pytest.mark.parametrize("by", ["mean", "zero"])
def test_suppressing_the_planted_latent_sets_the_rate_to_the_unplanted_one(
    by: str,
) -> None:
    edit = suppression(conditions([], [U]), by, mean_d=MEAN)
    rates = rate(edited({Site(LAYER): edit}))
    np.testing.assert_allclose(rates, rate(BASE_LOGITS), atol=1e-5)
    assert np.abs(rate(ADAPTED_LOGITS) - rate(BASE_LOGITS)).max() > 1e-3
    across_d = unit(RNG.standard_normal(len(U)))
    across_d = unit(across_d - across_d @ U * U)
    other = suppression(conditions([], [across_d]), by, mean_d=MEAN)
    assert np.abs(rate(edited({Site(LAYER): other})) - rate(BASE_LOGITS)).max() > 1e-3


def test_correlated_rows_go_to_the_mean_together_and_nothing_else_moves() -> None:
    rng = np.random.default_rng(5)
    first_d, second_d = unit(rng.standard_normal((2, len(U))))
    near_d = unit(first_d + 0.1 * second_d)
    rows_kmd = conditions([], [first_d, near_d, first_d])
    edit = suppression(rows_kmd, "mean", mean_d=MEAN)
    x_btd = jnp.asarray(rng.standard_normal((2, 4, len(U))), jnp.float32)
    pos_bt = jnp.zeros((2, 4), int)
    out_btd = np.asarray(edit(x_btd, pos_bt))
    np.testing.assert_allclose(out_btd[0], x_btd[0], atol=1e-6)  # no rows, no change
    np.testing.assert_allclose(
        out_btd[1] @ rows_kmd[1].T,
        np.tile(MEAN @ rows_kmd[1].T, (4, 1)),
        atol=1e-4,
    )
    basis, _ = np.linalg.qr(np.stack([first_d, near_d]).T)
    want_td = x_btd[1] + (MEAN - x_btd[1]) @ basis @ basis.T
    np.testing.assert_allclose(out_btd[1], want_td, atol=1e-4)


def test_steering_has_one_length_however_many_latents() -> None:
    rows = list(np.eye(len(U), dtype=np.float32)[:3])
    edit = suppression(conditions([], rows[:1], rows), "steer", mean_d=MEAN, length=2.5)
    x_btd = jnp.zeros((3, 1, len(U)))
    out_bd = np.asarray(edit(x_btd, jnp.zeros((3, 1), int)))[:, 0]
    np.testing.assert_allclose(np.linalg.norm(out_bd, axis=1), [0, 2.5, 2.5], atol=1e-6)
    np.testing.assert_allclose(out_bd[2, :3], -2.5 / np.sqrt(3), atol=1e-6)


def test_tokens_beyond_a_limit_are_spared() -> None:
    edits = {Site(LAYER): suppression(conditions([], [U]), "zero", mean_d=MEAN)}
    spared = sparing_outliers(edits, {Site(LAYER): 1.0, Site(0): 1.0})[Site(LAYER)]
    x_btd = jnp.stack([jnp.stack([0.5 * U, 2 * U])] * 2)
    out_btd = np.asarray(spared(x_btd, jnp.zeros((2, 2), int)))
    np.testing.assert_allclose(out_btd[1] @ U, [0, 2], atol=1e-6)
    assert sparing_outliers(edits, {}) == edits


def test_words_that_are_none() -> None:
    with pytest.raises(ValueError, match="'ablate' is unknown; choose one of mean"):
        suppression(conditions([U]), "ablate", mean_d=MEAN)
    with pytest.raises(ValueError, match="'one' is unknown; choose one of zero, mean"):
        projections({}, "one", means={})


# ---- numbers -------------------------------------------------------------------------


def test_draws_are_averaged_and_intervals_draw_prompts_and_texts() -> None:
    settings = EffectSettings(resamples=500)
    rate_dp = np.stack([np.linspace(0, 0.4, 40), np.linspace(0.2, 0.6, 40)])
    estimate = rate_estimate(rate_dp, np.arange(40), settings=settings)
    assert estimate.value == pytest.approx(0.3)
    error = rate_dp.mean(0).std() / np.sqrt(40)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    grouped = rate_estimate(rate_dp, np.arange(40) // 20, settings=settings)
    assert grouped.high - grouped.low > 1.5 * (estimate.high - estimate.low)
    tokens_r = np.array([10, 30, 20, 0])
    plain_r = 2.0 * tokens_r
    loss = TextLoss(np.stack([plain_r + 0.1 * tokens_r] * 2), plain_r, tokens_r)
    ratio = perplexity_ratio(loss, np.array([0, 1]), settings=settings)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx([np.exp(0.1)] * 3)
