"""Metrics against their definitions, and sums that do not care how tokens are batched."""

import numpy as np
import pytest

from sae_attr.sae.metrics import dead_share, decoder_norms, explained_variance, fit, l0, mse, reconstruct_tokens
from sae_attr.sae.model import SAE, SAEConfig


@pytest.fixture
def sae() -> SAE:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cfg = SAEConfig(d_in=6, d_out=6, n_latents=16)
    return SAE(enc_dn=draw(6, 16), enc_bias_n=draw(16) - 5, dec_nm=draw(16, 6), dec_bias_m=draw(6), cfg=cfg)


ACTS = np.random.default_rng(1).standard_normal((3000, 6)).astype(np.float32) * 2 + 100


def test_definitions(sae: SAE) -> None:
    x, out, sums = ACTS.astype(np.float64), reconstruct_tokens(sae, ACTS), fit(sae, ACTS)
    y = out.recon_kd.astype(np.float64)
    assert explained_variance(sums) == pytest.approx(1 - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-9)
    assert mse(sums) == pytest.approx(((x - y) ** 2).mean(), rel=1e-9)
    codes = np.maximum(x @ np.asarray(sae.enc_dn) + np.asarray(sae.enc_bias_n), 0)
    assert l0(sums) == pytest.approx((codes > 0).sum(1).mean(), rel=1e-3)
    assert dead_share(sums) == pytest.approx((codes > 0).any(0).__invert__().mean())
    norms = np.linalg.norm(np.asarray(sae.dec_nm), axis=1)
    assert decoder_norms(sae) == pytest.approx((norms.min(), np.median(norms), norms.max()))


@pytest.mark.parametrize("size", [1, 999, 3000])
def test_sums_add_up_over_batches(sae: SAE, size: int) -> None:
    acts = ACTS[: 3 * size] if size == 1 else ACTS
    parts = [fit(sae, acts[i : i + size]) for i in range(0, len(acts), size)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = fit(sae, acts)
    assert total.tokens == whole.tokens
    assert explained_variance(total) == pytest.approx(explained_variance(whole), rel=1e-9)
    np.testing.assert_array_equal(total.fired_n, whole.fired_n)


def test_a_transcoder_reconstructs_nothing(sae: SAE) -> None:
    cfg = SAEConfig(d_in=6, d_out=5, n_latents=16)
    with pytest.raises(ValueError, match="reads width 6 and writes 5"):
        fit(SAE(sae.enc_dn, sae.enc_bias_n, sae.dec_nm[:, :5], sae.dec_bias_m[:5], cfg=cfg), ACTS)
