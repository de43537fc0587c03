"""Backward rules of layer-wise relevance propagation: the same forward pass,
differentiated as if parts were constant.

    norm         the factor 1 / std of a norm is held constant (Ali et al. 2022)
    centre       the mean that a LayerNorm subtracts is held constant too; not part of `lrp`, since it is linear already
    attention    attention probabilities are held constant, so gradients flow through values alone (Ali et al. 2022); so
                 are a router's weights of experts
    activation   f(x) is differentiated as x · [f(x) / x], the bracket constant
    product      a gated MLP's x · y is differentiated as ½ x · [y] + ½ [x] · y: half of the product rule (Arras et al. 2019)

`lrp` is the set of RelP (Jafari et al. 2025, arXiv:2508.21258). No value changes: rules
act on tangents alone. Soft-caps and the log-loss itself keep their true derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

Rules = frozenset[str]
RULES = ("norm", "centre", "attention", "activation", "product")
PLAIN: Rules = frozenset()
LRP: Rules = frozenset({"norm", "attention", "activation", "product"})


def parse_rules(text: str) -> Rules:
    """Reads the set that a text names: `plain` (none), `lrp` (RelP's four), or names
    joined with +, as in `norm+attention`.

    Raises ValueError for an unknown name.
    """
    return check_rules(
        {"plain": PLAIN, "lrp": LRP}.get(text, frozenset(text.split("+")))
    )


def check_rules(rules: Rules) -> Rules:
    """Returns the rules themselves; ValueError if one is unknown."""
    if unknown := set(rules) - set(RULES):
        raise ValueError(
            f"backward rule {sorted(unknown)[0]!r} is unknown; choose of "
            f"{', '.join(RULES)}, or plain, or lrp"
        )
    return rules


def hold(x: jax.Array, when: bool) -> jax.Array:
    """Returns `x`, as a constant of differentiation if `when`."""
    return jax.lax.stop_gradient(x) if when else x


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def ratio_activation(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Computes f(x) with f(x) / x for its derivative: at x = 0 the limit f'(0), which
    is ½ for SiLU and GELU and 0 for ReLU.
    """
    return f(x)


@ratio_activation.defjvp
def _ratio_jvp(
    f: Callable[[jax.Array], jax.Array],
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y = f(x)
    slope = jnp.where(x == 0, jax.grad(f)(0.0), y / jnp.where(x == 0, 1, x))
    return y, slope.astype(x.dtype) * tangent


@jax.custom_jvp
def half_gradient(x: jax.Array) -> jax.Array:
    """Returns `x` with ½ for its derivative."""
    return x


@half_gradient.defjvp
def _half_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0] / 2
