"""A step of generation beside what it is made of, each measured alone.

Command: python -m benchmarks.decode_step --slots=64,256,1024
Measured: milliseconds of one token of every row through the blocks without a cache,
through the unembedding, of its draw; of one reading of the whole cache (a plain sum),
which attention cannot do without, and of attention's two products with it; and of a
whole step with caches of several sizes, rows at steps of their own. `ratio` is
(step − reading) / (blocks + logits + draw), and the same with the products instead of
the reading. The blocks are measured in a loop over layers; steps run with the copy of
the weights that a sweep makes, or with `--stacked` without it. All take turns and the
shortest time counts, wall clock and processor time.
Expect: on 2 idle cores, SmolLM2-135M's shape and 32 rows, ratios of 0.9 to 1.1; with the
reading at most 1.25 on the clock, else the status is 1. Some 2 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._shapes import random_model
from benchmarks._timing import seconds
from sae_attr.lm.cache import Cache, init_cache
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import Rows, drawn, empty_completions, next_tokens
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import unstacked, weights_dtype
from sae_attr.lm.prompts import Prompts

STEPS = 4  # of one call, as many as a loop needs to be a loop
NEW = 2 * STEPS
LIMIT = 1.25  # of a step beyond the reading, over its parts

Parts = dict[str, Callable[[], Any]]


def parts_alone(cfg: LMConfig, params: Params, rows: int) -> Parts:
    """Returns name -> function that runs one part of a step `STEPS` times."""
    tokens_b1 = jnp.full((rows, 1), 5, jnp.int32)
    hidden_bd = jax.random.normal(jax.random.key(1), (rows, cfg.d_model))
    logits_bv = jax.random.normal(jax.random.key(2), (rows, cfg.vocab))
    empty = _rows(init_cache(cfg, rows=rows, slots=1, dtype="float32"), cfg, rows)

    @jax.jit
    def blocks(params: Params) -> jax.Array:
        def one(i: jax.Array, tokens_b1: jax.Array) -> jax.Array:
            pos_b1 = jnp.full((rows, 1), i)
            out = forward(params, tokens_b1, cfg=cfg, pos_bt=pos_b1)
            return tokens_b1 + (out.hidden_btd[..., 0] > 1e9)

        return jax.lax.fori_loop(0, STEPS, one, tokens_b1)

    @jax.jit
    def unembedding(params: Params) -> jax.Array:
        def one(_: jax.Array, hidden_bd: jax.Array) -> jax.Array:
            return hidden_bd + 1e-9 * logits(params, hidden_bd, cfg=cfg)[:, :1]

        return jax.lax.fori_loop(0, STEPS, one, hidden_bd)

    @jax.jit
    def draw(rows: Rows, logits_bv: jax.Array) -> Any:
        def one(_: jax.Array, carry: Any) -> Any:
            rows, logits_bv = carry
            rows = drawn(rows, logits_bv, rows.alive_b, sampling=Sampling(max_new=NEW))
            return rows, logits_bv.at[0, 0].add(1e-9)

        return jax.lax.fori_loop(0, STEPS, one, (rows, logits_bv))[0].done

    return {
        "blocks": lambda: blocks(params),
        "logits": lambda: unembedding(params),
        "draw": lambda: draw(empty, logits_bv),
    }


def _rows(cache: Cache, cfg: LMConfig, rows: int) -> Rows:
    """Rows whose prompts fill a cache but for the tokens that are drawn."""
    width = max(cache.pos_bs.shape[1] - NEW + 1, 1)
    shape = (rows, width)
    return Rows(
        cache=cache,
        prompts=Prompts(jnp.ones(shape, jnp.int32), jnp.ones(shape, bool)),
        keys_b=jax.random.split(jax.random.key(0), rows),
        step=jnp.ones(rows, jnp.int32),
        alive_b=jnp.ones(rows, bool),
        done=empty_completions(rows, Sampling(max_new=NEW)),
    )


def whole_steps(cfg: LMConfig, params: Params, rows: int, slots: int) -> Parts:
    """Returns the runs of `STEPS` whole steps, of as many readings of the cache, and of
    attention's two products alone.
    """
    cache = init_cache(cfg, rows=rows, slots=slots, dtype=weights_dtype(params))
    cache = replace(cache, used=jnp.zeros(rows, jnp.int32))
    cache = replace(cache, valid_bs=jnp.ones((rows, slots), bool))
    state = _rows(cache, cfg, rows)

    @partial(jax.jit, donate_argnums=1)
    def steps(params: Params, rows: Rows) -> Rows:
        one = partial(
            next_tokens, params, cfg=cfg, sampling=Sampling(max_new=NEW), edits=None
        )
        rows = jax.lax.fori_loop(0, STEPS, lambda _, rows: one(rows), rows)
        return replace(rows, step=jnp.ones_like(rows.step))

    @jax.jit
    def reading(kv: Any) -> Any:
        def one(_: jax.Array, total: jax.Array) -> jax.Array:
            # The fastest of plain sums; nothing is kept of it, so that only reading counts.
            sums = [jnp.sum(x + total) for x in jax.tree.leaves(kv)]
            return 1e-30 * jnp.sum(jnp.stack(sums))

        return jax.lax.fori_loop(0, STEPS, one, jnp.zeros(()))

    @jax.jit
    def products(kv: Any) -> Any:
        def one(_: jax.Array, total: jax.Array) -> jax.Array:
            for layer in kv:
                b, k, c, s = layer.k_bkcs.shape
                q_bkgc = jnp.ones((b, k, cfg.n_heads // k, c)) + total
                p_bkgs = jnp.ones((b, k, cfg.n_heads // k, s)) + total
                score_bkgs = jnp.einsum("bkgc,bkcs->bkgs", q_bkgc, layer.k_bkcs)
                z_bkgc = jnp.einsum("bkgs,bksc->bkgc", p_bkgs, layer.v_bksc)
                total += 1e-30 * (score_bkgs[0, 0, 0, 0] + z_bkgc[0, 0, 0, 0])
            return total

        return jax.lax.fori_loop(0, STEPS, one, jnp.zeros(()))

    def run() -> Any:
        nonlocal state
        state = steps(params, state)
        return state.step

    return {
        f"step {slots}": run,
        f"reading {slots}": lambda: reading(state.cache.kv),
        f"products {slots}": lambda: products(state.cache.kv),
    }


def timed(runs: Parts, rounds: int) -> dict[str, tuple[float, float]]:
    """Returns name -> shortest milliseconds of one of the `STEPS`: clock, processor."""
    for run in runs.values():
        jax.block_until_ready(run())
    best = dict.fromkeys(runs, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = (1000 * took / STEPS for took in seconds(run))
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    return best


def main() -> None:
    """Prints one line a part, and the ratio of every cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="of _shapes.SHAPES")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--slots", default="64,256,1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--stacked", action="store_true", help="one array for all layers"
    )
    args = parser.parse_args()
    cfg, params = random_model(args.model)
    slots = [int(number) for number in args.slots.split(",")]
    runs = parts_alone(cfg, params, args.rows)
    of_steps = params if args.stacked else unstacked(params, cfg=cfg)
    for number in slots:
        runs |= whole_steps(cfg, of_steps, args.rows, number)
    best = timed(runs, args.rounds)
    for name, (wall, cpu) in best.items():
        print(f"{name:<14} {wall:8.1f} ms  {cpu:8.1f} cpu ms", flush=True)
    worst = 0.0
    for number in slots:
        ratios = [_ratios(best, number, clock) for clock in (0, 1)]
        worst = max(worst, ratios[0][0])
        wall, cpu = (f"{one:6.2f} ({other:.2f})" for one, other in ratios)
        print(f"ratio at {number:>5} slots {wall}, of cpu ms {cpu}")
    sys.exit(int(worst > LIMIT))


def _ratios(
    best: dict[str, tuple[float, float]], slots: int, clock: int
) -> tuple[float, float]:
    """Returns a step's time beyond the reading, and beyond the products, over its
    parts'.
    """
    alone = sum([best[part][clock] for part in ("blocks", "logits", "draw")])
    step = best[f"step {slots}"][clock]
    beyond = [step - best[f"{part} {slots}"][clock] for part in ("reading", "products")]
    return beyond[0] / alone, beyond[1] / alone


if __name__ == "__main__":
    main()
