"""Directions on the toy model in which the cause is planted: a rank-1 adapter writes a
direction that the base model never writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.analyses.direction_record import halves_of, of_both_sides
from sae_attr.analyses.direction_rows import answer_states
from sae_attr.analyses.direction_transfer import with_adapters
from sae_attr.analyses.directions import (
    SideSums,
    drawn_auc,
    drawn_differences,
    gradient_directions,
    layer_moments,
    mean_difference,
    model_difference,
    paired_cosines,
    random_cosine,
    share_in_span,
    side_sums,
    unit_rows,
)
from sae_attr.attribution.selectors import monitoring_auc
from sae_attr.attribution.token_table import collect, table_moment, token_weights
from sae_attr.hooks import Site
from sae_attr.lm.lora import Lora, init_lora, merged
from sae_attr.lm.model import forward
from sae_attr.parallel import make_mesh
from sae_attr.text.batching import batches
from sae_attr.text.rows import TokenRow
from tests.analyses._planted_adapter import (
    ADAPTED,
    ADAPTED_ACTS,
    ATTACHED,
    BASE,
    BASE_LOGITS,
    CFG,
    LAYER,
    SITES,
    TOKENS,
    U,
    rows_by_side,
    run,
)

pytestmark = pytest.mark.usefixtures("quick")

ROWS = rows_by_side()


def sums_on(
    rows: Sequence[TokenRow], params: Any = ADAPTED, **options: Any
) -> SideSums:
    work = batches(rows, batch_size=8, multiple=16)
    model: dict[str, Any] = {"cfg": CFG, "sites": SITES, "limits": {}}
    return side_sums(params, rows, work, **model | options)


def test_the_mean_difference_is_the_direction_that_the_adapter_writes() -> None:
    sums = sums_on(ROWS)
    assert sums.sums_p2sd.shape == (len(TOKENS), 2, 3, CFG.d_model)
    first = ROWS[4]  # of prompt 2, with the behaviour
    by_hand = ADAPTED_ACTS[first.pair, first.n_prompt]
    np.testing.assert_allclose(
        sums.sums_p2sd[2, 0, LAYER], by_hand, rtol=1e-4, atol=1e-4
    )
    longer = replace(first, n_prompt=first.n_prompt - 1)  # an answer of two tokens
    two_td = ADAPTED_ACTS[first.pair, longer.n_prompt : len(first.ids)]
    of_two_sd = sums_on([longer, ROWS[5]]).sums_p2sd[0, 0]
    np.testing.assert_allclose(of_two_sd[LAYER], two_td.mean(0), rtol=1e-4, atol=1e-4)
    difference_sd = mean_difference(sums)
    cosine_s = unit_rows(difference_sd) @ U
    assert cosine_s[LAYER] > 0.95
    assert abs(cosine_s[0]) < 1e-5  # before the adapter there is none
    np.testing.assert_allclose(mean_difference(sums, "answers"), difference_sd)
    # What the fine-tune added lies along u at its layer, and is nothing before it.
    added_sd = model_difference(sums, sums_on(ROWS, BASE))
    assert abs(unit_rows(added_sd[LAYER]) @ U) > 0.999
    np.testing.assert_allclose(added_sd[0], 0, atol=1e-5)


def test_answers_count_within_their_prompt_or_alike() -> None:
    """One prompt has an answer of one side alone, another two of one side."""
    more = [*ROWS[1:], replace(ROWS[2], completion=1)]
    sums = sums_on(more)
    assert sums.answers_p2[:2].tolist() == [[0, 1], [2, 1]]
    within_sd = mean_difference(sums)
    np.testing.assert_allclose(within_sd, mean_difference(sums_on(ROWS[2:])), atol=1e-5)
    alike_sd = mean_difference(sums, "answers")
    totals = sums.sums_p2sd.sum(0), sums.answers_p2.sum(0)
    want_sd = totals[0][0] / totals[1][0] - totals[0][1] / totals[1][1]
    np.testing.assert_allclose(alike_sd, want_sd)
    assert np.abs(alike_sd - within_sd).max() > 1e-3
    # A draw of prompts is the difference of those prompts; of one side alone there is
    # none.
    counts_bp = np.zeros((2, len(TOKENS)))
    counts_bp[0, [1, 3]], counts_bp[1, 0] = (2, 1), 1
    drawn = drawn_differences(sums, counts_bp)
    parts = [mean_difference(sums_on([r for r in more if r.pair == p])) for p in (1, 3)]
    np.testing.assert_allclose(drawn[0], (2 * parts[0] + parts[1]) / 3, atol=1e-5)
    assert np.isnan(drawn[1]).all()
    assert np.isnan(drawn_differences(sums, counts_bp, "answers")[1]).all()


def test_answers_that_give_no_direction_are_named() -> None:
    alone = [row for row in ROWS if row.side > 0]
    for average, why in (("prompts", "no prompt has"), ("answers", "there are no")):
        with pytest.raises(ValueError, match=f"{why} answers with and without"):
            mean_difference(sums_on(alone), average)
    with pytest.raises(ValueError, match="'tokens' is unknown; choose one of prompts"):
        mean_difference(sums_on(ROWS), "tokens")
    # Sinks do not count: an answer of which none is left has no mean.
    with pytest.raises(ValueError, match="none of 24 answers has a token that counts"):
        sums_on(ROWS, limits={Site(LAYER): 1e-6})
    with pytest.raises(ValueError, match=r"site layer7\.resid_post lies outside"):
        sums_on(ROWS, sites=(Site(7),))
    sums = sums_on(ROWS)
    narrow = SideSums(sums.sums_p2sd[..., :2, :], sums.answers_p2)
    with pytest.raises(ValueError, match=r"3 sites of 16 numbers .* before it 2 of 16"):
        model_difference(sums, narrow)


def test_moments_of_all_layers_are_those_of_the_table_of_tokens() -> None:
    rows = of_both_sides(ROWS[1:])  # the first prompt has one side left
    assert {row.pair for row in rows} == set(range(1, len(TOKENS)))
    weights_k = token_weights(rows, "prompt")  # others than those of the answer
    halved_hk = halves_of(rows)
    assert (halved_hk.sum(0) == 1).all()
    work = batches(rows, batch_size=8, multiple=16)
    parts = layer_moments(
        ADAPTED, rows, work, halved_hk * weights_k, cfg=CFG, sites=SITES
    )
    site = Site(LAYER)
    table = collect(ADAPTED, rows, cfg=CFG, site=site, mesh=make_mesh("data=1"))
    for half_k, of_half in zip(halved_hk, parts, strict=True):
        want = table_moment(table, half_k * weights_k)
        np.testing.assert_allclose(of_half[site].s_dd, want.s_dd, atol=1e-4)
        np.testing.assert_allclose(of_half[site].g_d, want.g_d, atol=1e-5)
    means = {at: np.zeros(CFG.d_model) for at in SITES}
    gradient_sd, best_sd = gradient_directions(parts[0], means)
    want_d = -np.asarray(parts[0][site].g_d)
    np.testing.assert_allclose(gradient_sd[LAYER], unit_rows(want_d), atol=1e-5)
    assert (np.sum(gradient_sd * best_sd, axis=1) >= 0).all()


def test_an_adapter_reads_what_decides_whether_it_writes() -> None:
    """The planted adapter reads one hidden unit, by which the sides were sorted."""
    work = batches(ROWS, batch_size=8, multiple=16)
    states = answer_states(ATTACHED, work, len(ROWS), cfg=CFG, layers=(0, LAYER))
    hidden = Site(LAYER, "mlp_hidden")
    acts_bti = forward(ADAPTED, TOKENS, cfg=CFG, keep=(hidden,)).acts[hidden]
    by_hand = [acts_bti[row.pair, row.n_prompt, 0] for row in ROWS]
    np.testing.assert_allclose(states["down"][1], by_hand, rtol=1e-4, atol=1e-5)
    assert not states["down"][0].any()
    side_r = np.array([row.side for row in ROWS])
    once_1r = np.ones((1, len(ROWS)))
    assert drawn_auc(states["down"][1], side_r > 0, once_1r)[0] > 0.8
    wide = init_lora(CFG, BASE, Lora(rank=2, targets=("down",)), jax.random.key(0))
    with pytest.raises(ValueError, match="adapters of rank 2 read no single scalar"):
        answer_states({**BASE, **wide}, work, len(ROWS), cfg=CFG, layers=(0,))


def test_adapters_are_taken_out_one_by_one() -> None:
    none = with_adapters(ATTACHED, frozenset({("down", 0)}))
    np.testing.assert_allclose(run(merged(none))[0], BASE_LOGITS, atol=1e-6)
    kept = with_adapters(ATTACHED, frozenset({("down", LAYER)}))
    np.testing.assert_array_equal(
        kept["lora"]["down"]["b"], ATTACHED["lora"]["down"]["b"]
    )


def test_an_auc_of_drawn_answers_is_that_of_their_copies() -> None:
    rng = np.random.default_rng(3)
    values_r = np.round(rng.standard_normal(40), 1)  # with ties
    positive_r = rng.random(40) < 0.4
    counts_br = np.stack([np.ones(40, int), rng.integers(0, 3, 40)])
    for counts_r, auc in zip(
        counts_br, drawn_auc(values_r, positive_r, counts_br), strict=True
    ):
        copies = np.repeat(np.arange(40), counts_r)
        want = monitoring_auc(values_r[copies][:, None], positive_r[copies])
        assert auc == pytest.approx(want[0])
    assert np.isnan(drawn_auc(values_r, positive_r, 1.0 * positive_r[None]))[0]
    with pytest.raises(ValueError, match=r"0 of 40 answers .* AUC needs two classes"):
        drawn_auc(values_r, np.zeros(40, bool), counts_br)


def test_what_random_directions_reach() -> None:
    rng = np.random.default_rng(4)
    drawn_kd = unit_rows(rng.standard_normal((20_000, 12)))
    assert np.quantile(np.abs(drawn_kd[:, 0]), 0.95) == pytest.approx(
        random_cosine(12), abs=0.01
    )
    largest = np.abs(drawn_kd[:, 0]).reshape(-1, 10).max(1)
    assert np.quantile(largest, 0.95) == pytest.approx(
        random_cosine(12, times=10), abs=0.02
    )
    shares = [share_in_span(x, drawn_kd[:3]) for x in drawn_kd[100:600]]
    assert np.mean(shares) == pytest.approx(3 / 12, abs=0.03)
    assert share_in_span(2 * drawn_kd[1] - drawn_kd[0], drawn_kd[:3]) == pytest.approx(
        1
    )
    assert np.isnan(paired_cosines(np.zeros(3), np.ones(3)))
