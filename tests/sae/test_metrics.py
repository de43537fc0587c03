"""Metrics against their definitions, and sums that do not care how tokens are batched."""

from dataclasses import replace

import numpy as np
import pytest

from sae_attr.sae.metrics import (
    dead_share,
    decoder_norms,
    density,
    explained_variance,
    fit,
    l0,
    max_decoder_cosine,
    mse,
    reconstruct_tokens,
    summary,
)
from sae_attr.sae.model import SAE, SAEConfig


@pytest.fixture
def sae() -> SAE:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cfg = SAEConfig(d_in=6, d_out=6, n_latents=16)
    return SAE(
        enc_dn=draw(6, 16),
        enc_bias_n=draw(16) - 5,
        dec_nm=draw(16, 6),
        dec_bias_m=draw(6),
        cfg=cfg,
    )


ACTS = np.random.default_rng(1).standard_normal((3000, 6)).astype(np.float32) * 2 + 100


def test_definitions(sae: SAE) -> None:
    x = ACTS.astype(np.float64)
    out = reconstruct_tokens(sae, ACTS)
    sums = fit(sae, ACTS)
    y = out.recon_kd.astype(np.float64)
    assert explained_variance(sums) == pytest.approx(
        1 - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-9
    )
    assert mse(sums) == pytest.approx(((x - y) ** 2).mean(), rel=1e-9)
    codes = np.maximum(x @ np.asarray(sae.enc_dn) + np.asarray(sae.enc_bias_n), 0)
    assert l0(sums) == pytest.approx((codes > 0).sum(1).mean(), rel=1e-3)
    assert dead_share(sums) == pytest.approx((codes > 0).any(0).__invert__().mean())
    norms = np.linalg.norm(np.asarray(sae.dec_nm), axis=1)
    assert decoder_norms(sae) == pytest.approx(
        (norms.min(), np.median(norms), norms.max())
    )


@pytest.mark.parametrize("size", [1, 999, 3000])
def test_sums_add_up_over_batches(sae: SAE, size: int) -> None:
    acts = ACTS[: 3 * size] if size == 1 else ACTS
    parts = [fit(sae, acts[i : i + size]) for i in range(0, len(acts), size)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = fit(sae, acts)
    assert total.tokens == whole.tokens
    assert explained_variance(total) == pytest.approx(
        explained_variance(whole), rel=1e-9
    )
    np.testing.assert_array_equal(total.fired_n, whole.fired_n)


def test_a_transcoder_is_compared_with_what_it_writes(sae: SAE) -> None:
    cfg = SAEConfig(d_in=6, d_out=5, n_latents=16)
    transcoder = SAE(
        sae.enc_dn, sae.enc_bias_n, sae.dec_nm[:, :5], sae.dec_bias_m[:5], cfg=cfg
    )
    with pytest.raises(ValueError, match="have width 6 but the SAE writes 5"):
        fit(transcoder, ACTS)
    target_kd = (
        np.maximum(ACTS @ sae.enc_dn + sae.enc_bias_n, 0) @ transcoder.dec_nm
        + transcoder.dec_bias_m
    )
    assert explained_variance(fit(transcoder, ACTS, target_kd)) == pytest.approx(
        1, abs=1e-6
    )
    assert np.isnan(
        summary(transcoder, fit(transcoder, ACTS, target_kd))["encoder_decoder_cosine"]
    )


def test_saes_that_differ_in_arithmetic_are_measured_apart(sae: SAE) -> None:
    """Programs are shared between SAEs whose configs differ in what is only recorded,
    and between no others.
    """
    kept = [
        replace(
            sae,
            cfg=replace(
                sae.cfg, gate="topk", k=4, select_by_dec_norm=select, layer=select * 1
            ),
        )
        for select in (False, True)
    ]
    assert fit(kept[0], ACTS - 100).residual != fit(kept[1], ACTS - 100).residual


def test_the_histogram_of_firing_rates_holds_every_latent_once(sae: SAE) -> None:
    sums = fit(sae, ACTS - 100)
    found = density(sums)
    assert found.counts.sum() + found.dead == 16
    assert found.dead == (sums.fired_n == 0).sum()
    assert (found.edges[0], found.edges[-1]) == (-4, 0)
    rates = sums.fired_n[sums.fired_n > 0] / 3000
    assert found.counts[-1] == (rates >= 10**-0.25).sum()
    with pytest.raises(ValueError, match="no token to count firings on"):
        density(fit(sae, ACTS[:0]))


def test_the_largest_cosine_is_with_another_latent_that_fired() -> None:
    """Planted: an opposite pair of other lengths, a pair at cosine 0.6, a latent alone,
    a copy of it that never fired, and a row of norm 0.
    """
    rows = np.array(
        [
            [2, 0, 0, 0],
            [-0.5, 0, 0, 0],
            [0, 3, 0, 0],
            [0, 0.6, 0.8, 0],
            [0, 0, 0, 1],
            [0, 0, 0, 1],
            [0, 0, 0, 0],
        ],
        np.float32,
    )
    cfg = SAEConfig(d_in=4, d_out=4, n_latents=7)
    sae = SAE(rows.T, np.zeros(7), rows, np.zeros(4), cfg=cfg)
    fired_n = np.array([3, 1, 1, 1, 9, 0, 2])
    # The third row's best is the fourth, 0.6, and the other way round.
    expected = np.mean([1, 1, 0.6, 0.6, 0, 0])
    assert max_decoder_cosine(sae, fired_n) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(max_decoder_cosine(sae, fired_n > 8))
