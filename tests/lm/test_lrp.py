"""Backward rules: values untouched, gradients against LRP written by hand, and
relevance conserved.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import act_and_grad
from sae_attr.hooks import Add, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import LRP, PLAIN, RULES, parse_rules, ratio_activation
from sae_attr.lm.model import Params, forward, logits
from tests.attribution._tiny import (
    batch_of,
    llama,
    neox,
    off,
    ragged_rows,
    random_params,
)

pytestmark = pytest.mark.usefixtures("quick")

F64 = {"resid_dtype": "float64"}
BATCH = batch_of(ragged_rows(5)[2:6])
SINGLE = [frozenset({name}) for name in RULES]


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def post_norm(**changes: Any) -> LMConfig:
    """Norms on queries, keys and outputs as well, and both soft-caps."""
    return llama(
        post_norm=True,
        qk_norm="head",
        attn_softcap=5.0,
        final_softcap=3.0,
        act="gelu_tanh",
        **changes,
    )


def experts(**changes: Any) -> LMConfig:
    """Four gated experts, two of which run for a token."""
    return llama(n_experts=4, n_chosen=2, norm_chosen=True, **changes)


@pytest.mark.parametrize(
    "family", [llama, neox, post_norm, experts], ids=lambda f: f.__name__
)
def test_no_value_changes_by_a_bit_and_every_rule_that_applies_changes_gradients(
    family: Any,
) -> None:
    cfg = family()
    params = random_params(cfg)

    def values(rules: Any) -> jax.Array:
        hidden = forward(
            params, BATCH.tokens_bt, cfg=cfg, valid_bt=BATCH.valid_bt, rules=rules
        ).hidden_btd
        return jnp.concatenate(
            [hidden, logits(params, hidden, cfg=cfg, rules=rules)], axis=-1
        )

    gradient = lambda rules: act_and_grad(
        params, BATCH, cfg=cfg, sites=(Site(0),), rules=rules
    )
    plain, plain_grad = jax.jit(values, static_argnums=0)(PLAIN), gradient(PLAIN)
    idle = {"centre"} if cfg.norm == "rms" else {"product"}
    for rules in (*SINGLE, LRP):
        np.testing.assert_array_equal(jax.jit(values, static_argnums=0)(rules), plain)
        found = gradient(rules)
        np.testing.assert_allclose(
            found.nll_bc, plain_grad.nll_bc, rtol=1e-6, atol=1e-6
        )
        changed = np.abs(found.grads[Site(0)] - plain_grad.grads[Site(0)]).max() > 1e-3
        assert changed == (not rules <= idle), rules


def test_lrp_written_by_hand(x64: None) -> None:
    """One block, uniform attention: z-rule through every product with norms, pattern
    and ratios as constants.
    """
    cfg = replace(
        llama(**F64),
        n_layers=1,
        n_kv_heads=4,
        rope_of_layer=(0,),
        window_of_layer=llama().window_of_layer[:1],
    )
    params = random_params(cfg, 1)
    params = {
        **params,
        "blocks": {
            **params["blocks"],
            "q": jax.tree.map(jnp.zeros_like, params["blocks"]["q"]),
        },
    }
    rng = np.random.default_rng(0)
    x, reader = rng.standard_normal((2, 5, 16)), rng.standard_normal((2, 5, 16))

    def value(x_btd: jax.Array) -> jax.Array:
        return jnp.sum(
            reader * forward(params, None, cfg=cfg, x_btd=x_btd, rules=LRP).hidden_btd
        )

    w = {
        k: np.asarray(v.get("kernel", v.get("scale")))[0]
        for k, v in params["blocks"].items()
    }
    scale = lambda v: 1 / np.sqrt((v**2).mean(-1, keepdims=True) + cfg.norm_eps)
    pattern = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    n1 = x * scale(x) * w["attn_norm"]
    mid = x + np.einsum("ts,bsd->btd", pattern, n1 @ w["v"]) @ w["o"]
    n2 = mid * scale(mid) * w["mlp_norm"]
    gate, up = n2 @ w["gate"], n2 @ w["up"]
    sigma = 1 / (1 + np.exp(-gate))  # SiLU's output over its input
    np.testing.assert_allclose(
        value(x), np.sum(reader * (mid + (gate * sigma * up) @ w["down"])), rtol=1e-10
    )
    back = reader @ w["down"].T
    back_n2 = (
        0.5 * (back * gate * sigma) @ w["up"].T
        + 0.5 * (back * up * sigma) @ w["gate"].T
    )
    back_mid = reader + back_n2 * w["mlp_norm"] * scale(mid)
    back_v = np.einsum("ts,btd->bsd", pattern, back_mid @ w["o"].T)
    want = back_mid + (back_v @ w["v"].T) * w["attn_norm"] * scale(x)
    np.testing.assert_allclose(jax.grad(value)(x), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "family", [llama, post_norm, experts], ids=lambda f: f.__name__
)
def test_relevance_is_conserved_without_biases(family: Any, x64: None) -> None:
    """All four rules make the model homogeneous of degree one: Σ a·g at any residual is
    the output; fewer do not.
    """
    cfg = family(**F64)
    params = random_params(cfg)
    reader = np.random.default_rng(0).standard_normal(16)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 16)))

    def value(shift: jax.Array, rules: Any) -> tuple[jax.Array, jax.Array]:
        edits = {Site(1, "resid_mid"): Add(shift)}
        out = forward(
            params,
            None,
            cfg=cfg,
            x_btd=x,
            edits=edits,
            keep=(Site(1, "resid_mid"),),
            rules=rules,
        )
        return jnp.sum(out.hidden_btd @ reader), out.acts[Site(1, "resid_mid")]

    def share(params_: Params, rules: Any) -> float:
        grads, acts = jax.grad(value, has_aux=True)(jnp.zeros_like(x), rules)
        return float(jnp.sum(grads * acts) / value(jnp.zeros_like(x), PLAIN)[0])

    np.testing.assert_allclose(share(params, LRP), 1, rtol=1e-9)
    for name in LRP:
        assert abs(share(params, LRP - {name}) - 1) > 1e-3, name


def test_a_ratio_at_zero_is_the_derivative() -> None:
    x = jnp.array([0.0, 2.0, -1.0])
    for f, zero in ((jax.nn.silu, 0.5), (jax.nn.gelu, 0.5), (jax.nn.relu, 0.0)):
        slope = jax.vmap(jax.grad(lambda v: ratio_activation(f, v)))(x)  # noqa: B023
        np.testing.assert_allclose(slope, [zero, *(f(x)[1:] / x[1:])], rtol=1e-6)


def test_names() -> None:
    assert parse_rules("plain") == PLAIN
    assert parse_rules("lrp") == LRP == parse_rules("norm+attention+activation+product")
    with pytest.raises(
        ValueError, match=r"rule 'nrm' is unknown; choose of norm, centre"
    ):
        parse_rules("nrm+product")
    with pytest.raises(ValueError, match="'half' is unknown"):
        jax.eval_shape(
            lambda p: forward(
                p, BATCH.tokens_bt, cfg=llama(), rules=frozenset({"half"})
            ),
            random_params(llama()),
        )


def test_sharing_and_remat_keep_the_rules() -> None:
    cfg = llama()
    one, two = (
        act_and_grad(
            random_params(cfg), BATCH, cfg=cfg, sites=(Site(0),), rules=LRP, remat=r
        )
        for r in (0, 1)
    )
    assert off(two.grads[Site(0)], one.grads[Site(0)]) < 1e-5
