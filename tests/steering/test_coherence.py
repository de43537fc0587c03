"""Coherence without a judge: the unsteered model's log-probability of an answer, and
its repetition.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sae_attr.lm.model import forward, logits
from sae_attr.steering.coherence import (
    LEAST_SAMPLES,
    coherence_limits,
    coherent,
    logp_per_token,
    repetition,
)
from sae_attr.text.batching import batches
from sae_attr.text.rows import TokenRow
from tests.attribution import _tiny

pytestmark = pytest.mark.usefixtures("quick")


def row(prompt: list[int], completion: list[int]) -> TokenRow:
    ids = np.array([*prompt, *completion], np.int32)
    return TokenRow(
        ids,
        len(prompt),
        np.zeros(len(ids), np.int8),
        np.zeros(len(ids), bool),
        pair=0,
        side=1,
        completion=0,
    )


def test_logp_is_the_mean_over_the_answers_own_tokens() -> None:
    cfg = _tiny.llama()
    params = _tiny.random_params(cfg)
    rows = [row([1, 2, 3], [4, 5]), row([6], [7, 8, 9])]
    got = np.full(2, np.nan)
    for batch, index_b in batches(rows, batch_size=2):
        got[index_b[index_b >= 0]] = np.asarray(logp_per_token(params, batch, cfg=cfg))[
            index_b >= 0
        ]
    for r, each in enumerate(rows):
        hidden = forward(params, each.ids[None], cfg=cfg).hidden_btd
        logp_tv = np.asarray(
            jax.nn.log_softmax(logits(params, hidden, cfg=cfg)[0], axis=-1)
        )
        places = np.arange(each.n_prompt, len(each.ids))
        np.testing.assert_allclose(
            got[r], logp_tv[places - 1, each.ids[places]].mean(), rtol=1e-5
        )


def test_repetition_is_the_share_of_phrases_that_came_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert repetition([1, 2, 3, 1, 2, 3, 1, 2, 3]) == pytest.approx(4 / 7)
    assert repetition([]) == repetition([1, 1]) == 0


def test_answers_are_held_against_the_models_own() -> None:
    rng = np.random.default_rng(0)
    logp_r, repetition_r = rng.normal(-2, 0.3, 400), rng.uniform(0, 0.1, 400)
    own = coherence_limits(logp_r, repetition_r, tail=0.05)
    assert own.samples == 400
    usual = coherent(logp_r, repetition_r, own)
    assert 0.88 < usual.mean() < 0.96  # at most both tails are lost
    noise, loop = coherent(np.array([-7.0, -0.1]), np.array([0.0, 0.9]), own)
    assert (
        noise == loop == 0
    )  # a loop is likely under the model, which alone would call it coherent
    assert np.isnan(coherent(np.array([np.nan]), np.zeros(1), own))


def test_one_phrase_that_comes_again_in_a_short_answer_is_no_loop() -> None:
    own = coherence_limits(np.full(50, -2.0), np.zeros(50), tail=0.05)
    once = repetition([1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13])
    assert 0 < once < own.most_repetition
    np.testing.assert_array_equal(
        coherent(np.full(2, -2.0), np.array([once, 0.9]), own), [1.0, 0.0]
    )


def test_too_few_answers_and_a_tail_that_cannot_be() -> None:
    few = np.full(LEAST_SAMPLES, -1.0)
    few[0] = np.nan
    with pytest.raises(
        ValueError, match=r"only 9 have a token.*raise coherence_samples"
    ):
        coherence_limits(few, np.zeros(len(few)), tail=0.05)
    with pytest.raises(ValueError, match=r"tail of own answers is 0\.5"):
        coherence_limits(np.full(20, -1.0), np.zeros(20), tail=0.5)
