"""The SAE's maths on small random weights: against plain numpy, under jit, vmap, grad
and x64.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.sae.model import (
    SAE,
    SAEConfig,
    decode,
    encode,
    encode_latents,
    reconstruct,
    unit_decoder,
)

D, N, K = 6, 20, 4
RANKED = ("topk", "topk_raw", "abs_topk", "groupmax")
KINDS = (
    "relu",
    "jumprelu",
    *RANKED,
    "gated",
    "layer_norm",
    "constant_norm_rescale",
    "skip",
    "rescaled",
    "heads",
)


def make(kind: str, dtype: str = "float32") -> SAE:
    """A random SAE of one kind; biases large enough to matter."""
    rng = np.random.default_rng(0)
    gate = (
        kind
        if kind in ("relu", "jumprelu", "gated", *RANKED)
        else "topk"
        if kind == "rescaled"
        else "relu"
    )
    cfg = SAEConfig(
        D,
        D,
        N,
        gate=gate,
        k=K if gate in RANKED else None,
        subtract_b_dec=kind != "skip",
        norm=kind if "norm" in kind else "none",
        rescale_by_dec_norm=kind == "rescaled",
        flatten_heads=kind == "heads",
        skip=kind == "skip",
        site="layer2.resid_post",
    )
    shapes = {
        "enc_dn": (D, N),
        "enc_bias_n": (N,),
        "dec_nm": (N, D),
        "dec_bias_m": (D,),
    }
    shapes |= {"threshold_n": (N,)} if gate == "jumprelu" else {}
    shapes |= (
        dict.fromkeys(("gate_bias_n", "mag_bias_n", "mag_scale_n"), (N,))
        if gate == "gated"
        else {}
    )
    shapes |= {"skip_dm": (D, D)} if cfg.skip else {}
    return SAE(
        **{
            name: jnp.asarray(rng.normal(size=shape), dtype)
            for name, shape in shapes.items()
        },
        cfg=cfg,
    )


def acts(*lead: int) -> jax.Array:
    return jnp.asarray(
        np.random.default_rng(1).normal(size=(*lead, D)) * 3, jnp.float32
    )


def by_hand(sae: SAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and output in float64, written as the papers have it and not as the module
    does.
    """
    w = {
        name: np.asarray(value, np.float64)
        for name, value in vars(sae).items()
        if name != "cfg" and value is not None
    }
    x, scale, shift = np.asarray(x, np.float64), 1.0, 0.0
    z = x
    if sae.cfg.norm == "layer_norm":
        shift, scale = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1)
        z = (x - shift) / (scale + 1e-5)
    elif sae.cfg.norm == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=-1, keepdims=True) / D**0.5
        z = x / scale
    z = z - w["dec_bias_m"] * sae.cfg.subtract_b_dec
    norms = (
        np.linalg.norm(w["dec_nm"], axis=1)
        if sae.cfg.rescale_by_dec_norm
        else np.ones(N)
    )
    pre = (z @ w["enc_dn"] + w["enc_bias_n"]) * norms
    codes = np.maximum(pre, 0)
    if sae.cfg.gate == "jumprelu":
        codes = codes * (pre > w["threshold_n"])
    elif sae.cfg.gate == "gated":
        codes = (pre + w["gate_bias_n"] > 0) * np.maximum(
            pre * np.exp(w["mag_scale_n"]) + w["mag_bias_n"], 0
        )
    elif sae.cfg.gate in ("topk", "topk_raw"):
        codes = (codes if sae.cfg.gate == "topk" else pre) * (
            pre >= np.sort(pre, axis=-1)[..., -K, None]
        )
    elif sae.cfg.gate == "abs_topk":
        codes = pre * (np.abs(pre) >= np.sort(np.abs(pre), axis=-1)[..., -K, None])
    elif sae.cfg.gate == "groupmax":
        groups = codes.reshape(*codes.shape[:-1], K, -1)
        codes = (groups * (groups == groups.max(-1, keepdims=True))).reshape(
            codes.shape
        )
    y = (codes / norms @ w["dec_nm"] + w["dec_bias_m"]) * scale + shift
    return codes, y + x @ w["skip_dm"] if sae.cfg.skip else y


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_numpy(kind: str) -> None:
    sae, x = make(kind), acts(50)
    codes, y = by_hand(sae, x)
    np.testing.assert_allclose(encode(sae, x), codes, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(reconstruct(sae, x), y, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(decode(sae, encode(sae, x), x), reconstruct(sae, x))
    assert 0 < (codes > 0).mean() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_jit_and_vmap_change_nothing(kind: str) -> None:
    sae, x = make(kind), acts(3, 4)
    codes, y = encode(sae, x), reconstruct(sae, x)
    flat = x.reshape(-1, D)
    for found in (
        encode(sae, flat),
        jax.jit(encode)(sae, flat),
        jax.vmap(encode, (None, 0))(sae, flat),
    ):
        np.testing.assert_allclose(found, codes.reshape(-1, N), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        encode(sae, flat[5]), codes.reshape(-1, N)[5], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(jax.jit(reconstruct)(sae, x), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(reconstruct, (None, 0))(sae, x), y, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_differences_in_float64(kind: str) -> None:
    with jax.enable_x64(True):
        sae = jax.tree.map(lambda w: w.astype(jnp.float64), make(kind))
        x = jnp.asarray(np.asarray(acts(5)), jnp.float64)
        way = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
        found = jnp.vdot(jax.grad(lambda v: reconstruct(sae, v).sum())(x), way)
        step = 1e-6
        expected = (
            reconstruct(sae, x + step * way) - reconstruct(sae, x - step * way)
        ).sum() / (2 * step)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_token_has_finite_output_and_gradient(kind: str) -> None:
    sae, x = make(kind), jnp.zeros((2, D))
    assert jnp.isfinite(reconstruct(sae, x)).all()
    grads = jax.grad(lambda s, v: (reconstruct(s, v) ** 2).sum(), argnums=(0, 1))(
        sae, x
    )
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_dtypes_follow_weights_and_input() -> None:
    sae = make("relu")
    assert encode(sae, acts(2).astype(jnp.bfloat16)).dtype == jnp.float32
    assert encode(make("relu", "bfloat16"), acts(2)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        x = np.random.default_rng(3).normal(size=(4, D))
        assert reconstruct(sae, x).dtype == jnp.float64
        np.testing.assert_allclose(
            encode(sae, x), by_hand(sae, x)[0], rtol=1e-12, atol=1e-12
        )
        for kind in KINDS:  # nothing widens float32 behind one's back
            assert (
                reconstruct(make(kind), acts(2).astype(jnp.float32)).dtype
                == jnp.float32
            )


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (*RANKED, "rescaled")])
def test_chosen_latents_equal_the_columns_of_encode(kind: str) -> None:
    sae, x, chosen = make(kind), acts(3, 4), [7, 0, 19, 7]
    expected = encode(sae, x)[..., np.array(chosen)]
    np.testing.assert_allclose(
        encode_latents(sae, x, chosen), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        jax.jit(encode_latents)(sae, x, jnp.array(chosen)),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )


def test_chosen_latents_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(
        ValueError,
        match=r"depends on all the others; use encode\(sae, x\)\[\.\.\., latents\]",
    ):
        encode_latents(make("topk"), acts(2), [0])
    with pytest.raises(ValueError, match=r"latents reach 0\.\.20 but the SAE has 20"):
        encode_latents(make("relu"), acts(2), [0, 20])
    assert jnp.isnan(
        encode_latents(make("relu"), acts(2), jnp.array([20]))
    ).all()  # traced: NaN, not the last latent


def test_topk_keeps_exactly_k_under_ties_and_fewer_where_pre_is_negative() -> None:
    sae = make("topk")
    tied = sae.replace(enc_dn=jnp.zeros((D, N)), enc_bias_n=jnp.ones(N))
    assert (encode(tied, acts(2)) > 0).sum(-1).tolist() == [K, K]
    two = tied.replace(enc_bias_n=jnp.where(jnp.arange(N) < 2, 1.0, -1.0))
    assert (encode(two, acts(2)) != 0).sum(-1).tolist() == [2, 2]


def pursuer() -> SAE:
    """A tied SAE with unit rows, pursued until half is left."""
    sae = make("relu")
    rows = unit_decoder(sae.dec_nm)
    cfg = replace(
        sae.cfg, gate="matching_pursuit", residual_threshold=0.5, max_iterations=N
    )
    return sae.replace(dec_nm=rows, enc_dn=rows.T, enc_bias_n=jnp.zeros(N), cfg=cfg)


def test_pursuit_shortens_the_rest_and_is_the_same_under_jit_and_vmap() -> None:
    sae, x = pursuer(), acts(3, 4)
    codes = encode(sae, x)
    assert ((codes > 0).sum(-1) >= 1).all()
    assert (codes >= 0).all()
    # Each step projects, so what is left is shorter than what was there; it ends where
    # the best latent is in use already.
    left = jnp.linalg.norm(reconstruct(sae, x) - x, axis=-1) / jnp.linalg.norm(
        x - sae.dec_bias_m, axis=-1
    )
    assert left.max() < 1
    for found in (jax.jit(encode)(sae, x), jax.vmap(encode, (None, 0))(sae, x)):
        np.testing.assert_allclose(found, codes, rtol=1e-5, atol=1e-5)
    # One latent alone is found at once, and nothing else.
    one = encode(sae, 3 * sae.dec_nm[7] + sae.dec_bias_m)
    np.testing.assert_allclose(one, 3 * jnp.eye(N)[7], atol=1e-5)
    assert not jnp.isnan(encode(sae, jnp.zeros((2, D)) + sae.dec_bias_m)).any()


def test_selection_by_decoder_norm_leaves_the_scale_of_the_codes() -> None:
    sae = make("topk")
    apart = sae.replace(cfg=replace(sae.cfg, select_by_dec_norm=True))
    both = sae.replace(cfg=replace(sae.cfg, rescale_by_dec_norm=True))
    x, norms = acts(30), jnp.linalg.norm(sae.dec_nm, axis=-1)
    np.testing.assert_array_equal(encode(apart, x) != 0, encode(both, x) != 0)
    np.testing.assert_allclose(encode(apart, x) * norms, encode(both, x), rtol=1e-5)
    np.testing.assert_allclose(
        reconstruct(apart, x), reconstruct(both, x), rtol=1e-4, atol=1e-4
    )
    assert (encode(apart, x) != encode(sae, x)).any()


def test_jumprelu_is_strict_and_never_negative() -> None:
    sae = make("jumprelu").replace(
        enc_dn=jnp.zeros((D, N)), enc_bias_n=jnp.ones(N), threshold_n=jnp.ones(N)
    )
    assert encode(sae, acts(2)).sum() == 0
    below = sae.replace(enc_bias_n=-jnp.ones(N), threshold_n=jnp.full(N, -2.0))
    assert encode(below, acts(2)).sum() == 0


def test_heads_may_come_apart_and_come_back() -> None:
    sae, x = make("heads"), acts(3, 4)
    apart = x.reshape(3, 4, 2, 3)
    np.testing.assert_array_equal(encode(sae, apart), encode(sae, x))
    np.testing.assert_array_equal(
        reconstruct(sae, apart), reconstruct(sae, x).reshape(apart.shape)
    )
    np.testing.assert_array_equal(
        encode_latents(sae, apart, [3]), encode_latents(sae, x, [3])
    )
    with pytest.raises(
        ValueError,
        match=r"shape \(3, 4, 2, 3\) but the SAE reads d_in=6; was it taken at layer2",
    ):
        encode(make("relu"), apart)


@pytest.mark.parametrize(
    ("kind", "why"), [("layer_norm", "norm layer_norm"), ("skip", "a skip connection")]
)
def test_decode_without_x_says_what_it_lacks(kind: str, why: str) -> None:
    sae = make(kind)
    with pytest.raises(
        ValueError, match=rf"the SAE has {why}; give decode\(sae, codes, x\)"
    ):
        decode(sae, encode(sae, acts(2)))


def test_config_refuses_what_it_does_not_know() -> None:
    cfg = make("topk").cfg
    with pytest.raises(ValueError, match="gate 'softplus' or norm 'none' is unknown"):
        replace(cfg, gate="softplus")
    with pytest.raises(ValueError, match="k=3 groups does not divide 20 latents"):
        replace(cfg, gate="groupmax", k=3)
    with pytest.raises(
        ValueError, match=r"max_iterations=None; give a threshold of 0 or more"
    ):
        replace(cfg, gate="matching_pursuit")
    with pytest.raises(
        ValueError, match="2 streams with the per-token norm layer_norm"
    ):
        replace(cfg, streams=2, norm="layer_norm")
    for k in (None, 0, N + 1):
        with pytest.raises(
            ValueError, match=rf"k={k} and 20 latents; give k in 1\.\.20"
        ):
            replace(cfg, k=k)


def test_unit_rows_have_norm_one_and_zero_rows_stay_zero() -> None:
    rows = make("relu").dec_nm.at[3].set(0.0)
    unit = unit_decoder(rows)
    np.testing.assert_allclose(
        jnp.linalg.norm(unit, axis=1), [1.0] * 3 + [0.0] + [1.0] * (N - 4), rtol=1e-6
    )
    assert unit_decoder(rows.astype(jnp.bfloat16)).dtype == jnp.float32
    assert jnp.isfinite(jax.grad(lambda w: unit_decoder(w).sum())(rows)).all()
