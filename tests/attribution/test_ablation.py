"""Exact mean ablation: against a brute-force forward pass, and exactly first order
where the loss is linear.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    ablation,
    act_and_grad,
    attribute,
    exact_ablation,
    gradients,
    row_ablation,
)
from sae_attr.attribution.ablation import Ablation, taylor_fails
from sae_attr.hooks import Add, Chain, SetProjection, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import LM_RULES, make_mesh, shard_batch, shard_tree
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
BATCH = batch_of(ROWS)
F64 = {"resid_dtype": "float64"}
LATENTS = 3


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def directions(width: int, count: int = LATENTS) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions and a mean activation."""
    rng = np.random.default_rng(width)
    dec = rng.standard_normal((count, width))
    return dec / np.linalg.norm(dec, axis=1, keepdims=True), rng.standard_normal(width)


def prompt_mask() -> np.ndarray:
    return np.asarray(BATCH.valid_bt & ~BATCH.completion_bt)


def ablate(
    params: Params,
    cfg: LMConfig,
    site: Site,
    where_bt: Any,
    batch: Any = BATCH,
    **options: Any,
) -> Ablation:
    dec, mean = directions(cfg.width(site.point))
    step = jax.jit(
        lambda p, b, d, m, w: exact_ablation(
            p, b, d, m, w, cfg=cfg, site=site, **options
        )
    )
    dec, mean = dec.astype(cfg.resid_dtype), mean.astype(cfg.resid_dtype)
    return jax.tree.map(np.asarray, step(params, batch, dec, mean, where_bt))


