"""Encoder-true scores and the reconstruction error: by hand, per completion against per
prompt, and adding up.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.activations import CorpusBatch
from sae_attr.attribution import (
    attribute_codes,
    code_statistics,
    collect,
    encoder_prompt_scores,
    error_prompt_scores,
    error_scores,
    merge,
    token_weights,
)
from sae_attr.attribution.encoder_scores import contributions, fires_on_pairs
from sae_attr.attribution.token_table import table_from_arrays
from sae_attr.hooks import Site
from sae_attr.lm.model import forward
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig, code_rows, decode, encode
from sae_attr.text.rows import scope_mask
from tests.attribution._tiny import VOCAB, llama, off, ragged_rows, random_params
from tests.sae.test_model import KINDS, D, N, make

pytestmark = pytest.mark.usefixtures("quick")

ROWS = ragged_rows(3)
LINEAR = ("relu", "jumprelu", "topk", "gated", "rescaled")  # no norm per token, no skip


@pytest.fixture(scope="module")
def arrays() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Activations (equal on shared prompts) and gradients of every row."""
    rng = np.random.default_rng(0)
    prompts = {row.pair: 3 * rng.standard_normal((row.n_prompt, D)) for row in ROWS}
    acts = [
        np.concatenate(
            [prompts[r.pair], 3 * rng.standard_normal((len(r.ids) - r.n_prompt, D))]
        )
        for r in ROWS
    ]
    return acts, [rng.standard_normal(a.shape) for a in acts]


Arrays = tuple[list[np.ndarray], list[np.ndarray]]


def by_hand(
    sae: SAE, acts: np.ndarray, grads: np.ndarray, mean_n: np.ndarray
) -> np.ndarray:
    """δ′ `[t, n]`: what the output loses, to first order, when code i goes to its mean
    (decode is affine in the codes).
    """
    codes = np.asarray(encode(sae, acts), np.float64)
    if (
        sae.cfg.norm != "none"
    ):  # the factor by which a token's codes are scaled on the way out
        scale = np.asarray(
            decode(sae, jnp.ones((len(acts), N)), acts)
            - decode(sae, jnp.zeros((len(acts), N)), acts)
        )
        codes = codes * (scale / np.asarray(sae.dec_nm.sum(0)))[:, :1]
    norms = np.linalg.norm(np.asarray(sae.dec_nm, np.float64), axis=1)
    unit = np.asarray(sae.dec_nm) / norms[:, None]
    length = np.ones(N) if sae.cfg.rescale_by_dec_norm else norms
    return -(grads @ unit.T * length) * (codes - mean_n)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "heads"])
def test_scores_by_hand(kind: str, arrays: Arrays) -> None:
    sae, (acts, grads) = make(kind), arrays
    mean_n = np.random.default_rng(1).random(N).astype(np.float32)
    table = table_from_arrays(ROWS, acts, grads)
    for scope in ("prompt", "all"):
        weights_k = token_weights(ROWS, scope)
        deltas = [by_hand(sae, a, g, mean_n) for a, g in zip(acts, grads, strict=True)]
        want_n = sum(weights_k[table.tokens_of(r)] @ d for r, d in enumerate(deltas))
        merged = merge(table, scope)
        assert off(encoder_prompt_scores(merged, sae, mean_n).mean(0), want_n) < 1e-4
        some = np.array([7, 0, 19])
        assert (
            off(encoder_prompt_scores(merged, sae, mean_n, some).mean(0), want_n[some])
            < 1e-4
        )
    one = attribute_codes(
        sae,
        jnp.asarray(acts[0])[None],
        jnp.asarray(grads[0])[None],
        jnp.ones((1, len(acts[0]))),
        mean_n,
    )
    assert off(one[0], deltas[0].sum(0)) < 1e-4


