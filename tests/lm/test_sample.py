"""Generation: cached numbers against uncached ones for every family, what is drawn
against plain restatements.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sae_attr.lm import cache as caches
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import Completions, check_finite
from sae_attr.lm.draw import Sampling, draw, nucleus, pick
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import init_params
from sae_attr.lm.prompts import Prompts, make_prompts
from sae_attr.lm.rope import Rope
from sae_attr.lm.sample import generate
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.text.tokenizer import decode, encode_many
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.lm.test_parity import FAMILIES, GREEDY
from tests.miniatures import llama_config

pytestmark = pytest.mark.usefixtures("quick")

TOLERANCE = 2e-4
compiled = jax.jit(generate, static_argnames=("cfg", "sampling"))


# ---- cached against uncached ---------------------------------------------------------


@partial(jax.jit, static_argnames=("cfg", "first"))
def cached_logits(
    params: Params,
    tokens_bt: jax.Array,
    pads_b: jax.Array,
    *,
    cfg: LMConfig,
    first: int,
) -> jax.Array:
    """Logits `[b, t, v]` from a prompt of `first` slots and then one token at a time."""
    b, t = tokens_bt.shape
    pos_bt = jnp.maximum(jnp.arange(t) - pads_b[:, None], 0)
    valid_bt = jnp.arange(t) >= pads_b[:, None]
    cache = caches.init_cache(cfg, rows=b, slots=t, dtype="float32")
    head = forward(
        params,
        tokens_bt[:, :first],
        cfg=cfg,
        pos_bt=pos_bt[:, :first],
        valid_bt=valid_bt[:, :first],
        cache=cache,
    )

    def step(cache: caches.Cache, i: jax.Array) -> tuple[caches.Cache, jax.Array]:
        one = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
        out = forward(
            params,
            one(tokens_bt),
            cfg=cfg,
            pos_bt=one(pos_bt),
            valid_bt=one(valid_bt),
            cache=cache,
        )
        return out.cache, out.hidden_btd[:, 0]

    _, rest_tbd = jax.lax.scan(step, head.cache, jnp.arange(first, t))
    return logits(
        params,
        jnp.concatenate([head.hidden_btd, jnp.moveaxis(rest_tbd, 0, 1)], axis=1),
        cfg=cfg,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_are_those_of_transformers(shared: Path, family: str) -> None:
    """48 positions of the recorded rows: windows of 16 and every rope, 20 tokens at
    once and 28 singly.
    """
    folder = shared / "fixtures/hf" / family
    cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    golden = np.load(folder / "golden.npz")
    got = cached_logits(
        params,
        jnp.asarray(golden["input_ids"]),
        jnp.zeros(2, jnp.int32),
        cfg=cfg,
        first=20,
    )
    assert np.abs(np.asarray(got) - golden["logits"]).max() <= TOLERANCE


def small(**fields: Any) -> tuple[LMConfig, Params]:
    """A random Llama of two layers whose numbers are large enough to matter."""
    cfg = replace(config_from_hf(llama_config(vocab=50)), **fields)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(partial(init_params, cfg), jax.random.key(0))
    draw = lambda path, leaf: jnp.asarray(
        0.5 * rng.standard_normal(leaf.shape, np.float32) + ("norm" in str(path))
    )
    return cfg, jax.tree_util.tree_map_with_path(draw, shapes)


def grown(cfg: LMConfig, params: Params, row: np.ndarray, first: int) -> np.ndarray:
    """Last logits of the row at every length from `first` on, each from scratch."""
    run = jax.jit(
        lambda tokens, valid: (
            forward(params, tokens, cfg=cfg, valid_bt=valid).hidden_btd
        )
    )
    t = len(row)
    valid_bt = np.arange(t) < np.arange(first, t + 1)[:, None]
    hidden_btd = run(np.broadcast_to(row, valid_bt.shape), valid_bt)
    return np.asarray(
        logits(
            params,
            hidden_btd[np.arange(len(valid_bt)), np.arange(first - 1, t)],
            cfg=cfg,
        )
    )


LONG = Rope(
    4,
    10000.0,
    "longrope",
    4.0,
    12,
    short_factor=(1.0, 1.5),
    long_factor=(3.0, 9.0),
    attention_factor=1.2,
)


WITHIN = pytest.param(replace(LONG, original_len=32), marks=pytest.mark.slow)


@pytest.mark.parametrize("rope", [LONG, WITHIN], ids=["outgrown", "within"])
def test_log_probabilities_at_every_length_of_a_row(rope: Rope) -> None:
    """longrope turns all tokens anew when a row outgrows the original length, at
    another step in each row of a batch.
    """
    cfg, params = small(ropes=(rope,), rope_of_layer=(0, 0), window_of_layer=(5, 2**30))
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 9], list(range(14))]
    keys = jax.random.split(jax.random.key(0), 3)
    out = compiled(
        params,
        make_prompts(rows, multiple=1),
        keys,
        cfg=cfg,
        sampling=Sampling(max_new=12),
    )
    for b, prompt in enumerate(rows):
        row = np.array([*prompt, *np.asarray(out.tokens_bn)[b]], np.int32)
        logp_nv = jax.nn.log_softmax(grown(cfg, params, row[:-1], len(prompt)))
        np.testing.assert_allclose(
            out.logp_bn[b], logp_nv[np.arange(12), row[len(prompt) :]], atol=1e-4
        )
    outgrown = caches.outgrown(cfg, jnp.asarray([3, 13]), slots=25)
    if rope.original_len == 32:
        assert outgrown is None
    else:
        assert outgrown is not None
        assert outgrown.tolist() == [False, True]


def test_a_cache_needs_positions_and_room() -> None:
    cfg, params = small()
    cache = caches.init_cache(cfg, rows=1, slots=3, dtype="float32")
    tokens_bt = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="needs pos_bt"):
        forward(params, tokens_bt, cfg=cfg, cache=cache)
    with pytest.raises(
        ValueError, match="1 rows of 4 tokens do not fit a cache of 1 rows and 3 slots"
    ):
        forward(params, tokens_bt, cfg=cfg, cache=cache, pos_bt=jnp.arange(4)[None])


# ---- what generate returns -----------------------------------------------------------


def test_greedy_text_of_the_stories_model(stories: Path) -> None:
    cfg, params = load_lm(str(stories), mesh=make_mesh("data=1"), progress=False)
    tok = load_tokenizer(stories)
    sampling = Sampling(
        temperature=0, max_new=len(encode_many(tok, [GREEDY], add_bos=False)[0])
    )
    keys = jax.random.split(jax.random.key(0), 1)
    out = compiled(
        params, make_prompts([[tok.bos_id or 0]]), keys, cfg=cfg, sampling=sampling
    )
    assert decode(tok, np.asarray(out.tokens_bn)[0]).strip() == GREEDY


ROWS = [[1, 7, 3], [1, 9, 30, 4, 4, 21, 8, 40, 2], [5], [1, 7, 3]]


@pytest.fixture(scope="module")
def model() -> tuple[LMConfig, Params]:
    return small(window_of_layer=(4, 2**30))


def keys_of(ids: list[int]) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(
        jnp.asarray(ids)
    )


def run(
    model: tuple[LMConfig, Params], prompts: Prompts, ids: list[int], **sampling: Any
) -> Completions:
    cfg, params = model
    chosen = Sampling(**{"max_new": 12, "stop_ids": (11, 30), **sampling})
    return jax.tree.map(
        np.asarray, compiled(params, prompts, keys_of(ids), cfg=cfg, sampling=chosen)
    )


def row(out: Completions, b: int) -> list[int]:
    return out.tokens_bn[b, : out.length_b[b]].tolist()


def test_a_row_depends_on_its_prompt_and_key_alone(
    model: tuple[LMConfig, Params],
) -> None:
    """Neighbours, padding, its side, and rows that are none change no text; another key
    does, and so does the prompt.
    """
    together = run(model, make_prompts(ROWS), [0, 1, 2, 9])
    alone = run(model, make_prompts([ROWS[1]], width=9), [1])
    assert row(alone, 0) == row(together, 1)
    np.testing.assert_allclose(alone.logp_bn[0], together.logp_bn[1], atol=1e-4)
    right = np.zeros((4, 16), np.int32), np.zeros((4, 16), bool)
    for b, prompt in ((0, ROWS[1]), (2, ROWS[2]), (3, ROWS[0])):
        right[0][b, b : b + len(prompt)], right[1][b, b : b + len(prompt)] = (
            prompt,
            True,
        )
    moved = run(model, Prompts(*right), [1, 5, 2, 0])
    assert [row(moved, b) for b in range(4)] == [
        row(together, 1),
        [],
        row(together, 2),
        row(together, 0),
    ]
    assert not moved.stopped_b[1]
    assert not moved.logp_bn[1].any()
    assert row(together, 3) != row(together, 0)


def test_stops_lengths_and_log_probabilities(model: tuple[LMConfig, Params]) -> None:
    cfg, params = model
    prompts, ids = make_prompts([[1, k] for k in range(40)]), list(range(40))
    out = run(model, prompts, ids, temperature=1.5, top_k=20, top_p=0.9, min_new=2)
    assert 0 < out.stopped_b.sum() < 40
    assert out.length_b.min() == 3  # a stop token may be the third
    rows = [[1, k, *row(out, k)] for k in range(40)]
    whole = make_prompts(rows)
    pos_bt = np.maximum(np.cumsum(whole.valid_bt, axis=1) - 1, 0)
    hidden_btd = forward(
        params, whole.tokens_bt, cfg=cfg, pos_bt=pos_bt, valid_bt=whole.valid_bt
    ).hidden_btd
    logp_btv = np.asarray(jax.nn.log_softmax(logits(params, hidden_btd, cfg=cfg)))
    for b, tokens in enumerate(rows):
        n, new = int(out.length_b[b]), tokens[2:]
        assert out.stopped_b[b] == (new[-1] in (11, 30))
        assert not {11, 30} & set(new[:-1])
        assert n == 12 or out.stopped_b[b]
        assert not out.tokens_bn[b, n:].any()
        assert not out.logp_bn[b, n:].any()
        want = logp_btv[b, np.arange(-n - 1, -1), new]
        np.testing.assert_allclose(out.logp_bn[b, :n], want, atol=1e-4)


def test_no_step_copies_the_cache() -> None:
    cfg, params = small()
    rows, new = 3, 9
    prompts = make_prompts([[1, 2, 3]] * rows, width=8)
    sampling = Sampling(max_new=new)
    sample = jax.jit(partial(generate, cfg=cfg, sampling=sampling))
    keys_b = keys_of(list(range(rows)))
    program = sample.lower(params, prompts, keys_b).compile().as_text()
    slots = 8 + new - 1
    lines = [line.strip() for line in program.splitlines()]
    for axes in ((cfg.head_dim, slots), (slots, cfg.head_dim)):
        shape = (rows, cfg.n_kv_heads, *axes)
        of_cache = f"= f32[{','.join(map(str, shape))}]"
        of_shape = [line for line in lines if of_cache in line]
        assert of_shape
        assert [line for line in of_shape if " copy(" in line] == []


def test_the_loop_ends_with_the_last_row(
    model: tuple[LMConfig, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All even tokens are stop tokens: as many steps are made as the longest row has
    tokens, however many are allowed.
    """
    steps: list[int] = []
    import sae_attr.lm.decode as module

    def counting(*args: Any, **kwargs: Any) -> jax.Array:
        jax.debug.callback(lambda: steps.append(1))
        return logits(*args, **kwargs)

    monkeypatch.setattr(module, "logits", counting)
    compiled.clear_cache()
    out = run(model, make_prompts(ROWS), [0, 1, 2, 3], stop_ids=tuple(range(0, 50, 2)))
    jax.effects_barrier()
    assert out.stopped_b.all()
    assert len(steps) == out.length_b.max() < 12
    compiled.clear_cache()


