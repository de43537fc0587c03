"""Scoring a whole dictionary through the moment, against scoring it token by token.

Command: python -m benchmarks.moment
Measured: the published study's work, 148 pairs × 2 completions × 256 tokens at d = 768,
  for dictionaries of 2^17 and 2^21
random unit rows in float32. `moment`: adding up S and G over all tokens, once. `score`:
`score_moment`, with its product, row sums and norms. `token-wise`: `attribute` on two
slices of tokens; where twice the tokens take twice the time
it is scaled to all of them. `share`: the rate of `score` over that of the bare product
[chunk, d] × [d, d] at the same precision, measured between the repeats.
Expect: share at least 0.85; token-wise about a hundred times slower than moment and
score together, since it needs 4·n·d operations a token where score needs 2·n·d² in all.
Needs 9 GB; some 5 minutes on 2 idle cores (--log2_rows=17: one).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._timing import seconds
from sae_attr.attribution.scores import Moment, attribute, moment, score_moment

PAIRS, TOKENS, D = 148, 256, 768
ALL_TOKENS = PAIRS * 2 * TOKENS
BATCH = 2048  # tokens that are added to the moment at a time
FILL = 2**14  # rows that are drawn at a time


def unit_rows_in_place(n: int) -> jax.Array:
    """Draws random unit rows `[n, d]` into one buffer piece by piece: host memory
    beyond it is one piece.
    """

    @partial(jax.jit, donate_argnums=0)
    def fill(buffer_nd: jax.Array, i: jax.Array) -> jax.Array:
        rows = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (FILL, D))
        rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        return jax.lax.dynamic_update_slice_in_dim(buffer_nd, rows, i * FILL, 0)

    buffer_nd = jnp.zeros((n, D))
    for i in range(n // FILL):
        buffer_nd = fill(buffer_nd, jnp.asarray(i))
    return jax.block_until_ready(buffer_nd)


def tokens(count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws random activations and gradients `[1, count, d]` and their weights."""
    keys = jax.random.split(jax.random.key(1))
    acts, grads = (jax.random.normal(key, (1, count, D)) for key in keys)
    return acts, grads, jnp.full((1, count), 1 / count)


