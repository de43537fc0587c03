"""Gradients at every point: finite differences, plain `jax.grad`, causality, and what
must not change them.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import SiteGradients, act_and_grad, collect
from sae_attr.hooks import POINTS, Add, Replace, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import LM_RULES, make_mesh, shard_batch, shard_tree
from sae_attr.text.batching import RowBatch
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

ROWS = ragged_rows(5)[2:6]  # 8, 19, 11 and 30 tokens
F64 = {"resid_dtype": "float64"}


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sites_of(cfg: LMConfig) -> tuple[Site, ...]:
    inner = [
        Site(1, point)
        for point in POINTS
        if not (cfg.parallel_residual and point == "resid_mid")
    ]
    return Site(0, "resid_pre"), *inner, Site(cfg.n_layers - 1)


def gradients(
    params: Params,
    batch: RowBatch,
    cfg: LMConfig,
    sites: tuple[Site, ...],
    **options: Any,
) -> SiteGradients:
    return jax.jit(lambda p, b: act_and_grad(p, b, cfg=cfg, sites=sites, **options))(
        params, batch
    )


@functools.cache
def at_every_point(cfg: LMConfig) -> Callable[[RowBatch], SiteGradients]:
    step = jax.jit(lambda p, b: act_and_grad(p, b, cfg=cfg, sites=sites_of(cfg)))
    return lambda batch: step(random_params(cfg), batch)


@pytest.fixture(params=["llama", "neox"])
def case(
    request: pytest.FixtureRequest, x64: None
) -> tuple[LMConfig, Params, RowBatch, SiteGradients]:
    """A float64 model, a ragged batch and its gradients at every kind of site."""
    cfg = (llama if request.param == "llama" else neox)(**F64)
    batch = batch_of(ROWS)
    return cfg, random_params(cfg), batch, at_every_point(cfg)(batch)


only_llama = pytest.mark.parametrize("case", ["llama"], indirect=True)
Case = tuple[LMConfig, Params, RowBatch, SiteGradients]


def test_finite_differences_at_every_point(case: Case) -> None:
    cfg, params, batch, out = case
    rng = np.random.default_rng(0)
    shapes = {site: out.acts[site].shape for site in sites_of(cfg)}
    zeros = {site: np.zeros(shape) for site, shape in shapes.items()}
    losses = jax.jit(
        lambda shift: plain_losses(
            params,
            batch.tokens_bt,
            batch.completion_bt,
            {site: Add(v) for site, v in shift.items()},
            cfg=cfg,
        )
    )
    np.testing.assert_allclose(losses(zeros), np.asarray(out.nll_bc).sum(1), rtol=1e-11)
    step = 1e-4
    for site, shape in shapes.items():
        assert shape[-1] == {
            "attn_z": cfg.n_heads * cfg.head_dim,
            "mlp_hidden": 20,
        }.get(site.point, 16)
        for _ in range(2):
            v = rng.standard_normal(shape)
            along = lambda s: np.asarray(losses({**zeros, site: s * v}))  # noqa: B023
            slope_b = (
                8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))
            ) / (12 * step)
            want_b = np.einsum("btd,btd->b", v, out.grads[site])
            np.testing.assert_allclose(
                slope_b,
                want_b,
                rtol=1e-7,
                atol=1e-7 * np.abs(want_b).max(),
                err_msg=str(site),
            )


@pytest.mark.parametrize(
    ("case", "point"), [("llama", "resid_post"), ("neox", "attn_z")], indirect=["case"]
)
def test_plain_grad_through_a_replacement(point: str, case: Case) -> None:
    cfg, params, batch, out = case
    site = Site(1, point)
    loss = lambda a: plain_losses(
        params, batch.tokens_bt, batch.completion_bt, {site: Replace(a)}, cfg=cfg
    ).sum()
    want = jax.jit(jax.grad(loss))(out.acts[site])
    np.testing.assert_allclose(
        out.grads[site], want, rtol=1e-9, atol=1e-11 * np.abs(want).max()
    )


@only_llama
def test_an_upper_sites_gradient_does_not_depend_on_which_sites_are_asked(
    case: Case,
) -> None:
    cfg, params, batch, out = case
    alone = gradients(params, batch, cfg, (Site(1),))
    np.testing.assert_allclose(
        alone.grads[Site(1)], out.grads[Site(1)], rtol=1e-10, atol=1e-14
    )
    np.testing.assert_allclose(alone.acts[Site(1)], out.acts[Site(1)], rtol=1e-12)


def test_nothing_flows_back_from_beyond_the_completion(case: Case) -> None:
    """The last completion token predicts nothing that counts, and padding neither:
    exactly zero, before it not.
    """
    cfg, _, _, out = case
    for site in sites_of(cfg):
        grads = np.asarray(out.grads[site])
        for k, r in enumerate(ROWS):
            assert not grads[k, len(r.ids) - 1 :].any(), site
            assert np.abs(grads[k, len(r.ids) - 2]).max() > 1e-6, site
            assert np.abs(grads[k, 0]).max() > (
                1e-9 if site != Site(cfg.n_layers - 1) else -1
            ), site
            if site == Site(cfg.n_layers - 1):
                assert not grads[k, : r.n_prompt - 1].any()


def test_activations_do_not_see_later_tokens(case: Case) -> None:
    cfg, _, batch, out = case
    t = 6
    changed = np.array(batch.tokens_bt)
    changed[:, t:] = (changed[:, t:] + 7) % 40
    other = at_every_point(cfg)(replace(batch, tokens_bt=changed))
    for site in sites_of(cfg):
        gap = np.abs(np.asarray(other.acts[site]) - np.asarray(out.acts[site])).max(
            axis=(0, 2)
        )
        assert gap[t] > 1e-6, site
        assert not gap[:t].any(), site


def test_the_completions_of_a_prompt_have_equal_prompt_activations_and_unequal_gradients(
    case: Case,
) -> None:
    cfg, _, _, out = case
    assert ROWS[0].pair == ROWS[1].pair
    for site in sites_of(cfg)[:-1]:
        acts, grads = (
            np.asarray(x)[:2, : ROWS[0].n_prompt]
            for x in (out.acts[site], out.grads[site])
        )
        np.testing.assert_allclose(acts[0], acts[1], rtol=1e-12, atol=1e-14)
        assert off(grads[0], grads[1]) > 0.1


@only_llama
def test_mean_loss_divides_each_row_by_its_own_length(case: Case) -> None:
    cfg, params, batch, out = case
    mean = gradients(params, batch, cfg, (Site(1),), loss="mean")
    lengths = np.array([len(r.ids) - r.n_prompt for r in ROWS])
    assert len(set(lengths)) > 2
    want = np.asarray(out.grads[Site(1)]) / lengths[:, None, None]
    np.testing.assert_allclose(mean.grads[Site(1)], want, rtol=1e-9, atol=1e-14)


@only_llama
def test_an_edit_elsewhere_is_in_force(case: Case) -> None:
    cfg, params, batch, out = case
    edit = {Site(0): Add(jnp.ones(16))}
    got = gradients(params, batch, cfg, (Site(1),), edits=edit)
    loss = lambda a: plain_losses(
        params,
        batch.tokens_bt,
        batch.completion_bt,
        {**edit, Site(1): Replace(a)},
        cfg=cfg,
    ).sum()
    np.testing.assert_allclose(
        got.grads[Site(1)],
        jax.jit(jax.grad(loss))(got.acts[Site(1)]),
        rtol=1e-8,
        atol=1e-12,
    )
    assert off(got.acts[Site(1)], out.acts[Site(1)]) > 0.01


# ---- what must not change them, in float32 -------------------------------------------


@pytest.fixture(scope="module")
def plain() -> tuple[LMConfig, Params, SiteGradients]:
    cfg = llama()
    params = random_params(cfg)
    return (
        cfg,
        params,
        gradients(params, batch_of(ROWS), cfg, (Site(1), Site(1, "attn_z"))),
    )


Plain = tuple[LMConfig, Params, SiteGradients]


def same(got: SiteGradients, want: SiteGradients, rows: int = 4) -> None:
    for site in want.acts:
        assert off(got.acts[site][:rows], want.acts[site]) < 1e-5
        assert off(got.grads[site][:rows], want.grads[site]) < 1e-5
    assert off(got.nll_bc[:rows], want.nll_bc) < 1e-5


def test_sharding_changes_nothing(plain: Plain) -> None:
    cfg, params, want = plain
    mesh = make_mesh("data=2,model=2")
    params = shard_tree(params, LM_RULES, mesh)
    assert not params["blocks"]["q"]["kernel"].sharding.is_fully_replicated
    same(
        gradients(params, shard_batch(batch_of(ROWS), mesh), cfg, tuple(want.acts)),
        want,
    )


def test_remat_changes_nothing(plain: Plain) -> None:
    cfg, params, want = plain
    same(gradients(params, batch_of(ROWS), cfg, tuple(want.acts), remat=True), want)


def test_padding_changes_nothing(plain: Plain) -> None:
    cfg, params, want = plain
    width = want.nll_bc.shape[1]
    got = gradients(params, batch_of(ROWS, width=41, empty=2), cfg, tuple(want.acts))
    for site in want.acts:
        assert not np.asarray(got.grads[site])[4:].any()
        assert not np.asarray(got.grads[site])[:, 30:].any()
    cut = lambda tree: {site: x[:, :30] for site, x in tree.items()}
    same(SiteGradients(cut(got.acts), cut(got.grads), got.nll_bc[:, :width]), want)
    assert not np.asarray(got.nll_bc)[4:].any()


def test_batch_size_changes_nothing(plain: Plain) -> None:
    cfg, params, _ = plain
    mesh, rows = make_mesh("data=1"), [r for r in ragged_rows(6) if len(r.ids) <= 32]
    three, eight = (
        collect(params, rows, cfg=cfg, site=Site(1), mesh=mesh, batch_size=b)
        for b in (3, 8)
    )
    assert off(three.acts_kd, eight.acts_kd) < 1e-5
    assert off(three.grads_kd, eight.grads_kd) < 1e-5
    assert off(three.nll_r, eight.nll_r) < 1e-5
    np.testing.assert_array_equal(
        three.start_r, np.cumsum([0, *(len(r.ids) for r in rows)])
    )


# ---- errors --------------------------------------------------------------------------


def test_refusals() -> None:
    batch = batch_of(ROWS)

    def refused(cfg: LMConfig, *sites: Site, **options: Any) -> None:
        jax.eval_shape(
            lambda p: act_and_grad(p, batch, cfg=cfg, sites=sites, **options),
            random_params(cfg),
        )

    with pytest.raises(
        ValueError, match=r"layer1.resid_post is edited and differentiated at once"
    ):
        refused(llama(), Site(0), Site(1), edits={Site(1): Add(jnp.zeros(16))})
    with pytest.raises(
        ValueError,
        match=r"layer3.resid_post lies outside the model, whose layers are 0..2",
    ):
        refused(llama(), Site(3))
    with pytest.raises(ValueError, match=r"gpt_neox block .* has no resid_mid"):
        refused(neox(), Site(1, "resid_mid"))
    with pytest.raises(
        ValueError, match=r"loss 'total' is unknown; choose one of sum, mean"
    ):
        refused(llama(), Site(1), loss="total")
