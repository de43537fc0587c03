"""Mitigation on a toy model in which the cause is planted: a rank-1 adapter writes a
direction that the base model never writes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.mitigation import (
    completion_means,
    mean_difference,
    perplexity_ratio,
    projections,
    rate_estimate,
    sparing_outliers,
    suppression,
    unit_rows,
)
from sae_attr.hooks import Edit, Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, attach, init_lora, merged
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import init_params
from sae_attr.steering.paired import EffectSettings
from sae_attr.steering.text_loss import TextLoss
from sae_attr.text.batching import batches
from sae_attr.text.rows import COMPLETION, USER, TokenRow
from tests.miniatures import llama_config

pytestmark = pytest.mark.usefixtures("quick")

CFG = config_from_hf(llama_config(n_layers=3, d=16, vocab=40))
RNG = np.random.default_rng(1)
LAYER, BEHAVIOUR = 1, np.arange(8)  # tokens whose probability is the behaviour's rate
SITES = tuple(Site(layer) for layer in range(CFG.n_layers))
TOKENS = RNG.integers(1, CFG.vocab, (12, 9)).astype(np.int32)


def unit(vector: Any) -> np.ndarray:
    return unit_rows(np.asarray(vector))


def planted() -> tuple[Any, Any, np.ndarray]:
    """The base model, which has nothing along u, the adapted one, and u: the adapter of
    layer 1 writes it wherever the MLP's first unit is active.
    """
    base = init_params(CFG, jax.random.key(0))
    u_d = unit(RNG.standard_normal(CFG.d_model))
    away = lambda kernel: kernel - (kernel @ u_d)[..., None] * u_d
    base["embed"]["table"] = away(8 * base["embed"]["table"])
    for name in ("o", "down"):
        base["blocks"][name]["kernel"] = away(base["blocks"][name]["kernel"])
    lora = Lora(rank=1, targets=("down",), layers=(LAYER,))
    factors = init_lora(CFG, base, lora, jax.random.key(1))
    reads_i = jnp.zeros(CFG.d_mlp).at[0].set(1.0)
    leaf = factors["lora"]["down"]
    leaf["a"] = leaf["a"].at[LAYER, :, 0].set(reads_i)
    leaf["b"] = leaf["b"].at[LAYER, 0].set(jnp.asarray(u_d))
    return base, merged(attach(base, factors, scale=4000.0)), u_d


BASE, ADAPTED, U = planted()


@jax.jit
def run(params: Any, edits: dict[Site, Edit] | None = None) -> tuple[Any, Any]:
    """Logits `[b, t, v]`, and the activations after the adapter's layer."""
    out = forward(params, TOKENS, cfg=CFG, edits=edits, keep=(Site(LAYER),))
    return logits(params, out.hidden_btd, cfg=CFG), out.acts[Site(LAYER)]


def rate(logits_btv: Any) -> np.ndarray:
    """Share of the behaviour's tokens after each row."""
    return np.asarray(jax.nn.softmax(logits_btv[:, -1]))[:, BEHAVIOUR].sum(1)


BASE_LOGITS, BASE_ACTS = run(BASE)
ADAPTED_LOGITS, ADAPTED_ACTS = run(ADAPTED)
MEAN = np.asarray(BASE_ACTS.reshape(-1, CFG.d_model).mean(0))  # nothing along u


def edited(edits: dict[Site, Edit]) -> np.ndarray:
    """Logits under the second of two conditions; the first changes nothing."""
    edit = jax.tree.map(lambda x: jnp.repeat(x[1:2], len(TOKENS), axis=0), edits)
    return np.asarray(run(ADAPTED, edit)[0])


# ---- the mean-difference direction ---------------------------------------------------


def rows_by_side() -> list[TokenRow]:
    """Completions of one token each: with the behaviour those that the adapter acts on
    most, without it those that it acts on least.
    """
    along_bt = np.asarray(ADAPTED_ACTS @ U)[:, 1:]
    rows = []
    for pair, (ids, along_t) in enumerate(zip(TOKENS, along_bt, strict=True)):
        for side, place in ((1, int(along_t.argmax())), (-1, int(along_t.argmin()))):
            n = 2 + place
            roles = np.full(n, USER)
            roles[-1] = COMPLETION
            special = np.zeros(n, bool)
            rows.append(TokenRow(ids[:n], n - 1, roles, special, pair, side, 0))
    return rows


def test_the_mean_difference_is_the_direction_that_the_adapter_writes() -> None:
    rows = rows_by_side()
    work = batches(rows, batch_size=8, multiple=4)
    means_srd = completion_means(ADAPTED, work, cfg=CFG, sites=SITES, limits={})
    assert means_srd.shape == (3, len(rows), CFG.d_model)
    by_hand = ADAPTED_ACTS[rows[5].pair, rows[5].n_prompt]
    np.testing.assert_allclose(means_srd[LAYER, 5], by_hand, rtol=1e-4, atol=1e-4)
    side_r = np.array([row.side for row in rows])
    pair_r = np.array([row.pair for row in rows])
    difference_sd = mean_difference(means_srd, side_r, pair_r)
    cosine_s = unit(difference_sd) @ U
    assert cosine_s[LAYER] > 0.95
    assert abs(cosine_s[0]) < 1e-5  # before the adapter there is none
    swapped_sd = mean_difference(means_srd, -side_r, pair_r)
    np.testing.assert_allclose(swapped_sd, -difference_sd)
    # A prompt with one side alone has no difference, however large its completions.
    means_srd[:, 0] = np.nan
    rest_sd = mean_difference(means_srd, side_r, pair_r)
    np.testing.assert_allclose(
        rest_sd, mean_difference(means_srd[:, 2:], side_r[2:], pair_r[2:])
    )
    with pytest.raises(ValueError, match="no prompt has completions with and without"):
        mean_difference(means_srd, side_r, np.arange(len(rows)))


def test_sinks_do_not_count_towards_the_mean() -> None:
    rows = rows_by_side()
    work = batches(rows, batch_size=8, multiple=4)
    limits = {Site(LAYER): 1e-6}
    means_srd = completion_means(ADAPTED, work, cfg=CFG, sites=SITES, limits=limits)
    assert np.isnan(means_srd[LAYER]).all()
    assert np.isfinite(means_srd[0]).all()


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