def temporary_bytes(program: Any) -> int:
    """Returns the memory that a compiled program needs beside its arguments."""
    memory = program.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def measure_moment(repeats: int) -> dict[str, float]:
    """Times adding all tokens to a moment, and measures the memory of one step, which
    no number of tokens changes.
    """
    acts, grads, weights = tokens(BATCH)
    add = jax.jit(lambda m, a, g, w: m + moment(a, g, w))
    zero = Moment(jnp.zeros((D, D)), jnp.zeros(D))
    step = add.lower(zero, acts, grads, weights).compile()
    step(zero, acts, grads, weights)

    def every_token() -> Moment:
        total = zero
        for _ in range(ALL_TOKENS // BATCH):
            total = step(total, acts, grads, weights)
        return total

    best = min(seconds(every_token)[0] for _ in range(repeats))
    return {"seconds": best, "temporary_bytes": temporary_bytes(step)}


def best_times(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Times every run by turns; returns the least seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            # The bare product takes one chunk, and is short: four calls a turn.
            calls = 4 if name == "bare" else 1
            times[name] += [seconds(run)[0] for _ in range(calls)]
    return {name: min(values) for name, values in times.items()}


def measure_scores(
    dec_nd: jax.Array, chunk: int, slices: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """Measures one row of the table: moment scoring, the bare product and token-wise
    scoring, by turns.
    """
    mean_d = jnp.full(D, 0.1)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    short, long = (tokens(count) for count in slices)
    total = jax.jit(moment)(*short)
    score = (
        jax.jit(lambda m, dec: score_moment(m, mean_d, dec, chunk=chunk))
        .lower(total, dec_nd)
        .compile()
    )
    bare, rows_cd = jax.jit(product), dec_nd[:chunk] + 0
    token_wise = jax.jit(lambda dec, a, g, w: attribute(a, g, w, dec, mean_d)[0])
    by_moment = score(total, dec_nd)
    # Compiles, and is the other way to the same number.
    by_token = token_wise(dec_nd, *short)
    jax.block_until_ready([token_wise(dec_nd, *long), bare(rows_cd, total.s_dd)])
    best = best_times(
        {
            "bare": lambda: bare(rows_cd, total.s_dd),
            "score": lambda: score(total, dec_nd),
            "short": lambda: token_wise(dec_nd, *short),
            "long": lambda: token_wise(dec_nd, *long),
        },
        repeats,
    )
    difference = jnp.linalg.norm(by_token - by_moment) / jnp.linalg.norm(by_moment)
    memory = temporary_bytes(score)
    return {
        **rates_of(best, len(dec_nd), chunk, slices),
        "temporary_bytes": memory,
        "difference": float(difference),
    }


def rates_of(
    best: dict[str, float], n: int, chunk: int, slices: tuple[int, int]
) -> dict[str, Any]:
    """Returns rates and shares of the times of `measure_scores`."""
    operations = 2 * n * D**2
    bare_seconds = best["bare"] * n / chunk
    short, long = slices
    return {
        "n": n,
        "chunk": chunk,
        "score_seconds": best["score"],
        "share": bare_seconds / best["score"],
        "score_flops_per_s": operations / best["score"],
        "bare_flops_per_s": operations / bare_seconds,
        # Scaled from the longer slice; a `linearity` near 1 says that this may be done.
        "token_wise_seconds": best["long"] * ALL_TOKENS / long,
        "linearity": best["long"] / best["short"] * short / long,
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--log2_rows",
        type=int,
        nargs="+",
        default=[17, 21],
        help="dictionary sizes as powers of two",
    )
    parser.add_argument(
        "--chunk", type=int, default=8192, help="rows that score_moment takes at a time"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="repeats for the smallest dictionary, at least 2 for others",
    )
    parser.add_argument("--out", help="write the numbers here as JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Prints the table, the smallest dictionary first."""
    args = parse()
    gather = measure_moment(args.repeats)
    print(f"{PAIRS} pairs x 2 x {TOKENS} = {ALL_TOKENS} tokens, d = {D}, float32")
    print(
        f"moment of all tokens: {gather['seconds']:.2f} s, temporaries "
        f"{gather['temporary_bytes'] / 2**20:.0f} MB"
    )
    print(
        f"{'n':>8} {'score':>9} {'GF/s':>6} {'bare GF/s':>9} {'share':>6} {'extra':>7} "
        f"{'token-wise':>11} {'linear':>7} {'speed-up':>8} {'differ':>8}"
    )
    rows = []
    for power in sorted(args.log2_rows):
        slices = (256, 512) if power < 20 else (64, 128)
        row = measure_scores(
            unit_rows_in_place(2**power),
            args.chunk,
            slices,
            args.repeats if power < 20 else 2,
        )
        row["speed_up"] = row["token_wise_seconds"] / (
            row["score_seconds"] + gather["seconds"]
        )
        rows.append(row)
        print(
            f"{f'2^{power}':>8} {row['score_seconds']:7.2f} s "
            f"{row['score_flops_per_s'] / 1e9:6.0f} "
            f"{row['bare_flops_per_s'] / 1e9:9.0f} {row['share']:6.2f} "
            f"{row['temporary_bytes'] / 2**20:4.0f} MB "
            f"{row['token_wise_seconds']:9.0f} s {row['linearity']:7.2f} "
            f"{row['speed_up']:8.0f} {row['difference']:8.1e}",
            flush=True,
        )
    if args.out:
        with open(args.out, "w") as file:
            json.dump(
                {"tokens": ALL_TOKENS, "d": D, "moment": gather, "rows": rows},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
