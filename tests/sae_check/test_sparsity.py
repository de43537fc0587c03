"""A variant of an SAE never wins by firing more latents, and sinks are left out of the
test as they were of training.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.activations import Masks
from sae_attr.hooks import Site
from sae_attr.parallel import make_mesh
from sae_attr.sae.metrics import explained_variance, fit, l0
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.sae_check import (
    StatedMetrics,
    collect_sample,
    judge_sae,
    measure_sae,
    measure_sample,
)
from sae_attr.sae_check.sparsity import reconstruct_at, variance_at
from sae_attr.sae_check.variants import fit_variants
from tests.attribution._tiny import VOCAB, llama, random_params

pytestmark = pytest.mark.usefixtures("quick")

D, N, RNG = 32, 128, np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


DEC = unit(RNG.standard_normal((N, D))).astype(np.float32)


def barely_trained(threshold: float = 2.0) -> SAE:
    """Random directions and a threshold: whatever lets more of them fire explains more."""
    cfg = SAEConfig(D, D, N, gate="jumprelu")
    arrays = {
        "enc_dn": jnp.asarray(DEC.T),
        "enc_bias_n": jnp.zeros(N),
        "dec_nm": jnp.asarray(DEC),
    }
    return SAE(
        **arrays, dec_bias_m=jnp.zeros(D), threshold_n=jnp.full(N, threshold), cfg=cfg
    )


ACTS = RNG.standard_normal((600, D)).astype(np.float32)


def test_no_more_latents_than_asked_for_and_the_largest_of_them() -> None:
    sae = barely_trained(0.5)
    sparse = reconstruct_at(sae, ACTS, 4.0)
    assert sparse.l0 > 20
    assert sparse.recon.active_k.mean() == pytest.approx(4.0, abs=0.01)
    assert sparse.recon.fired_n.sum() == 2400
    codes = np.maximum(ACTS @ DEC.T, 0)
    cut = np.sort(codes.ravel())[-2400]
    np.testing.assert_allclose(
        sparse.recon.recon_kd, np.where(codes >= cut, codes, 0) @ DEC, atol=1e-5
    )
    assert (
        reconstruct_at(sae, ACTS, sparse.l0 / 1.05).recon.active_k.mean() == sparse.l0
    )  # within 10 % is equal


def test_an_open_gate_explains_more_and_repairs_nothing() -> None:
    sae = replace(
        barely_trained(), dec_nm=jnp.asarray(DEC) * 0.6
    )  # random rows overlap; 0.6 is the best length
    here = fit(sae, ACTS)
    opened = replace(sae, enc_dn=sae.enc_dn * 4, dec_nm=sae.dec_nm / 4)
    shrunk = replace(opened, dec_nm=opened.dec_nm * 0.5)
    assert explained_variance(fit(shrunk, ACTS)) > explained_variance(here) + 0.2
    assert variance_at(opened, ACTS, ACTS, l0(here)) == pytest.approx(
        explained_variance(here), abs=1e-3
    )
    for variant in fit_variants(sae, ACTS, active=l0(here), stated_l0=None):
        assert variant.explained_variance < explained_variance(here) + 0.05, variant


CFG, SITE, SINK = llama(), Site(1), 7
TOKENS = RNG.integers(8, VOCAB, (8, 40)).astype(np.int32)
TOKENS[:, 0] = SINK
VALID = np.ones_like(TOKENS, bool)


def test_sinks_are_masked_as_in_training() -> None:
    params, mesh = random_params(CFG), make_mesh("data=1")
    params = {**params, "embed": {"table": params["embed"]["table"].at[SINK].mul(300)}}
    enc = np.linalg.qr(RNG.standard_normal((16, 16)))[0].astype(np.float32)
    both = np.concatenate(
        [enc, -enc]
    )  # explains everything that does not lie beyond its clipping
    arrays = {
        "enc_dn": jnp.asarray(both.T),
        "enc_bias_n": jnp.zeros(32),
        "dec_nm": jnp.asarray(both),
    }
    sae = SAE(
        **arrays,
        dec_bias_m=jnp.zeros(16),
        cfg=SAEConfig(16, 16, 32, norm="none", site="layer1.resid_post"),
    )
    work = [(TOKENS, VALID, np.zeros_like(VALID))]
    collected = [
        collect_sample(
            params, work, cfg=CFG, site=SITE, mesh=mesh, beside=64, masks=masks
        )
        for masks in (None, Masks(outlier=None), Masks(first_k=2, outlier=None))
    ]
    assert [sample.counts["norm_outlier"] for sample in collected] == [8, 0, 0]
    assert [sample.counts["first_k"] for sample in collected] == [0, 0, 16]
    assert [len(sample.plain(SITE)) for sample in collected] == [312, 320, 304]
    few = [(TOKENS[:2], VALID[:2], np.zeros_like(VALID[:2]))]
    with pytest.raises(
        ValueError,
        match=r"78 tokens of the corpus count, too few to test the SAE on \(at least 100\)",
    ):
        measure_sae(params, sae, few, cfg=CFG, site=SITE, mesh=mesh)
    measured = measure_sample(
        params, sae, collected[0], cfg=CFG, mesh=mesh, loss_tokens=320
    )
    assert measured.masked == {
        "kept": 312,
        "special": 0,
        "first_k": 0,
        "norm_outlier": 8,
    }
    assert measured.metrics["tokens"] == 312
    assert measured.recovered["mean"] == pytest.approx(1, abs=1e-3)
    assert judge_sae(measured, StatedMetrics(), counts_special=False).passes
