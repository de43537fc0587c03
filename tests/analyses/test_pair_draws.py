"""Planted truth: one latent causes the behaviour; another one carries what the two
answers to a prompt have in common, which only the right partner takes away.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.completion_scores import (
    ScoreKind,
    SidedScores,
    completion_scores,
    sided,
)
from sae_attr.analyses.pair_draws import (
    DESIGNS,
    NUMBERS,
    PAIRS,
    POSITIVES,
    SHUFFLED,
    design_scores,
    drawn_agreement,
    interval,
    resampled_agreement,
)
from sae_attr.attribution.scores import score_moment
from sae_attr.attribution.token_table import (
    TokenTable,
    table_from_arrays,
    table_moment,
    token_weights,
)
from tests.attribution._tiny import row

CAUSE, COMMON, D = 0, 1, 6
KIND = ScoreKind("both", "prompt")


def planted_table(prompts: int, seed: int = 0) -> TokenTable:
    """Prompts with an answer on either side; the gradient along `COMMON` is the
    prompt's own, that along `CAUSE` has the sign of the side.
    """
    rng = np.random.default_rng(seed)
    rows, acts, grads = [], [], []
    for pair in range(prompts):
        prompt = rng.integers(3, 40, rng.integers(3, 7))
        common = rng.normal(2.0, 1.5)
        prompt_td = rng.normal(0, 0.1, (len(prompt), D))
        prompt_td[:, [CAUSE, COMMON]] += 1.0
        for side in (1, -1):
            r = row(rng, prompt, int(rng.integers(2, 5)), (pair, side, 0))
            acts_td = rng.normal(0, 0.1, (len(r.ids), D))
            acts_td[: len(prompt)] = prompt_td
            grads_td = rng.normal(0, 0.1, (len(r.ids), D))
            grads_td[:, COMMON] -= common
            grads_td[:, CAUSE] -= 0.5 * side
            rows.append(r)
            acts.append(acts_td)
            grads.append(grads_td)
    return table_from_arrays(rows, acts, grads)


TABLE = planted_table(60)
DEC = np.eye(D, dtype=np.float32)
MEAN = np.zeros(D, np.float32)
EFFECT = {"planted": np.eye(D)[CAUSE]}


def planted_scores(kind: ScoreKind = KIND) -> SidedScores:
    scores_rn = completion_scores(TABLE, jnp.asarray(DEC), jnp.asarray(MEAN), kind)
    return sided(scores_rn, TABLE.rows)


def test_differences_of_completions_are_the_moments_scores() -> None:
    rng = np.random.default_rng(1)
    dec_nd = rng.normal(size=(5, D))
    dec_nd = jnp.asarray(dec_nd / np.linalg.norm(dec_nd, axis=1, keepdims=True))
    mean_d = jnp.asarray(rng.normal(size=D))
    for scope in ("prompt", "all"):
        scores_rn = completion_scores(TABLE, dec_nd, mean_d, ScoreKind("both", scope))
        delta_n = sided(scores_rn, TABLE.rows).difference_pn.mean(0)
        moment = table_moment(TABLE, token_weights(TABLE.rows, scope))
        expected_n = score_moment(moment, mean_d, dec_nd)
        np.testing.assert_allclose(delta_n, expected_n, atol=1e-5)
        gradient_rn = completion_scores(
            TABLE, dec_nd, mean_d, ScoreKind("gradient", scope)
        )
        gradient_n = sided(gradient_rn, TABLE.rows).difference_pn.mean(0)
        np.testing.assert_allclose(gradient_n, -dec_nd @ moment.g_d, atol=1e-5)


def test_pairs_beat_shuffled_partners_and_those_beat_positives() -> None:
    truth, _ = drawn_agreement(planted_scores(), EFFECT, (5,), draws=200, top=1, seed=0)
    effect = {
        name: truth[i, 0, 0, NUMBERS.index("effect")].mean()
        for i, name in enumerate(DESIGNS)
    }
    assert effect[PAIRS] == 1
    assert effect[POSITIVES] < 0.1
    assert effect[POSITIVES] + 0.2 < effect[SHUFFLED] < 0.9


def test_partners_shuffled_within_one_set_of_prompts_change_nothing() -> None:
    scores = planted_scores()
    order_p = np.arange(len(scores))
    by_design = design_scores(scores, np.concatenate([order_p, order_p]), len(scores))
    np.testing.assert_array_equal(by_design[PAIRS], by_design[SHUFFLED])


def test_rankings_of_more_pairs_repeat_better() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 6, (200, 40)) + np.arange(40) / 10
    scores = SidedScores(noise, np.zeros((200, 40)))
    effects = {"planted": np.arange(40.0)}
    truth, repeated = drawn_agreement(
        scores, effects, (1, 10, 100), draws=20, top=5, seed=0
    )
    spearman_c, overlap_c = repeated.mean(2).T
    assert (np.diff(spearman_c) > 0.05).all()
    assert overlap_c[2] > overlap_c[0] + 0.2
    assert (np.diff(truth[0, :, 0].mean(2), axis=0) > 0).all()


def test_an_interval_is_over_seeds_and_draws() -> None:
    one = interval(np.arange(101.0)[None], resamples=4000)
    assert one["mean"] == 50
    assert one["low"] == pytest.approx(2.5, abs=2)
    assert one["high"] == pytest.approx(97.5, abs=2)
    # Seeds that differ by more than the draws of one do: the seeds decide.
    two = interval(np.array([[0.0] * 9, [10.0] * 9]), resamples=1000)
    assert (two["low"], two["mean"], two["high"]) == (0, 5, 10)


@pytest.mark.parametrize("count", [0, 31])
def test_numbers_of_pairs_that_cannot_be_drawn_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"counts: {count} pairs cannot .* above 30"):
        drawn_agreement(planted_scores(), EFFECT, (5, count), draws=1, top=1, seed=0)


def test_too_few_pairs_of_a_source_are_refused() -> None:
    with pytest.raises(ValueError, match="35 pairs are asked for, but there are 2"):
        resampled_agreement(np.ones((2, D)), EFFECT, 35, draws=1, top=1, seed=0)


def test_a_prompt_with_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pair 0 .* has no negative"):
        sided(np.ones((1, D)), TABLE.rows[:1])
