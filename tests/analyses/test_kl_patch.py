"""The KL patch, where the crosscoder's latents are all that the models differ in."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.crosscoder_measures import patched_sets
from sae_attr.analyses.kl_patch import patch_kl
from sae_attr.analyses.latent_scaling import LatentScaling
from sae_attr.hooks import Replace, Site
from sae_attr.lm.model import forward, logits
from sae_attr.sae.model import SAE, SAEConfig
from tests.attribution._tiny import llama, random_params

pytestmark = pytest.mark.usefixtures("quick")


def test_latents_that_are_the_whole_difference_leave_no_divergence():
    cfg, site = llama(), Site(1)
    params = random_params(cfg)
    rng = np.random.default_rng(0)
    d = cfg.d_model
    tokens_bt = rng.integers(0, cfg.vocab, (2, 5))
    counted_bt = np.arange(5) > 0
    counted_bt = np.broadcast_to(counted_bt, (2, 5))
    tuned = forward(params, jnp.asarray(tokens_bt), cfg=cfg, keep=(site,)).acts[site]
    # Two latents read two directions of the fine-tuned model, which the base lacks.
    # Along two of the activations, so that each is active somewhere.
    picked_2d = np.asarray(tuned)[[0, 1], [2, 3]]
    rows_2d = np.linalg.qr(picked_2d.T)[0].T
    rows_2d *= np.sign(np.sum(rows_2d * picked_2d, axis=1, keepdims=True))
    codes_bt2 = np.maximum(np.asarray(tuned) @ rows_2d.T, 0)
    base = np.asarray(tuned) - codes_bt2 @ rows_2d
    enc = np.concatenate([np.zeros((d, 2)), rows_2d.T])
    dec = np.concatenate([np.zeros((2, d)), rows_2d], axis=1)
    sae = SAE(
        jnp.asarray(enc, jnp.float32),
        jnp.zeros(2),
        jnp.asarray(dec, jnp.float32),
        jnp.zeros(2 * d),
        cfg=SAEConfig(d, d, 2, streams=2),
    )
    x_btmd = np.stack([base, tuned], axis=2)
    sets = np.array([[0, 0], [1, 1], [1, 0]], bool)
    run = lambda sae: patch_kl(
        params, sae, tokens_bt, x_btmd, counted_bt, sets, cfg=cfg, site=site
    )
    nothing, both, one = run(sae)
    np.testing.assert_allclose(both, 0, atol=1e-5)
    assert nothing.max() > 1e-3
    apart = np.abs(one - nothing).max(), np.abs(one - both).max()
    assert min(apart) > 1e-4
    np.testing.assert_allclose(nothing[:, 0], 0, atol=1e-6)  # BOS does not count
    edits = {site: Replace(jnp.asarray(base), jnp.asarray(counted_bt))}
    log_p = []
    for edit in ({}, edits):
        out = forward(params, jnp.asarray(tokens_bt), cfg=cfg, edits=edit)
        log_p.append(jax.nn.log_softmax(logits(params, out.hidden_btd, cfg=cfg)))
    expected = jnp.sum(jnp.exp(log_p[0]) * (log_p[0] - log_p[1]), axis=-1)
    np.testing.assert_allclose(nothing, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"3 streams.*crosscoder of 2"):
        run(replace(sae, cfg=replace(sae.cfg, streams=3)))


def test_halves_are_by_both_nus_of_the_latents_that_fired():
    nu = np.array([[1.0] * 5, [2.0, 1.0, 10.0, 5.0, 1.0]])  # ν = 1 / the second row
    scaling = LatentScaling(nu, nu, np.array([3, 4, 5, 6, 0]), 9)
    norm_n = np.array([0.9, 0.8, 0.99, 0.3, 1.0])
    sets = patched_sets(norm_n, scaling, 2)
    members = {name: np.flatnonzero(is_n).tolist() for name, is_n in sets.items()}
    assert members["specific"] == [0, 2]  # latent 4 never fired
    assert members["low_nu"] == [2]
    assert members["high_nu"] == [0]
    assert members["nothing"] == []
