"""Language models of a few thousand parameters, ragged rows for them, and a loss stated
without the package's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import init_params
from sae_attr.text.batching import RowBatch
from sae_attr.text.rows import BOS, COMPLETION, LAST, TEMPLATE, USER, TokenRow
from tests.miniatures import llama_config

VOCAB = 40
SPECIAL_IDS = (0, 1, 2)  # 0 is BOS


def llama(**changes: Any) -> LMConfig:
    """Sequential residual, RMSNorm, grouped queries, gated MLP; every kind of point has
    another width where it may.
    """
    hf = llama_config(
        n_layers=3, d=16, n_heads=4, n_kv_heads=2, head_dim=6, d_mlp=20, vocab=VOCAB
    )
    return replace(config_from_hf(hf), **changes)


def neox(**changes: Any) -> LMConfig:
    """Parallel residual, LayerNorm, biases everywhere, plain MLP, partial rotation."""
    hf = {
        "model_type": "gpt_neox",
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 20,
        "max_position_embeddings": 64,
        "rotary_pct": 0.5,
        "use_parallel_residual": True,
    }
    return replace(config_from_hf(hf), **changes)


@functools.cache
def random_params(cfg: LMConfig, seed: int = 0) -> Params:
    """The leaves of `init_params`, all random (no bias is zero, no gain one), in the
    residual's dtype.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        lambda: init_params(cfg, jax.random.key(0), cfg.resid_dtype)
    )

    def draw(path: Any, leaf: Any) -> jax.Array:
        gain = path[-1].key == "scale"
        width = leaf.shape[-2] ** -0.5 if path[-1].key == "kernel" else 0.3
        return jnp.asarray(gain + width * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def row(
    rng: np.random.Generator,
    prompt: np.ndarray,
    length: int,
    key: tuple[int, int, int],
    *,
    eos: bool = False,
) -> TokenRow:
    """A row with `length` random completion tokens after `prompt`; ids of `SPECIAL_IDS`
    are special, a first 0 is BOS.
    """
    completion = rng.integers(len(SPECIAL_IDS), VOCAB, length)
    if eos:
        completion[-1] = 2
    ids = np.concatenate([prompt, completion]).astype(np.int32)
    roles = np.full(len(ids), COMPLETION, np.int8)
    roles[: len(prompt)] = np.where(np.isin(prompt, SPECIAL_IDS), TEMPLATE, USER)
    roles[len(prompt) - 1] = LAST
    if ids[0] == 0:
        roles[0] = BOS
    return TokenRow(ids, len(prompt), roles, np.isin(ids, SPECIAL_IDS), *key)


def ragged_rows(seed: int = 0) -> list[TokenRow]:
    """13 rows of 4 prompts: several completions a side, a prompt without negatives, one
    without BOS, lengths 6 to 44.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for pair, (n_prompt, positives, negatives, bos) in enumerate(
        [
            (5, (4, 9), (3, 14, 6), True),
            (19, (11,), (23,), True),
            (9, (7, 2), (), True),
            (30, (8, 14, 5), (12,), False),
        ]
    ):
        prompt = rng.integers(len(SPECIAL_IDS), VOCAB, n_prompt)
        prompt[3] = 1
        if bos:
            prompt[0] = 0
        rows += [
            row(rng, prompt, n, (pair, 1, k), eos=k == 0)
            for k, n in enumerate(positives)
        ]
        rows += [
            row(rng, prompt, n, (pair, -1, k), eos=k == 1)
            for k, n in enumerate(negatives)
        ]
    return rows


def batch_of(
    rows: Sequence[TokenRow], *, width: int | None = None, empty: int = 0
) -> RowBatch:
    """One batch of all rows, padded to `width`, with `empty` rows of padding after
    them.
    """
    b, t = len(rows) + empty, width or max(len(r.ids) for r in rows)
    c = max(len(r.ids) - r.n_prompt for r in rows)
    tokens, target = np.zeros((b, t), np.int32), np.zeros((b, c), np.int32)
    valid = np.zeros((b, t), bool)
    completion = np.zeros((b, t), bool)
    target_valid = np.zeros((b, c), bool)
    for k, r in enumerate(rows):
        n, m = len(r.ids), len(r.ids) - r.n_prompt
        tokens[k, :n], valid[k, :n], completion[k, r.n_prompt : n] = r.ids, True, True
        target[k, :m], target_valid[k, :m] = np.arange(r.n_prompt, n), True
    return RowBatch(tokens, valid, completion, target, target_valid)


def plain_losses(
    params: Params,
    tokens_bt: Any,
    completion_bt: Any,
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
) -> jax.Array:
    """Σ −log p of the completion's tokens per row `[b]`: all logits, log-softmax, no
    padding mask anywhere.
    """
    out = logits(
        params,
        forward(params, jnp.asarray(tokens_bt), cfg=cfg, edits=edits).hidden_btd,
        cfg=cfg,
    )
    logp_btv = jax.nn.log_softmax(out[:, :-1])
    logp_bt = jnp.take_along_axis(
        logp_btv, jnp.asarray(tokens_bt)[:, 1:, None], axis=-1
    )[..., 0]
    return -jnp.sum(jnp.where(jnp.asarray(completion_bt)[:, 1:], logp_bt, 0), axis=1)


def off(got: Any, want: Any) -> float:
    """‖got − want‖ / ‖want‖ in float64; shapes must agree."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.linalg.norm(want) > 0
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
