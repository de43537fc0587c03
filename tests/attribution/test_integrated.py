"""Integrated gradients: completed by exact losses at both ends, first order where the
loss is linear, and their contract.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    Path,
    act_and_grad,
    attribute,
    collect,
    exact_ablation,
    integrated_gradients,
    integrated_latents,
)
from sae_attr.hooks import Replace, Site
from sae_attr.lm.lrp import LRP
from sae_attr.parallel import make_mesh
from tests.attribution._tiny import (
    batch_of,
    llama,
    neox,
    off,
    plain_losses,
    ragged_rows,
    random_params,
)

pytestmark = pytest.mark.usefixtures("quick")

ROWS = ragged_rows(5)[2:6]
BATCH = batch_of(ROWS)
F64 = {"resid_dtype": "float64"}
WHERE = np.asarray(BATCH.valid_bt & ~BATCH.completion_bt)
SITES = [Site(0), Site(1, "mlp_out"), Site(1, "attn_z"), Site(2)]


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def directions(width: int, dtype: Any = float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    dec = rng.standard_normal((3, width))
    return (dec / np.linalg.norm(dec, axis=1, keepdims=True)).astype(
        dtype
    ), 0.3 * rng.standard_normal(width).astype(dtype)


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("family", [llama, neox], ids=lambda f: f.__name__)
def test_both_forms_are_completed_by_the_exact_loss(
    family: Any, site: Site, x64: None
) -> None:
    cfg = family(**F64)
    params = random_params(cfg)
    dec, mean = directions(cfg.width(site.point))
    plain = jax.jit(lambda p: act_and_grad(p, BATCH, cfg=cfg, sites=(site,)))(params)
    moved = jnp.where(WHERE[..., None], mean, plain.acts[site])
    losses = lambda edits: plain_losses(
        params, BATCH.tokens_bt, BATCH.completion_bt, edits, cfg=cfg
    )
    whole_b = np.asarray(losses({site: Replace(moved)}) - losses({}))
    exact_bk = jax.jit(
        lambda p: exact_ablation(p, BATCH, dec, mean, WHERE, cfg=cfg, site=site)
    )(params).dloss

    @jax.jit
    def sums(p: Any) -> list[tuple[jax.Array, jax.Array]]:
        out = []
        for steps in (4, 16):
            ours = integrated_gradients(
                p, BATCH, mean, WHERE, cfg=cfg, site=site, steps=steps
            )
            joint_b = -jnp.sum(
                ours.grads[site] * (ours.acts[site] - mean) * WHERE[..., None],
                axis=(1, 2),
            )
            paths = integrated_latents(
                p, BATCH, dec, mean, WHERE, cfg=cfg, site=site, steps=steps
            )
            out.append((joint_b, paths.delta_btk.sum(1)))
        return out

    (joint4, latents4), (joint16, latents16) = sums(params)
    if site == Site(
        2
    ):  # above the last attention prompts matter through their last token alone
        assert np.abs(exact_bk).max() > 1e-3
    assert (
        off(latents16, exact_bk)
        < 1e-3
        < off(
            (
                -jnp.einsum(
                    "btd,kd,btk,bt->bk",
                    plain.grads[site],
                    dec,
                    (plain.acts[site] - mean) @ dec.T,
                    WHERE * 1.0,
                )
            ),
            exact_bk,
        )
    )
    assert off(latents16, exact_bk) < 0.3 * off(latents4, exact_bk)
    assert off(joint16, whole_b) < max(0.3 * off(joint4, whole_b), 1e-4)


def test_the_contract_is_that_of_act_and_grad(x64: None) -> None:
    cfg, site, read = llama(**F64), Site(1, "mlp_out"), (Site(1, "mlp_in"), Site(0))
    params = random_params(cfg)
    _, mean = directions(16)
    plain = jax.jit(
        lambda p: act_and_grad(p, BATCH, cfg=cfg, sites=(site,), read=read)
    )(params)
    ours = jax.jit(
        lambda p: integrated_gradients(
            p, BATCH, mean, WHERE, cfg=cfg, site=site, read=read
        )
    )(params)
    assert set(ours.acts) == set(plain.acts) == {site, *read}
    assert set(ours.grads) == {site}
    for s in plain.acts:
        np.testing.assert_allclose(ours.acts[s], plain.acts[s], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.nll_bc, plain.nll_bc, rtol=1e-10, atol=1e-12)
    nowhere = jax.jit(
        lambda p: integrated_gradients(
            p, BATCH, mean, WHERE & False, cfg=cfg, site=site
        )
    )(params)
    np.testing.assert_allclose(
        nowhere.grads[site], plain.grads[site], rtol=1e-8, atol=1e-12
    )


def test_one_midpoint_is_the_gradient_half_way(x64: None) -> None:
    cfg, site = llama(**F64), Site(0)
    params = random_params(cfg)
    _, mean = directions(16)
    acts = jax.jit(lambda p: act_and_grad(p, BATCH, cfg=cfg, sites=(site,)))(
        params
    ).acts[site]
    half = jnp.where(WHERE[..., None], (acts + mean) / 2, acts)
    loss = lambda a: plain_losses(
        params, BATCH.tokens_bt, BATCH.completion_bt, {site: Replace(a)}, cfg=cfg
    ).sum()
    ours = jax.jit(
        lambda p: integrated_gradients(
            p, BATCH, mean, WHERE, cfg=cfg, site=site, steps=1
        )
    )(params)
    np.testing.assert_allclose(
        ours.grads[site], jax.jit(jax.grad(loss))(half), rtol=1e-8, atol=1e-12
    )


def test_a_table_of_integrated_gradients() -> None:
    cfg, site, mesh = llama(), Site(1), make_mesh("data=1")
    params, (dec, mean) = random_params(cfg), directions(16, np.float32)

    def where(batch: Any, row_b: np.ndarray) -> np.ndarray:
        return np.asarray(batch.valid_bt & ~batch.completion_bt)

    table = collect(
        params, ROWS, cfg=cfg, site=site, mesh=mesh, path=Path(mean, where, 3)
    )
    want = integrated_gradients(params, BATCH, mean, WHERE, cfg=cfg, site=site, steps=3)
    for r, row in enumerate(ROWS):
        assert (
            off(
                table.grads_kd[table.tokens_of(r)][:-1],
                want.grads[site][r, : len(row.ids) - 1],
            )
            < 1e-4
        )
        assert (
            off(table.acts_kd[table.tokens_of(r)], want.acts[site][r, : len(row.ids)])
            < 1e-5
        )
    with pytest.raises(ValueError, match="backward rules or a path, not both"):
        collect(
            params,
            ROWS,
            cfg=cfg,
            site=site,
            mesh=mesh,
            path=Path(mean, where, 3),
            rules=LRP,
        )
    with pytest.raises(ValueError, match="with 0 steps; take at least 1"):
        integrated_gradients(params, BATCH, mean, WHERE, cfg=cfg, site=site, steps=0)
    scores = attribute(want.acts[site], want.grads[site], WHERE * 1.0, dec, mean)
    assert np.isfinite(scores).all()
