"""Edits against their formulas, with vectors and scalars of every shape; names of
sites.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import (
    POINTS,
    Add,
    Below,
    Chain,
    Lerp,
    Pull,
    Replace,
    SetProjection,
    Site,
    Within,
)
from sae_attr.site_names import parse_site

B, T, D = 3, 4, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, D)).astype(np.float32)
POS = np.broadcast_to(np.arange(T), (B, T))
SHAPES = {"[d]": (D,), "[b, d]": (B, D), "[b, t, d]": (B, T, D)}
SCALARS = {"[]": (), "[b]": (B,), "[b, t]": (B, T)}


def full_vector(v: np.ndarray) -> np.ndarray:
    """The vector that acts at each position, by loops."""
    at = {1: lambda b, t: v, 2: lambda b, t: v[b], 3: lambda b, t: v[b, t]}[v.ndim]
    return np.array([[at(b, t) for t in range(T)] for b in range(B)])


def full_scalar(s: np.ndarray) -> np.ndarray:
    at = {0: lambda b, t: s, 1: lambda b, t: s[b], 2: lambda b, t: s[b, t]}[s.ndim]
    return np.array([[at(b, t) for t in range(T)] for b in range(B)])[..., None]


def draw(shape: tuple[int, ...], *, unit: bool = False) -> np.ndarray:
    v = np.asarray(RNG.standard_normal(shape), np.float32)
    return v / np.linalg.norm(v, axis=-1, keepdims=True) if unit else v


@jax.jit
def call(edit: Any, x: Any) -> jax.Array:
    return edit(x, jnp.asarray(POS))


def check(edit: Any, want: np.ndarray) -> None:
    got = call(edit, X)
    assert got.shape == X.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("shape", SHAPES)
def test_formulas(shape: str, scalar: str) -> None:
    v, d, s = draw(SHAPES[shape]), draw(SHAPES[shape], unit=True), draw(SCALARS[scalar])
    fv, fd, fs = full_vector(v), full_vector(d), full_scalar(s)
    dot = (X * fd).sum(-1, keepdims=True)
    check(Add(v), X + fv)
    check(Add(v, s), X + fs * fv)
    check(Replace(v), fv)
    check(SetProjection(d, s), X + (fs - dot) * fd)
    check(SetProjection(d, 0.0), X - dot * fd)
    check(Lerp(v, s), X + fs * (fv - X))


def test_square_batches_are_not_mistaken() -> None:
    """b = t = d: a `[b, d]` vector and a `[b]` scalar belong to rows, not to positions."""
    x, rows, s = draw((4, 4, 4)), draw((4, 4)), draw((4,))
    np.testing.assert_allclose(
        Add(rows, s)(x, POS), x + s[:, None, None] * rows[:, None, :], rtol=1e-6
    )
    where = np.array([True, False, True, False])
    np.testing.assert_array_equal(Replace(rows, where)(x, POS)[1], x[1])
    np.testing.assert_array_equal(
        Replace(rows, where)(x, POS)[2], np.broadcast_to(rows[2], (4, 4))
    )


@pytest.mark.parametrize("shape", [(B,), (B, T)], ids=["[b]", "[b, t]"])
def test_where(shape: tuple[int, ...]) -> None:
    where = np.arange(np.prod(shape)).reshape(shape) % 3 == 1
    full = where.reshape(*shape, *(1,) * (3 - len(shape)))
    d, v = draw((D,), unit=True), draw((D,))
    for make in (
        lambda **more: Add(v, 2.0, **more),
        lambda **more: Replace(v, **more),
        lambda **more: SetProjection(d, 0.7, **more),
        lambda **more: Lerp(v, 0.3, **more),
    ):
        want = np.where(full, call(make(), X), X)
        np.testing.assert_allclose(call(make(where=where), X), want, rtol=1e-6)
        assert np.abs(want - X).max() > 0.1
        np.testing.assert_array_equal(call(make(where=np.zeros(shape, bool)), X), X)


def test_properties_of_projections() -> None:
    d, mean = draw((D,), unit=True), draw((D,))
    ablated = call(SetProjection(d, mean @ d), X)
    np.testing.assert_allclose(
        ablated @ d, np.full((B, T), mean @ d), atol=1e-6
    )  # a · d becomes ā · d
    rest = np.eye(D) - np.outer(d, d)
    np.testing.assert_allclose(
        ablated @ rest, X @ rest, atol=1e-5
    )  # and nothing else changes
    np.testing.assert_allclose(call(SetProjection(d, 0.0), X) @ d, 0, atol=1e-6)
    np.testing.assert_allclose(
        call(SetProjection(-d, -(mean @ d)), X), ablated, atol=1e-6
    )


def test_both_ends_of_a_line() -> None:
    target = draw((B, D))
    np.testing.assert_array_equal(call(Lerp(target, 0.0), X), X)
    np.testing.assert_allclose(
        call(Lerp(target, 1.0), X), full_vector(target), atol=1e-6
    )


def test_a_chain_runs_first_to_last() -> None:
    d, v = draw((D,), unit=True), draw((D,))
    edits = Add(v, 3.0), SetProjection(d, 0.25)
    np.testing.assert_allclose(
        call(Chain(edits), X), call(edits[1], call(edits[0], X)), rtol=1e-5
    )
    np.testing.assert_allclose(
        call(Chain(edits), X) @ d, np.full((B, T), 0.25), atol=1e-5
    )
    assert np.abs(call(Chain(edits[::-1]), X) @ d - 0.25).max() > 0.1
    np.testing.assert_array_equal(call(Chain(()), X), X)


def test_pulling_several_coordinates_at_once() -> None:
    """All gaps are taken from the same x: for directions that are not orthogonal a
    chain would do something else.
    """
    push, readers, values = draw((B, 2, D)), draw((B, 2, D)), draw((B, 2))
    gap_fn = lambda state, x: (
        state[1][:, None] - jnp.einsum("btd,bmd->btm", x, state[0])
    )
    want = X + np.einsum(
        "btm,bmd->btd", values[:, None] - np.einsum("btd,bmd->btm", X, readers), push
    )
    check(Pull(push, (readers, values), gap_fn), want)
    shared = np.broadcast_to(push[0], push.shape)
    np.testing.assert_allclose(
        call(Pull(push[0], (readers, values), gap_fn), X),
        call(Pull(shared, (readers, values), gap_fn), X),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 2), (1, np.array([2, 4, 0])), (np.array([3, 0, 1]), np.array([9, 1, 1]))],
)
def test_within_looks_at_positions_and_not_at_places(start: Any, stop: Any) -> None:
    v = draw((B, D))
    pos = np.array([[0, 1, 2, 3], [0, 0, 1, 2], [5, 1, 0, 2]])
    got = Within(Add(v), start, stop)(jnp.asarray(X), jnp.asarray(pos))
    for b in range(B):
        first, last = np.broadcast_to(start, B)[b], np.broadcast_to(stop, B)[b]
        for t in range(T):
            want = X[b, t] + v[b] if first <= pos[b, t] < last else X[b, t]
            np.testing.assert_allclose(got[b, t], want, rtol=1e-6)


def test_no_two_edits_have_one_structure() -> None:
    """Else a jitted function may take the program of one for the other's."""
    gap_fn = lambda state, x: x
    edits = [
        *(
            Add(1.0, 2.0),
            Replace(1.0, 2.0),
            SetProjection(1.0, 2.0),
            Lerp(1.0, 2.0),
        ),
        *(
            Pull(1.0, 2.0, gap_fn),
            Within(1.0, 2.0, 3.0),
            Chain((1.0, 2.0)),
        ),
    ]
    structures = [jax.tree.structure(edit) for edit in edits]
    assert all(a != b for i, a in enumerate(structures) for b in structures[i + 1 :])


