"""Attribution of the stories model against numbers from torch and transformers in
float64.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    TokenTable,
    attribute,
    collect,
    exact_ablation,
    mean_activation,
    prompt_scores,
    rank,
    score_moment,
    table_moment,
    token_weights,
)
from sae_attr.attribution.prompt_merge import merge
from sae_attr.files.row_source import RowSource
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.sae.formats import open_decoder
from sae_attr.text.batching import corpus_batches
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.masks import Masks
from sae_attr.text.rows import BOS, COMPLETION, LAST, USER, TokenRow, corpus_mask
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.attribution._tiny import batch_of, off

SITE, N_PROMPT, CLOSE = Site(2), 41, 1e-4
Model = tuple[LMConfig, Params]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Mapping[str, np.ndarray]:
    with np.load(shared / "fixtures/attribution/golden.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def model(stories: Path) -> Model:
    return load_lm(str(stories), mesh=make_mesh("data=1"), progress=False)


@pytest.fixture(scope="module")
def decoder(shared: Path) -> RowSource:
    return open_decoder(str(shared / "fixtures/sae/saelens/topk_rescaled"))


@pytest.fixture(scope="module")
def rows(golden: Mapping[str, np.ndarray]) -> list[TokenRow]:
    """Positive and negative of every prompt in turn: `[12, 2]` flattened."""
    roles = np.full(81, COMPLETION, np.int8)
    roles[:N_PROMPT], roles[N_PROMPT - 1], roles[0] = USER, LAST, BOS
    special = np.arange(81) == 0
    ids = golden["token_ids"].astype(np.int32)
    return [
        TokenRow(ids[p, s], N_PROMPT, roles, special, p, 1 - 2 * s, 0)
        for p in range(12)
        for s in range(2)
    ]


@pytest.fixture(scope="module")
def table(model: Model, rows: list[TokenRow]) -> TokenTable:
    cfg, params = model
    return collect(
        params, rows, cfg=cfg, site=SITE, mesh=make_mesh("data=1"), batch_size=8
    )


@pytest.fixture(scope="module")
def dec_nd(decoder: RowSource) -> jax.Array:
    return jnp.asarray(decoder.rows(0, len(decoder)))


def test_activations_gradients_and_losses(
    golden: Mapping[str, np.ndarray], table: TokenTable
) -> None:
    assert table.acts_kd.dtype == np.float32
    assert off(table.acts_kd.reshape(12, 2, 81, 64), golden["acts"]) <= CLOSE
    assert off(table.grads_kd.reshape(12, 2, 81, 64), golden["grads"]) <= CLOSE
    assert off(table.nll_r.reshape(12, 2), golden["loss"]) <= CLOSE


def test_scores_of_completions(
    golden: Mapping[str, np.ndarray], table: TokenTable, dec_nd: jax.Array
) -> None:
    weights = np.zeros((24, 81), np.float32)
    weights[:, :N_PROMPT] = 1 / N_PROMPT
    shape = (24, 81, 64)
    got = attribute(
        jnp.asarray(table.acts_kd.reshape(shape)),
        jnp.asarray(table.grads_kd.reshape(shape)),
        jnp.asarray(weights),
        dec_nd,
        jnp.asarray(golden["abar"], jnp.float32),
    )
    assert off(got.reshape(12, 2, -1), golden["delta_completion"]) <= CLOSE


def test_scores_of_pairs(
    golden: Mapping[str, np.ndarray], table: TokenTable, dec_nd: jax.Array
) -> None:
    unit_nd = dec_nd / jnp.linalg.norm(dec_nd, axis=1, keepdims=True)
    got = prompt_scores(
        merge(table, "prompt"), unit_nd, jnp.asarray(golden["abar"], jnp.float32)
    )
    assert off(got, golden["delta_pair"]) <= CLOSE


def test_delta_of_the_dictionary(
    golden: Mapping[str, np.ndarray], table: TokenTable, decoder: RowSource
) -> None:
    m = table_moment(table, token_weights(table.rows, "prompt"))
    got = np.asarray(score_moment(m, jnp.asarray(golden["abar"], jnp.float32), decoder))
    want = golden["delta_pair"].mean(0)
    assert off(got, want) <= CLOSE
    np.testing.assert_array_equal(
        rank("abs", np.abs(got), 20).latents_k, golden["top20"]
    )
    np.testing.assert_array_equal(
        rank("delta", got, 100).latents_k, np.argsort(-want, kind="stable")[:100]
    )


@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_exact_ablation(
    scope: str,
    golden: Mapping[str, np.ndarray],
    model: Model,
    rows: list[TokenRow],
    dec_nd: jax.Array,
    shared: Path,
) -> None:
    cfg, params = model
    top = dec_nd[golden["top20"]]
    top = top / jnp.linalg.norm(top, axis=1, keepdims=True)
    where = np.broadcast_to(
        np.arange(81) < (N_PROMPT if scope == "prompt" else 81), (24, 81)
    )
    step = jax.jit(
        lambda p, b, d, m, w: exact_ablation(p, b, d, m, w, cfg=cfg, site=SITE)
    )
    got = step(
        params, batch_of(rows), top, jnp.asarray(golden["abar"], jnp.float32), where
    )
    shaped = lambda x: np.asarray(x).reshape(12, 2, 20)
    assert off(shaped(got.dloss), golden[f"ablation_dL_{scope}"]) <= CLOSE
    first = shaped(got.first_order)
    assert off(first, golden[f"first_order_sum_{scope}_top20"]) <= CLOSE
    facts: dict[str, Any] = json.loads(
        (shared / "fixtures/attribution/golden.json").read_text()
    )
    correlation = np.corrcoef(first.ravel(), shaped(got.dloss).ravel())[0, 1]
    assert correlation == pytest.approx(
        facts[f"corr_first_order_vs_exact_{scope}"], abs=1e-4
    )


@pytest.mark.slow
def test_mean_activation_of_the_whole_corpus(
    golden: Mapping[str, np.ndarray], model: Model, stories: Path, shared: Path
) -> None:
    cfg, params = model
    tok = load_tokenizer(stories)
    work = (
        (
            tokens,
            valid,
            corpus_mask(
                tokens, valid, special, tok, masks=Masks(frozenset(), outlier=None)
            ),
        )
        for tokens, valid, special in corpus_batches(
            read_corpus(shared / "corpora/tinystories_1000.json"),
            tok,
            context=512,
            batch_size=16,
        )
    )
    mean = mean_activation(params, work, cfg=cfg, site=SITE, mesh=make_mesh("data=1"))
    assert mean.tokens == 413717
    assert off(mean.mean_d, golden["abar"]) <= 1e-6
