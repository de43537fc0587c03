"""The modes of steering against their formulas, one edit at a time."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Edit, SetProjection, Within
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE, encode
from sae_attr.steering.interventions import intervention, set_activations

B, T, D, N = 3, 4, 5, 7
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, D)).astype(np.float32)
POS = np.broadcast_to(np.arange(T), (B, T))
LATENT = 2


def draw(shape: tuple[int, ...], *, unit: bool = False) -> np.ndarray:
    v = np.asarray(RNG.standard_normal(shape), np.float32)
    return v / np.linalg.norm(v, axis=-1, keepdims=True) if unit else v


@jax.jit
def call(edit: Any, x: Any) -> jax.Array:
    return edit(x, jnp.asarray(POS))


def removed(direction: np.ndarray) -> Edit:
    """Mode project_out of one direction, `[d]` for all rows or `[b, d]`."""
    directions_bmd = np.broadcast_to(direction, (B, D))[:, None]
    return intervention(
        jnp.asarray(directions_bmd), jnp.ones((B, 1)), mode="project_out"
    )


def relu_sae(enc: np.ndarray, dec: np.ndarray) -> SAE:
    cfg = SAEConfig(d_in=D, d_out=D, n_latents=N, gate="relu")
    zeros = jnp.zeros(N), jnp.zeros(D)
    return SAE(jnp.asarray(enc), zeros[0], jnp.asarray(dec), zeros[1], cfg=cfg)


def clamped(sae: SAE, value: Any) -> Edit:
    """Mode clamp of one latent to a value, `[]` for all rows or `[b]`."""
    value_bm = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (B,))[:, None]
    latents_bm = jnp.full((B, 1), LATENT)
    return intervention(
        jnp.zeros((B, 1, D)), value_bm, mode="clamp", sae=sae, latents_bm=latents_bm
    )


@pytest.mark.parametrize("shape", [(D,), (B, D)], ids=["[d]", "[b, d]"])
def test_projecting_out(shape: tuple[int, ...]) -> None:
    d = draw(shape, unit=True)
    d_btd = np.broadcast_to(d, (B, D))[:, None]
    want = X - (X * d_btd).sum(-1, keepdims=True) * d_btd
    got = call(removed(d), X)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((got * d_btd).sum(-1), 0, atol=1e-6)
    zeroed = call(SetProjection(jnp.asarray(d), 0.0), X)
    np.testing.assert_allclose(got, zeroed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (B,)], ids=["[]", "[b]"])
def test_clamping_keeps_what_the_autoencoder_does_not_explain(
    shape: tuple[int, ...],
) -> None:
    enc, dec, value = draw((D, N)), draw((N, D)), np.abs(draw(shape)) + 3
    got = call(clamped(relu_sae(enc, dec), value), X)
    codes = np.maximum(X @ enc, 0)
    error = X - codes @ dec
    codes[..., LATENT] = np.broadcast_to(value, (B,))[:, None]
    np.testing.assert_allclose(got, codes @ dec + error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["relu", "topk"])
def test_one_activation_a_row_is_set_and_rows_before_stay(gate: str) -> None:
    sae = relu_sae(draw((D, N)), draw((N, D)))
    sae = sae.replace(cfg=replace(sae.cfg, gate=gate, k=3 if gate == "topk" else None))
    latents, values = (5, 2), np.array([0.7, 1.9], np.float32)
    got = np.asarray(call(set_activations(sae, latents, values, unedited=1), X))
    np.testing.assert_array_equal(got[0], X[0])
    codes = np.asarray(encode(sae, jnp.asarray(X)))
    for row, (latent, value) in enumerate(zip(latents, values, strict=True), start=1):
        gap = value - codes[row, :, latent, None]
        want = X[row] + gap * np.asarray(sae.dec_nm)[latent]
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-5)


def test_nothing_changes_outside_the_range() -> None:
    sae = relu_sae(draw((D, N)), draw((N, D)))
    for edit in (removed(draw((D,), unit=True)), clamped(sae, 1.5)):
        everywhere = call(edit, X)
        inside_bt1 = ((POS >= 1) & (POS < 3))[..., None]
        want = np.where(inside_bt1, everywhere, X)
        np.testing.assert_allclose(call(Within(edit, 1, 3), X), want, rtol=1e-6)
        assert np.abs(want - X).max() > 0.1
        np.testing.assert_array_equal(call(Within(edit, 2, 2), X), X)


def test_the_dtype_of_the_activation_is_kept() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    sae = relu_sae(draw((D, N)), draw((N, D)))
    for edit in (removed(draw((D,), unit=True)), clamped(sae, 1.5)):
        assert edit(x, jnp.asarray(POS)).dtype == jnp.bfloat16


def test_two_modes_of_one_shape_are_two_programs() -> None:
    """Else a jitted function may take the program of one for the other's."""
    sae = relu_sae(draw((D, N)), draw((N, D)))
    structures = map(jax.tree.structure, (removed(draw((D,))), clamped(sae, 1.0)))
    assert len(set(structures)) == 2
