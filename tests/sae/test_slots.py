"""The sparse products against dense ones, and the selection against a sort, ties
included.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.parallel import make_mesh
from sae_attr.sae.selection import _at_least, batch_topk, kth_largest, row_topk
from sae_attr.sae.slots import Slots, decode_slots, encoded, fired

B, D, N, K = 6, 5, 16, 3


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "ties", "few", "tiny"])
def test_the_kth_largest_is_that_of_a_sort(kind: str) -> None:
    values = draw(40, 50)
    if kind == "ties":
        values = np.round(values)
    if kind == "few":
        values[values < 2.5] = -0.0
    if kind == "tiny":
        values *= np.float32(1e-38)
    ranked = np.sort(np.maximum(values, 0).ravel())[::-1]
    for k in (1, 2, 37, 999, 2000):
        found = jax.jit(kth_largest, static_argnums=1)(values, k)
        assert float(found) == ranked[k - 1]


def test_counts_beyond_32_bits() -> None:
    full = jnp.ones((2, 3 * 2**16), bool)
    assert bool(_at_least(full, 6 * 2**16))
    assert not bool(_at_least(full, 6 * 2**16 + 1))
    assert bool(_at_least(full, 1))


@pytest.mark.parametrize("parts", [2, 4])
def test_ranking_by_parts_changes_nothing(parts: int) -> None:
    pre = np.round(draw(B, N) * 2)  # many ties
    mesh = make_mesh(f"model={parts}")
    for whole, split in zip(row_topk(pre, K), row_topk(pre, K, mesh), strict=True):
        np.testing.assert_array_equal(whole, split)


def reference(pre: np.ndarray, k: int) -> np.ndarray:
    """Codes of BatchTopK by a stable sort: larger first, of equal ones the earlier row,
    then the lower latent.
    """
    flat = np.maximum(pre, 0).ravel()
    order = np.argsort(-flat, kind="stable")[: k * len(pre)]
    codes = np.zeros_like(flat)
    codes[order] = flat[order]
    return codes.reshape(pre.shape)


def dense(slots: Slots, b: int, n: int) -> np.ndarray:
    codes = np.zeros((b, n), np.float32)
    rows = (
        np.broadcast_to(np.arange(b), slots.latents_sb.shape)
        if slots.rows_sb is None
        else slots.rows_sb
    )
    np.add.at(
        codes,
        (np.asarray(rows), np.asarray(slots.latents_sb)),
        np.asarray(slots.values_sb),
    )
    return codes


@pytest.mark.parametrize("candidates", [3, 6, 16])
@pytest.mark.parametrize("kind", ["normal", "ties", "few", "one row"])
def test_batch_topk_is_that_of_a_sort(kind: str, candidates: int) -> None:
    pre = draw(B, N)
    if kind == "ties":
        pre = np.round(pre)
    if kind == "few":
        pre -= 1.5
    if kind == "one row":
        pre[2] += 10
    choice = jax.jit(batch_topk, static_argnums=(1, 2))(pre, K, candidates)
    want = reference(pre, K)
    np.testing.assert_array_equal(dense(choice.slots, B, N), want)
    ranked = np.sort(np.maximum(pre, 0).ravel())[::-1]
    assert float(choice.threshold) == ranked[B * K - 1]
    per_row = (pre >= max(ranked[B * K - 1], 1e-9)).sum(1).max()
    assert bool(choice.spilled) == (per_row >= candidates < N)
    np.testing.assert_array_equal(fired(choice.slots, N), (want > 0).any(0))


@pytest.mark.parametrize("wide", [0, 1, 3, 4])
def test_batch_topk_with_a_few_rows_of_many_latents(wide: int) -> None:
    """Up to a sixteenth of the rows (3 of 40) are searched whole, beyond that the
    matrix; equal values on both sides.
    """
    pre = np.minimum(np.round(2 * draw(40, 64) + 1), 2)
    pre[:, 7:] = 0  # fewer than 8 positive in a plain row
    pre[[7, 0, 39, 20][:wide], :] = np.round(2 * draw(wide, 64, seed=1) + 1)
    choice = jax.jit(batch_topk, static_argnums=(1, 2))(pre, 4, 8)
    np.testing.assert_array_equal(dense(choice.slots, 40, 64), reference(pre, 4))
    assert float(choice.threshold) == np.sort(np.maximum(pre, 0).ravel())[::-1][160 - 1]
    assert bool(choice.spilled) == (wide > 0)


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("parts", ["", "data=2,model=2", "model=4", "data=4"])
def test_gradients_are_those_of_dense_products(with_rows: bool, parts: str) -> None:
    """On four devices rows do not divide, all that they have goes to each."""
    mesh = make_mesh(parts) if parts else None
    x = draw(B, D)
    enc = draw(D, N, seed=1)
    bias = draw(N, seed=2)
    dec = draw(N, D, seed=3)
    target = draw(B, D, seed=4)
    pre = x @ enc + bias
    if with_rows:
        slots = batch_topk(jnp.asarray(pre), K, N, mesh).slots
    else:
        values, latents = row_topk(jnp.asarray(pre), K, mesh)
        slots = Slots(jax.nn.relu(values).T, latents.T)
    mask = dense(slots, B, N) > 0

    def sparse_loss(x, enc, bias, dec):
        y = decode_slots(encoded(slots, x, enc, bias, mesh), dec, B, mesh)
        return jnp.sum((y - target) ** 2)

    def dense_loss(x, enc, bias, dec):
        codes = jnp.where(mask, x @ enc + bias, 0)
        return jnp.sum((codes @ dec - target) ** 2)

    ours = jax.jit(jax.value_and_grad(sparse_loss, (0, 1, 2, 3)))(x, enc, bias, dec)
    want = jax.value_and_grad(dense_loss, (0, 1, 2, 3))(x, enc, bias, dec)
    assert float(ours[0]) == pytest.approx(float(want[0]), rel=1e-5)
    for got, expected in zip(ours[1], want[1], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
