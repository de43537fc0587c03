"""Numbers of every family against those recorded from transformers, and what the
stories model is known to do.
"""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.loss import target_nll
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.text.batching import corpus_batches
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.tokenizer import decode, encode_many
from sae_attr.text.tokenizer_folder import load_tokenizer

FAMILIES = (
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "phi3",
)
FAMILIES += ("mixtral", "qwen3_moe", "gpt_oss")
TOLERANCE = 2e-4


def largest_gap(got: jax.Array, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(np.asarray(got) - want).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_logits(shared: Path, family: str) -> None:
    folder = shared / "fixtures/hf" / family
    heads = load_config(str(folder)).n_heads
    mesh = make_mesh("data=2,model=2" if heads % 2 == 0 else "data=4,model=1")
    cfg, params = load_lm(str(folder), mesh=mesh, progress=False)
    golden = np.load(folder / "golden.npz")
    entering = tuple(Site(layer, "resid_pre") for layer in range(cfg.n_layers))

    @jax.jit
    def run(
        params: Params, tokens_bt: jax.Array
    ) -> tuple[dict[Site, jax.Array], jax.Array, jax.Array]:
        out = forward(params, tokens_bt, cfg=cfg, keep=entering)
        return out.acts, out.hidden_btd, logits(params, out.hidden_btd, cfg=cfg)

    acts, last, logits_btv = run(params, golden["input_ids"])
    for layer, site in enumerate(entering):
        assert largest_gap(acts[site], golden["hidden_states"][layer]) <= TOLERANCE, (
            site
        )
    assert largest_gap(last, golden["last_layer_output"]) <= TOLERANCE
    assert largest_gap(logits_btv, golden["logits"]) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_older_spelling_means_the_same(
    shared: Path, tmp_path: Path, family: str
) -> None:
    folder = shared / "fixtures/hf" / family
    shutil.copy(folder / "config.v4.json", tmp_path / "config.json")
    assert load_config(str(tmp_path)) == load_config(str(folder))


# --- stories260K

GREEDY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


@pytest.fixture(scope="module")
def lm(stories: Path) -> tuple[LMConfig, Params]:
    return load_lm(str(stories), mesh=make_mesh("data=1"), progress=False)


def test_greedy_text_of_the_stories_model(
    stories: Path, lm: tuple[LMConfig, Params]
) -> None:
    cfg, params = lm
    tok = load_tokenizer(stories)
    length = 1 + len(encode_many(tok, [GREEDY], add_bos=False)[0])

    @jax.jit
    def write(params: Params) -> jax.Array:
        def step(t: jax.Array, tokens_bt: jax.Array) -> jax.Array:
            hidden_d = forward(params, tokens_bt, cfg=cfg).hidden_btd[0, t]
            return tokens_bt.at[0, t + 1].set(
                jnp.argmax(logits(params, hidden_d, cfg=cfg))
            )

        return jax.lax.fori_loop(
            0, length - 1, step, jnp.full((1, length), tok.bos_id, jnp.int32)
        )

    assert decode(tok, np.asarray(write(params))[0, 1:]).strip() == GREEDY


def test_loss_of_the_stories_model(
    shared: Path, stories: Path, lm: tuple[LMConfig, Params]
) -> None:
    cfg, params = lm
    texts = islice(read_corpus(shared / "corpora/tinystories_1000.json"), 40)

    @jax.jit
    def summed(params: Params, tokens_bt: jax.Array, valid_bt: jax.Array) -> jax.Array:
        hidden_btd = forward(params, tokens_bt, cfg=cfg, valid_bt=valid_bt).hidden_btd
        target_bc = jnp.broadcast_to(
            jnp.arange(1, tokens_bt.shape[1]), valid_bt[:, 1:].shape
        )
        return target_nll(
            params, hidden_btd, tokens_bt, target_bc, valid_bt[:, 1:], cfg=cfg
        ).sum()

    total, count = 0.0, 0
    for tokens_bt, valid_bt, _ in corpus_batches(
        texts, load_tokenizer(stories), context=512, batch_size=8
    ):
        total += float(summed(params, tokens_bt, valid_bt))
        count += int(valid_bt[:, 1:].sum())
    assert total / count == pytest.approx(1.3069, abs=1e-4)