def test_vmap_over_latents() -> None:
    dec, values = draw((6, D), unit=True), draw((6,))
    got = jax.vmap(lambda d, s: SetProjection(d, s)(jnp.asarray(X), POS))(dec, values)
    stacked = jax.vmap(lambda edit: edit(jnp.asarray(X), POS))(
        SetProjection(jnp.asarray(dec), jnp.asarray(values))
    )
    for i in range(6):
        want = call(SetProjection(dec[i], values[i]), X)
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stacked[i], want, rtol=1e-5, atol=1e-6)


def test_another_vector_or_strength_does_not_trace_again_and_another_shape_does() -> (
    None
):
    traces = []

    @jax.jit
    def run(edits: dict[Site, Any], x: jax.Array) -> jax.Array:
        traces.append(1)
        for edit in edits.values():
            x = edit(x, POS)
        return x

    for k in range(3):
        run(
            {
                Site(1): Add(draw((D,)), float(k), np.arange(T) + np.zeros((B, 1)) > k),
                Site(0): SetProjection(draw((D,)), float(k)),
            },
            X,
        )
    assert len(traces) == 1
    run(
        {
            Site(1): Add(draw((B, D)), 1.0, POS > 1),
            Site(0): SetProjection(draw((D,)), 1.0),
        },
        X,
    )
    assert len(traces) == 2