@pytest.mark.parametrize("kind", LINEAR)
def test_latents_and_error_share_out_the_whole(kind: str, arrays: Arrays) -> None:
    """Σ_i δ′ + δ_err = −g·(a − ā) where all three means are over the same tokens."""
    sae, (acts, grads) = make(kind), arrays
    corpus = jnp.asarray(
        3 * np.random.default_rng(2).standard_normal((50, D)), jnp.float32
    )
    mean_n = np.asarray(contributions(sae, corpus).mean(0))
    error_m = np.asarray((corpus - decode(sae, encode(sae, corpus), corpus)).mean(0))
    merged = merge(table_from_arrays(ROWS, acts, grads), "all")
    latents_p = encoder_prompt_scores(merged, sae, mean_n).sum(1)
    error_p, whole_p = error_prompt_scores(
        merged, sae, error_m, np.asarray(corpus.mean(0))
    ).T
    np.testing.assert_allclose(
        latents_p + error_p, whole_p, rtol=1e-3, atol=1e-4 * np.abs(whole_p).max()
    )
    assert np.abs(error_p).min() > 1e-3
    token = error_scores(
        sae,
        jnp.asarray(acts[0]),
        jnp.asarray(acts[0]),
        jnp.asarray(grads[0]),
        jnp.asarray(error_m),
    )
    error = acts[0] - np.asarray(decode(sae, encode(sae, acts[0]), acts[0]))
    assert off(token, -np.sum(grads[0] * (error - error_m), 1)) < 1e-4


def test_statistics_over_a_corpus_and_a_transcoder() -> None:
    cfg = llama()
    site = Site(1, "mlp_out")
    read = Site(1, "mlp_in")
    mesh = make_mesh("data=1")
    rng = np.random.default_rng(0)
    sae = SAE(
        **{
            k: jnp.asarray(rng.standard_normal(s), jnp.float32)
            for k, s in {
                "enc_dn": (16, 12),
                "enc_bias_n": (12,),
                "dec_nm": (12, 16),
                "dec_bias_m": (16,),
            }.items()
        },
        cfg=SAEConfig(16, 16, 12),
    )
    tokens = rng.integers(3, VOCAB, (4, 9)).astype(np.int32)
    valid, counted = np.ones((4, 9), bool), rng.random((4, 9)) < 0.6
    params = random_params(cfg)
    found = code_statistics(
        params,
        [CorpusBatch(tokens, valid, counted)],
        sae,
        cfg=cfg,
        site=site,
        read=read,
        mesh=mesh,
    )
    acts = forward(params, tokens, cfg=cfg, keep=(site, read)).acts
    codes = np.asarray(encode(sae, acts[read]))[counted]
    assert found.tokens == counted.sum()
    assert off(found.mean_n, codes.mean(0)) < 1e-5
    assert off(found.rate_n, (codes != 0).mean(0)) < 1e-6
    error = (
        np.asarray(acts[site])[counted]
        - np.asarray(decode(sae, encode(sae, acts[read]), acts[read]))[counted]
    )
    assert off(found.error_m, error.mean(0)) < 1e-4
    table = collect(params, ROWS, cfg=cfg, site=site, mesh=mesh, read=read)
    merged = merge(table, "prompt")
    assert merged.reads_jd.shape == merged.acts_jd.shape
    assert off(merged.reads_jd, merged.acts_jd) > 0.1
    want = -(merged.grads_jd @ np.asarray(code_rows(sae)).T) * (
        np.asarray(encode(sae, merged.reads_jd)) - found.mean_n
    )
    assert (
        off(encoder_prompt_scores(merged, sae, found.mean_n).sum(0), want.sum(0)) < 1e-4
    )


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu"])
@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_a_latent_fires_on_pairs_where_its_code_is_not_zero_at_a_counted_token(
    kind: str, scope: str, arrays: Arrays
) -> None:
    sae, (acts, grads) = make(kind), arrays
    found = fires_on_pairs(
        merge(table_from_arrays(ROWS, acts, grads), scope), sae, np.arange(N)
    )
    fires: dict[int, np.ndarray] = {}
    for row, acts_td in zip(ROWS, acts, strict=True):
        counted = scope_mask(row, scope)
        codes = np.asarray(encode(sae, jnp.asarray(acts_td, jnp.float32)))[counted]
        fires[row.pair] = fires.get(row.pair, False) | (codes != 0).any(0)
    np.testing.assert_allclose(found, np.mean(list(fires.values()), axis=0))
    few = np.array([3, 1])
    np.testing.assert_array_equal(
        fires_on_pairs(merge(table_from_arrays(ROWS, acts, grads), scope), sae, few),
        found[few],
    )