@pytest.mark.parametrize(
    ("family", "site"),
    [
        (llama, Site(2)),
        (llama, Site(0, "resid_pre")),
        (llama, Site(2, "mlp_out")),
        (llama, Site(1, "attn_z")),
        (neox, Site(0)),
    ],
    ids=lambda x: str(x) if isinstance(x, Site) else x.__name__,
)
def test_brute_force(family: Any, site: Site, x64: None) -> None:
    """ΔL from a whole forward pass with the projection set; both slopes by finite
    differences along the way.
    """
    cfg = family(**F64)
    params, where = random_params(cfg), prompt_mask()
    dec, mean = directions(cfg.width(site.point))
    got = ablate(params, cfg, site, where)
    tokens, completion = BATCH.tokens_bt, BATCH.completion_bt

    @jax.jit
    def moved(d: jax.Array, share: jax.Array, extra: jax.Array) -> jax.Array:
        """Loss with the projection moved by `share` of the way to the mean and then by
        `extra`.
        """

        def edit(x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
            gap_bt = (mean @ d - x_btd @ d) * share + extra
            return x_btd + jnp.where(where, gap_bt, 0)[..., None] * d

        return plain_losses(params, tokens, completion, {site: edit}, cfg=cfg)

    dloss = np.stack([moved(d, 1.0, 0.0) - moved(d, 0.0, 0.0) for d in dec], axis=1)
    np.testing.assert_allclose(got.dloss, dloss, rtol=1e-9, atol=1e-10)
    assert np.abs(dloss).max() > 1e-3

    def slope(f: Any, h: float = 1e-4) -> np.ndarray:
        return np.asarray((8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h))

    along = lambda d, at: slope(lambda s: moved(d, at + s, 0.0))
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(
        got.first_order, np.stack([along(d, 0.0) for d in dec], 1), **close
    )
    np.testing.assert_allclose(
        got.end_slope, np.stack([along(d, 1.0) for d in dec], 1), **close
    )
    pushes = [
        np.stack([-slope(lambda s, d=d, at=at: moved(d, at, s)) for d in dec], 1)
        for at in (0.0, 1.0)
    ]
    np.testing.assert_allclose(got.push, pushes[0], **close)
    np.testing.assert_allclose(got.end_push, pushes[1], **close)
    assert off(got.end_slope, got.first_order) > 1e-3


def test_single_positions_are_one_position_masks(x64: None) -> None:
    cfg, site = llama(**F64), Site(1)
    params = random_params(cfg)
    dec, mean = directions(16)
    position = np.array([2, 7, 4, 12])
    where = np.arange(BATCH.tokens_bt.shape[1]) == position[:, None]
    joint = ablate(params, cfg, site, where)
    latent = np.array([0, 2, 1, 0])
    step = jax.jit(
        lambda p, d: row_ablation(p, BATCH, d, mean, where, cfg=cfg, site=site)
    )
    single = step(params, dec[latent])
    for name in ("dloss", "first_order", "end_slope", "push", "end_push"):
        np.testing.assert_allclose(
            getattr(single, name), getattr(joint, name)[np.arange(4), latent], rtol=1e-9
        )
    assert np.abs(single.dloss).min() > 1e-9


def test_nothing_ablated_changes_nothing(x64: None) -> None:
    cfg = llama(**F64)
    got = ablate(
        random_params(cfg), cfg, Site(1), np.zeros(BATCH.tokens_bt.shape, bool)
    )
    for values in jax.tree.leaves(got):
        np.testing.assert_allclose(values, 0, atol=1e-11)
    last = np.arange(BATCH.tokens_bt.shape[1]) == np.array(
        [[len(r.ids) - 1] for r in ROWS]
    )
    np.testing.assert_allclose(
        ablate(random_params(cfg), cfg, Site(1), last).dloss, 0, atol=1e-11
    )


def test_mean_loss_is_the_sum_over_each_rows_length(x64: None) -> None:
    cfg = llama(**F64)
    total, mean = (
        ablate(random_params(cfg), cfg, Site(1), prompt_mask(), loss=loss)
        for loss in ("sum", "mean")
    )
    lengths = np.array([[len(r.ids) - r.n_prompt] for r in ROWS])
    for name in ("dloss", "first_order", "end_slope"):
        np.testing.assert_allclose(
            getattr(mean, name), getattr(total, name) / lengths, rtol=1e-7, atol=1e-11
        )


def test_sharding_changes_nothing() -> None:
    cfg, site = llama(), Site(1)
    params = random_params(cfg)
    want = ablate(params, cfg, site, prompt_mask())
    mesh = make_mesh("data=2,model=2")
    got = ablate(
        shard_tree(params, LM_RULES, mesh),
        cfg,
        site,
        prompt_mask(),
        batch=shard_batch(BATCH, mesh),
    )
    for name in ("first_order", "end_slope", "push", "end_push"):
        assert off(getattr(got, name), getattr(want, name)) < 1e-5
    rounding = 2e-5  # a difference of two losses near 60
    assert (
        np.abs(got.dloss - want.dloss).max()
        < 1e-5 * np.abs(want.dloss).max() + rounding
    )


# ---- where first order is exact ------------------------------------------------------


def linear_blocks(cfg: LMConfig) -> Params:
    """Blocks that are linear in their input and still mix positions: no norms, uniform
    attention, constant gates.
    """
    params = random_params(cfg)
    blocks = dict(params["blocks"])
    blocks["q"] = jax.tree.map(jnp.zeros_like, blocks["q"])
    blocks["gate"] = {
        **blocks["gate"],
        "kernel": jnp.zeros_like(blocks["gate"]["kernel"]),
    }
    return {**params, "blocks": blocks}


@pytest.mark.parametrize(
    ("power", "site"), [(1, Site(0)), (1, Site(1, "attn_z")), (2, Site(0))], ids=str
)
def test_first_order_is_exact_for_a_linear_loss_and_the_mean_slope_for_a_quadratic_one(
    power: int, site: Site, x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = llama(pre_norm=False, mlp_bias=True, **F64)
    params = linear_blocks(cfg)
    reader = np.random.default_rng(0).standard_normal(16)

    def nll(
        params: Params,
        hidden: jax.Array,
        tokens: Any,
        target: Any,
        valid: Any,
        **options: Any,
    ) -> jax.Array:
        before = jnp.take_along_axis(
            hidden, jnp.maximum(target - 1, 0)[..., None], axis=1
        )
        return jnp.where(valid, (before @ reader) ** power, 0)

    monkeypatch.setattr(ablation, "target_nll", nll)
    monkeypatch.setattr(gradients, "target_nll", nll)
    where = prompt_mask()
    got = ablate(params, cfg, site, where)
    dec, mean = directions(cfg.width(site.point))
    out = jax.jit(lambda p: act_and_grad(p, BATCH, cfg=cfg, sites=(site,)))(params)
    delta = attribute(
        out.acts[site],
        out.grads[site],
        jnp.asarray(where, float),
        jnp.asarray(dec),
        jnp.asarray(mean),
    )
    np.testing.assert_allclose(delta, got.first_order, rtol=1e-9, atol=1e-11)
    scale = 1e-10 * np.abs(got.dloss).max()
    if power == 1:
        np.testing.assert_allclose(delta, got.dloss, rtol=1e-9, atol=scale)
        np.testing.assert_allclose(
            got.end_slope, got.first_order, rtol=1e-9, atol=scale
        )
        np.testing.assert_allclose(got.end_push, got.push, rtol=1e-9, atol=scale)
        assert not taylor_fails(got.dloss, got.first_order).any()
    else:
        np.testing.assert_allclose(
            (got.first_order + got.end_slope) / 2, got.dloss, rtol=1e-8, atol=scale
        )
        assert off(got.first_order, got.dloss) > 0.01
    assert np.abs(got.dloss).max() > 1e-2


def test_taylor_fails_by_share_or_by_sign() -> None:
    dloss = np.array([1.0, 1.0, 1.0, 1.0, -1.0, 0.0, 0.0, -2.0])
    first = np.array([1.0, 0.6, 0.4, 2.2, 0.1, 0.0, 1e-9, -1.9])
    np.testing.assert_array_equal(
        taylor_fails(dloss, first), [False, False, True, True, True, False, True, False]
    )
    assert not taylor_fails(dloss, first, tolerance=0.7)[2]


def test_an_edit_sees_true_positions_at_the_last_layer(x64: None) -> None:
    """The suffix of the last layer's resid_post is empty; an edit that reads positions
    must get the same ones there.
    """
    cfg = llama(**F64)
    params = random_params(cfg)

    def edit(x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        return x_btd + (pos_bt % 5)[..., None] * jnp.asarray(directions(16)[1])

    site = Site(cfg.n_layers - 1)
    x_btd, _ = jax.jit(lambda p: ablation.run_prefix(p, BATCH, cfg=cfg, site=site))(
        params
    )
    got = jax.jit(
        lambda p: ablation.suffix_loss(p, x_btd, BATCH, edit, cfg=cfg, site=site)
    )(params)
    want = jax.jit(
        lambda p: plain_losses(
            p, BATCH.tokens_bt, BATCH.completion_bt, {site: edit}, cfg=cfg
        )
    )(params)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_first_order_of_an_ablation_is_the_gradient_of_added_zeros(x64: None) -> None:
    """`Chain((ablate, Add(0)))` leaves the ablated loss as it is: the end gradient is
    taken at the ablated point.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 16)))
    dec, _ = directions(16)
    ablated = SetProjection(dec[0], 0.5)(x, jnp.zeros((2, 3), int))
    both = Chain((SetProjection(dec[0], 0.5), Add(jnp.zeros((2, 3, 16)))))(
        x, jnp.zeros((2, 3), int)
    )
    np.testing.assert_array_equal(both, ablated)


def test_a_site_outside_the_model() -> None:
    cfg = llama()
    with pytest.raises(ValueError, match=r"layer7.mlp_out lies outside the model"):
        jax.eval_shape(
            lambda p: ablation.run_unablated(
                p, BATCH, cfg=cfg, site=Site(7, "mlp_out")
            ),
            random_params(cfg),
        )
