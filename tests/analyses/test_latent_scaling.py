"""Latent Scaling of a planted crosscoder, whose β and ν are what was planted."""

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.latent_scaling import (
    BASE_ONLY,
    FT_ONLY,
    OTHER,
    SHARED,
    SpecificitySettings,
    latent_classes,
    latent_scaling,
    truly_specific,
)
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.sae.two_models import relative_norms

WIDTH = 12
# What the base model really has of each latent, what the crosscoder's base row says,
# and what other latents say of it: shared, ft only, shrinkage, decoupling, base only.
TRUTH = np.array([1.0, 0.0, 0.7, 0.8, 0.0])
BASE_ROW = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
ELSEWHERE = np.array([0.0, 0.0, 0.0, 0.8, 0.0])


def planted(tokens: int = 400) -> tuple[SAE, np.ndarray]:
    """A crosscoder with orthogonal rows, and activations [tokens, 2, d]. Latent 5 is of
    the base model alone and fires with latent 3, whose direction it writes there.
    """
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    scale = rng.uniform(0.5, 2, 5)
    rows = basis[:5] * scale[:, None]
    base, tuned = rows * BASE_ROW[:, None], rows.copy()
    tuned[4] = 0
    base[4] = rows[4]
    base = np.concatenate([base, ELSEWHERE[3] * rows[3:4]])
    tuned = np.concatenate([tuned, np.zeros((1, WIDTH))])
    codes = rng.uniform(0.5, 1.5, (tokens, 5)) * (rng.random((tokens, 5)) < 0.3)
    x_base = codes[:, :4] @ (TRUTH[:4, None] * rows[:4]) + codes[:, 4:] @ rows[4:]
    x_tuned = codes[:, :4] @ rows[:4]
    # The encoder reads codes off exactly: of the fine-tuned stream, latents 4 and 5 off
    # the base stream.
    reads = (basis[:5] / scale[:, None]).T
    enc = np.zeros((2, WIDTH, 6))
    enc[1, :, :4] = reads[:, :4]
    enc[0, :, 4] = reads[:, 4]
    enc[0, :, 5] = reads[:, 3] / ELSEWHERE[3]
    sae = SAE(
        jnp.asarray(enc.reshape(-1, 6), jnp.float32),
        jnp.zeros(6),
        jnp.asarray(np.stack([base, tuned], 1).reshape(6, -1), jnp.float32),
        jnp.zeros(2 * WIDTH),
        threshold_n=jnp.full(6, 0.1),
        cfg=SAEConfig(WIDTH, WIDTH, 6, gate="jumprelu", streams=2),
    )
    return sae, np.stack([x_base, x_tuned], 1).astype(np.float32)


def test_betas_and_nus_are_the_planted_ones_however_tokens_are_cut():
    sae, x = planted()
    whole = latent_scaling(sae, [x])
    parts = latent_scaling(sae, [x[:130], x[130:260], x[260:]])
    assert whole.tokens == parts.tokens == 400
    np.testing.assert_allclose(parts.error_mn, whole.error_mn, atol=1e-5)
    np.testing.assert_allclose(whole.error_mn[1, :4], 1, atol=1e-5)
    np.testing.assert_allclose(whole.reconstruction_mn[1, :4], 1, atol=1e-5)
    # Decoupling: another latent has the direction, so that no error is left of it.
    error = np.where(ELSEWHERE[:4] > 0, 0, TRUTH[:4])
    np.testing.assert_allclose(whole.nu_error_n[:4], error, atol=1e-5)
    recon = BASE_ROW[:4] + ELSEWHERE[:4]
    np.testing.assert_allclose(whole.nu_reconstruction_n[:4], recon, atol=1e-5)
    assert np.isnan(whole.nu_error_n[4:]).all()  # no row in the fine-tuned model


def test_only_the_latent_that_the_base_lacks_is_truly_specific():
    sae, x = planted()
    norm = relative_norms(sae)
    np.testing.assert_allclose(norm, [0.5, 1, 1, 1, 0, 0], atol=1e-6)
    settings = SpecificitySettings()
    classes = latent_classes(norm, settings)
    named = [next(name for name in classes if classes[name][i]) for i in range(6)]
    assert named == [SHARED, FT_ONLY, FT_ONLY, FT_ONLY, BASE_ONLY, BASE_ONLY]
    assert latent_classes(np.array([0.7]), settings)[OTHER].all()
    specific = truly_specific(norm, latent_scaling(sae, [x]), settings)
    assert specific.tolist() == [False, True, False, False, False, False]


def test_other_dictionaries_and_other_activations_are_refused():
    sae, x = planted(8)
    with pytest.raises(ValueError, match=r"shape \(8, 12\).*stack the base"):
        latent_scaling(sae, [x[:, 0]])
    with pytest.raises(ValueError, match="no token"):
        latent_scaling(sae, [])
    one = SAE(
        sae.enc_dn[:WIDTH],
        sae.enc_bias_n,
        sae.dec_nm[:, :WIDTH],
        sae.dec_bias_m[:WIDTH],
        cfg=SAEConfig(WIDTH, WIDTH, 6),
    )
    with pytest.raises(ValueError, match=r"1 streams.*crosscoder of 2"):
        relative_norms(one)
    with pytest.raises(ValueError, match="rise in this order"):
        SpecificitySettings(ft_only=0.3)