def test_gradient_of_an_edit() -> None:
    """`Add` of zeros hands back the cotangent, `Replace` stops it and takes it itself."""
    cotangent = draw((B, T, D))
    of = lambda make, at: jax.grad(
        lambda v: jnp.sum(make(v)(jnp.asarray(X), POS) * cotangent)
    )(jnp.asarray(at))
    np.testing.assert_array_equal(of(Add, np.zeros_like(X)), cotangent)
    np.testing.assert_array_equal(of(Replace, X), cotangent)
    through = jax.grad(lambda x: jnp.sum(Replace(jnp.asarray(X))(x, POS) * cotangent))(
        jnp.asarray(X)
    )
    assert not np.asarray(through).any()
    np.testing.assert_allclose(of(Add, np.zeros(D)), cotangent.sum((0, 1)), rtol=1e-5)


def test_the_dtype_of_the_activation_is_kept() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    v = draw((D,))
    for edit in (
        Add(v, 2.0),
        Replace(v),
        SetProjection(v, 1.0),
        Lerp(v, 0.5),
    ):
        assert edit(x, POS).dtype == jnp.bfloat16


# ---- sites ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "point"),
    [
        (("layer2.resid_post", "blocks.2.hook_resid_post", "model.layers.2", "layers.2"), "resid_post"),
        (("model.layers.2.output", "transformer.h.2.output", "h.2", "gpt_neox.layers.2", "resid_post_layer_2"), "resid_post"),
        (("layer2.resid_pre", "blocks.2.hook_resid_pre", "model.layers.2.input", "blocks.2.hook_in"), "resid_pre"),
        (("layer2.resid_mid", "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_in", "h.2.ln_2.input"), "resid_mid"),
        (("layer2.attn_z", "blocks.2.attn.hook_z", "model.layers.2.self_attn.o_proj.input"), "attn_z"),
        (("gpt_neox.layers.2.attention.dense.input", "transformer.h.2.attn.c_proj.input"), "attn_z"),
        (("layer2.attn_raw", "blocks.2.attn.hook_out", "model.layers.2.self_attn", "h.2.attn"), "attn_raw"),
        (("gpt_neox.layers.2.attention", "model.layers.2.self_attn.o_proj"), "attn_raw"),
        (("layer2.attn_out", "blocks.2.hook_attn_out"), "attn_out"),
        (("layer2.mlp_in", "blocks.2.mlp.hook_in", "model.layers.2.mlp.input"), "mlp_in"),
        (("model.layers.2.pre_feedforward_layernorm.output", "h.2.ln_2"), "mlp_in"),
        (("layer2.mlp_hidden", "blocks.2.mlp.hook_post", "model.layers.2.mlp.down_proj.input"), "mlp_hidden"),
        (("layers.2.mlp.dense_4h_to_h.input", "h.2.mlp.c_proj.input", "h.2.mlp.act"), "mlp_hidden"),
        (("layer2.mlp_raw", "blocks.2.mlp.hook_out", "model.layers.2.mlp", "a.model.layers.2.mlp.output"), "mlp_raw"),
        (("layers.2.mlp", "h.2.mlp", "model.layers.2.mlp.down_proj", "layers.2.block_sparse_moe"), "mlp_raw"),
        (("layer2.mlp_out", "blocks.2.hook_mlp_out", "layers.2.post_feedforward_layernorm"), "mlp_out"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_three_spellings_of_a_site(names: tuple[str, ...], point: str) -> None:
    assert [parse_site(name) for name in names] == [Site(2, point)] * len(names)


@pytest.mark.parametrize("point", POINTS)
def test_a_site_reads_its_own_name(point: str) -> None:
    assert parse_site(str(Site(11, point))) == Site(11, point)


@pytest.mark.parametrize(
    "name",
    ["", "2", "layer2", "layer2.resid", "layer-1.resid_post", "layerx.mlp_out", "blocks.2", "blocks.2.hook_q",
     "blocks.2.resid_post", "model.layers.2.self_attn.q_proj", "model.layers", "layer2.resid_post "],
)  # fmt: skip
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not understood; write it as layer2.resid_post"
    ) as caught:
        parse_site(name)
    assert repr(name) in str(caught.value)


def test_sites_that_cannot_be() -> None:
    with pytest.raises(
        ValueError, match=r"point 'residual' is unknown; the points are resid_pre"
    ):
        Site(0, "residual")
    with pytest.raises(ValueError, match=r"layer -1 is negative"):
        Site(-1)
    ordered = [Site(0, "attn_z"), Site(0, "resid_pre"), Site(1)]
    assert sorted([ordered[2], ordered[0], ordered[1]]) == ordered


def test_tokens_beyond_the_norm_limit_stay() -> None:
    norms = np.linalg.norm(X, axis=-1)
    limit_b = np.median(norms, axis=1).astype(np.float32)
    got = call(Below(Add(jnp.ones(X.shape[-1]), 2.0), jnp.asarray(limit_b)), X)
    below = norms <= limit_b[:, None]
    assert below.any()
    assert not below.all()
    np.testing.assert_allclose(got, X + 2.0 * below[..., None], rtol=1e-6)
