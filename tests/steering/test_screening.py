"""Screening by held-out pairs: against plain forward passes, on a case that is linear,
with a planted latent; what is refused.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Add, Site
from sae_attr.steering.continuation_groups import in_order
from sae_attr.steering.contrast import log_odds
from sae_attr.steering.screening import (
    PairIds,
    lay_out_pairs,
    screen,
    screened_latents,
)
from tests.miniatures import llama_config
from tests.steering.test_continuations import alone, directions, model

pytestmark = pytest.mark.usefixtures("quick")
CFG, PARAMS = model(llama_config(n_layers=2))
FIRST, LAST = Site(0), Site(1)
# Ragged completions, two of a side, and sides that begin alike.
PAIRS = [
    PairIds((1, 5, 6, 7, 8), ((10,), (11, 12, 13)), ((11, 12, 14),)),
    PairIds((1, 5, 6, 9), ((11, 20),), ((30,),)),
]
ONE_TOKEN = [
    PairIds((1, 5, 6, 9), ((10,),), ((11,),)),
    PairIds((1, 5, 6, 8), ((10,),), ((11,),)),
]


def by_hand(row_d: np.ndarray, strength: float, pair: PairIds) -> float:
    """log p(C) − log p(C′) of one pair: a whole forward pass for every completion."""
    edit = Add(jnp.asarray(row_d)[None], jnp.array([strength]))
    sides = []
    for texts in (pair.positives, pair.negatives):
        values = []
        for text in texts:
            of_text = alone(CFG, PARAMS, FIRST, edit, list(pair.prompt), list(text))
            values.append(of_text)
        sides.append(np.mean(values))
    return float(sides[0] - sides[1])


def test_the_screen_is_the_difference_of_plain_forward_passes_in_any_batch() -> None:
    rows_kd = directions(CFG)[:3]
    change_kp = screen(PARAMS, PAIRS, rows_kd, -1.5, cfg=CFG, site=FIRST, batch_size=3)
    assert change_kp.shape == (3, len(PAIRS))
    for k, row_d in enumerate(rows_kd):
        for p, pair in enumerate(PAIRS):
            change = by_hand(row_d, -1.5, pair) - by_hand(row_d, 0.0, pair)
            assert change_kp[k, p] == pytest.approx(change, abs=1e-5)
    alone_kp = screen(PARAMS, PAIRS[1:], rows_kd[2:], -1.5, cfg=CFG, site=FIRST)
    np.testing.assert_allclose(alone_kp, change_kp[2:, 1:], atol=1e-5)


def test_per_token_divides_every_completion_by_its_tokens() -> None:
    groups = lay_out_pairs(PAIRS, cfg=CFG)
    log_probs_1pn = [-np.ones((1, *group.side_pn.shape)) for group in groups]
    values = {}
    for per_token in (False, True):
        odds = []
        for group, log_probs in zip(groups, log_probs_1pn, strict=True):
            lengths = group.length_pn
            # One nat a token.
            of_group = log_odds(
                jnp.asarray(log_probs * lengths),
                group.side_pn,
                lengths,
                per_token=per_token,
            )
            odds.append(of_group)
        values[per_token] = np.asarray(in_order(groups, odds))[0]
    np.testing.assert_allclose(values[True], 0, atol=1e-6)
    # −(1 + 3) / 2 + 3, and −2 + 1.
    np.testing.assert_allclose(values[False], [1, -1])


def test_a_planted_latent_comes_first_and_small_steps_are_linear() -> None:
    """After the last layer the log-odds of two tokens are linear in the state but for
    the final norm, which small steps leave.
    """
    head_vd = np.asarray(PARAMS["head"]["table"])
    planted_d = (head_vd[10] - head_vd[11]) * np.asarray(PARAMS["final_norm"]["scale"])
    rows_kd = np.concatenate([directions(CFG), planted_d[None]])
    rows_kd /= np.linalg.norm(rows_kd, axis=1, keepdims=True)
    several_kd = np.concatenate([rows_kd, -rows_kd, 2 * rows_kd])
    change_kp = screen(PARAMS, ONE_TOKEN, several_kd, 0.01, cfg=CFG, site=LAST)
    up_kp, down_kp, twice_kp = np.split(change_kp, 3)
    assert up_kp.mean(1).argmax() == down_kp.mean(1).argmin() == len(rows_kd) - 1
    assert up_kp[-1].min() > 0
    scale = 0.02 * np.abs(twice_kp).max()
    np.testing.assert_allclose(down_kp, -up_kp, atol=scale)
    np.testing.assert_allclose(twice_kp, 2 * up_kp, atol=scale)


@pytest.mark.parametrize("strength", [0.0, float("nan"), float("inf")])
def test_a_strength_that_steers_nothing_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength of screening is .*steers nothing"):
        screen(PARAMS, PAIRS, directions(CFG), strength, cfg=CFG, site=FIRST)


def test_pairs_that_cannot_screen_are_refused() -> None:
    with pytest.raises(ValueError, match="no pair to screen by"):
        lay_out_pairs([], cfg=CFG)
    with pytest.raises(ValueError, match="pair 1 needs a completion on both sides"):
        lay_out_pairs([PAIRS[0], PairIds((1, 2), ((3,),), ())], cfg=CFG)


# ---- what the changes say ------------------------------------------------------------


def test_errors_are_over_prompts_and_p_values_against_random_latents() -> None:
    rng = np.random.default_rng(0)
    change_kp = rng.standard_normal((30, 8)) * 0.1
    change_kp[0] -= 3  # falls far
    change_kp[1:10] += 1
    latents_k = np.arange(100, 130)
    random = list(range(110, 130))
    away = screened_latents("away", latents_k, change_kp, random=random)
    np.testing.assert_allclose(away.change_k, change_kp.mean(1))
    np.testing.assert_allclose(away.se_k, change_kp.std(1, ddof=1) / np.sqrt(8))
    assert away.p_k[0] == pytest.approx(1 / 21)
    toward = screened_latents("toward", latents_k, change_kp, random=random)
    assert toward.p_k[0] == 1
    # Ten latents are tested; the random ones are the yardstick.
    assert np.isnan(away.q_k[10:]).all()
    assert away.q_k[0] == pytest.approx(10 / 21)
    # Two phrasings of one belief count as one.
    group_p = np.repeat(np.arange(4), 2)
    grouped = screened_latents(
        "away", latents_k, change_kp, random=random, group_p=group_p
    )
    of_group_kg = change_kp.reshape(30, 4, 2).mean(2)
    np.testing.assert_allclose(grouped.change_k, away.change_k)
    np.testing.assert_allclose(grouped.se_k, of_group_kg.std(1, ddof=1) / 2)
    without = screened_latents("away", latents_k, change_kp, random=[])
    assert np.isnan(without.p_k).all()
    assert np.isnan(without.q_k).all()