# ---- drawing -------------------------------------------------------------------------


def kept(p_v: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens may be drawn, by sorting."""
    order = np.argsort(-p_v, kind="stable")[: top_k or None]
    p_k = p_v[order] / p_v[order].sum()
    chosen = order[np.cumsum(p_k) - p_k < top_p]
    return np.isin(np.arange(len(p_v)), chosen)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 0, 0.7), (1.3, 9, 0.8)],
)
def test_draws_follow_the_distribution(
    temperature: float, top_k: int, top_p: float
) -> None:
    """A chi-square test on 40,000 draws, and nothing outside what top-k and then top-p
    leave.
    """
    logits_v = 2 * np.random.default_rng(1).standard_normal(40).astype(np.float32)
    p_v = np.exp(logits_v.astype(np.float64) / temperature)
    may_v = kept(p_v / p_v.sum(), top_k, top_p)
    want_v = np.where(may_v, p_v, 0) / p_v[may_v].sum()
    keys = jax.random.split(jax.random.key(2), 40_000)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = np.asarray(
        draw(
            jnp.broadcast_to(jnp.asarray(logits_v), (40_000, 40)),
            keys,
            sampling=sampling,
        )
    )
    counts_v = np.bincount(drawn, minlength=40)
    assert not counts_v[~may_v].any()
    assert stats.chisquare(counts_v[may_v], 40_000 * want_v[may_v]).pvalue > 1e-3


def test_a_token_is_picked_by_the_cumulative_sum_of_all_blocks() -> None:
    rng = np.random.default_rng(4)
    weights_v = (rng.random(700) * (rng.random(700) < 0.3)).astype(np.float32)
    weights_v[256:512] = 0  # a block without a token that may be drawn
    uniform_b = np.linspace(0, 1, 999, endpoint=False, dtype=np.float32)
    got_b = pick(jnp.tile(jnp.asarray(weights_v), (999, 1)), jnp.asarray(uniform_b))
    ends_v = np.cumsum(weights_v.astype(np.float64))
    want_b = np.searchsorted(ends_v, uniform_b * ends_v[-1], side="right")
    assert (np.asarray(got_b) == want_b).all()
    # A target that rounding puts at the sum itself takes the last weight, not the end.
    last = pick(jnp.asarray(weights_v)[None], jnp.ones(1))
    assert last.tolist() == [np.flatnonzero(weights_v)[-1]]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999999])
def test_the_nucleus_is_the_smallest_set_that_holds_enough(top_p: float) -> None:
    weights_bv = (
        np.random.default_rng(0).standard_gamma(0.2, (50, 300)).astype(np.float32)
    )
    got = np.asarray(nucleus(jnp.asarray(weights_bv), top_p))
    for got_v, weights_v in zip(got, weights_bv.astype(np.float64), strict=True):
        order = np.argsort(-weights_v)
        n = int(
            (
                np.cumsum(weights_v[order]) - weights_v[order] < top_p * weights_v.sum()
            ).sum()
        )
        assert abs(int((got_v > 0).sum()) - n) <= (
            top_p > 0.99
        )  # the last of tiny weights is a matter of rounding
        np.testing.assert_array_equal(
            got_v[order[: n - 1]], weights_v[order[: n - 1]].astype(np.float32)
        )


def test_ties_at_the_border_stay_and_greedy_takes_the_first() -> None:
    tied = jnp.asarray([[0.25, 0.5, 0.25, 0.0]], jnp.float32)
    np.testing.assert_array_equal(nucleus(tied, 0.6), tied)
    np.testing.assert_array_equal(nucleus(tied, 0.5), [[0, 0.5, 0, 0]])
    keys = jax.random.split(jax.random.key(0), 1)
    assert draw(
        jnp.asarray([[1.0, 3.0, 3.0]]), keys, sampling=Sampling(temperature=0)
    ).tolist() == [1]


# ---- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("max_new", 0),
     ("min_new", 65), ("stop_ids", (-1,))],
)  # fmt: skip
def test_sampling_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"sampling: {field} is "):
        Sampling(**{field: value})


def test_prompts_that_cannot_be(model: tuple[LMConfig, Params]) -> None:
    cfg, params = model
    with pytest.raises(ValueError, match="no prompt has a token"):
        make_prompts([[]])
    with pytest.raises(
        ValueError, match="prompt of 3 tokens does not fit a width of 2"
    ):
        make_prompts([[1, 2, 3]], width=2)
    go = lambda cfg, keys, **s: generate(
        params, make_prompts([[1]]), keys, cfg=cfg, sampling=Sampling(**s)
    )
    with pytest.raises(
        ValueError, match="stop id 50 is beyond the model's vocabulary of 50"
    ):
        go(cfg, keys_of([0]), stop_ids=(50,))
    with pytest.raises(ValueError, match="one typed key a row"):
        go(cfg, keys_of([0, 1]))
    with pytest.raises(ValueError, match="longer than the 20 learned positions"):
        go(replace(cfg, learned_pos=True, max_len=20), keys_of([0]), max_new=6)


@pytest.mark.parametrize("token", [-1, 50])
def test_token_ids_that_the_embedding_lacks(
    model: tuple[LMConfig, Params], token: int
) -> None:
    cfg, params = model
    with pytest.raises(
        ValueError,
        match=f"row 1 has token id {token}, beyond the model's embedding of 50 rows",
    ):
        generate(
            params,
            make_prompts([[1], [2, token]]),
            keys_of([0, 1]),
            cfg=cfg,
            sampling=Sampling(),
        )


def test_a_row_without_finite_logits_ends_and_is_named(
    model: tuple[LMConfig, Params],
) -> None:
    """Token 7 embeds as NaN: the row that reads it ends at step 0, its neighbour says
    what it says alone.
    """
    cfg, params = model
    broken = {**params, "embed": {"table": params["embed"]["table"].at[7].set(jnp.nan)}}
    if "unembed" not in params:  # tied: the logits of every row would be NaN
        broken["unembed"] = {"kernel": params["embed"]["table"].T}
    prompts, sampling = make_prompts([[1, 2], [1, 7], [1]]), Sampling(max_new=3)
    whole, done = (
        jax.tree.map(
            np.asarray,
            compiled(p, prompts, keys_of([0, 1, 2]), cfg=cfg, sampling=sampling),
        )
        for p in ({**broken, "embed": params["embed"]}, broken)
    )
    assert whole.broken_b.tolist() == [-1, -1, -1]
    assert (done.broken_b[1], done.length_b[1], done.stopped_b[1]) == (0, 0, False)
    assert 7 not in whole.tokens_bn[0][:-1]  # the last one is never read
    assert done.tokens_bn[0].tolist() == whole.tokens_bn[0].tolist()
    with pytest.raises(
        ValueError, match=r"sampling b: the logits of step 0 \(from 0\) are not finite"
    ):
        check_finite(done, ["a", "b", None])
    check_finite(done, [None, None, None])
