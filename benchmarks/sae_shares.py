"""Where the time of training an SAE on a model's activations goes, on SmolLM2-135M's
shape.

Command: python -m benchmarks.sae_shares
Measured, random weights, float32, residual stream after layer 15 of 30, rows of 128
tokens, a BatchTopK SAE of 4,096 latents, 32 of them per token, batches of 1,024 tokens:
* `model`: the forward pass up to the site alone, at the number of rows of a pass that a
  first round found best;
* `masks and copies`: what collecting activations takes beyond it (which tokens count,
  their copies to the host);
* `order`: what shuffled batches take beyond collecting;
* `SAE`: an optimiser step on one batch;
* `whole`: steps of `train_sae` on shuffled batches of the model as it runs, all of the
  above and what is between.
In microseconds of processor time a token over all threads, which other programs change
little; the rate on the clock stands beside. Status 1 where masks, copies and order take
more than 5 % of the whole. About 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._shapes import random_model
from benchmarks.activations import corpus
from sae_attr.activations import (
    ActivationSource,
    batch_function,
    collector,
    inputs,
    live_blocks,
    open_source,
)
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import make_mesh
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import first_state
from sae_attr.sae.update import compiled_step
from sae_attr.text.packed_rows import Packing

SITE, CONTEXT, BATCH, BUFFER = Site(15), 128, 1024, 1 << 13
LATENTS, ACTIVE = 4096, 32
LIMIT = 0.05


class Cost(NamedTuple):
    """Microseconds a token: of processor time over all threads, and on the clock."""

    cpu: float
    wall: float


def cost(run: Callable[[], int], repeats: int = 2) -> Cost:
    """Measures the cheapest of several runs after one that compiles; `run` returns its
    number of tokens.
    """
    run()
    costs = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        spent = time.process_time() - cpu, time.perf_counter() - wall
        costs.append(Cost(*(1e6 * seconds / tokens for seconds in spent)))
    return min(costs)


def model_cost(params: Params, cfg: LMConfig, rows: int) -> Cost:
    """The forward pass up to the site."""
    span = (0, SITE.layer + 1)
    run = jax.jit(lambda p, x: forward(p, x, cfg=cfg, span=span).hidden_btd)
    tokens_bt = np.random.default_rng(0).integers(1, cfg.vocab, (rows, CONTEXT))
    passes = max(1, 32 // rows)

    def passes_run() -> int:
        for _ in range(passes):
            run(params, tokens_bt).block_until_ready()
        return passes * tokens_bt.size

    return cost(passes_run)


def step_cost(x_bd: np.ndarray, cfg: TrainConfig) -> Cost:
    """An optimiser step on one batch."""
    state = first_state(cfg, x_bd, x_bd.mean(0))
    step = compiled_step(cfg, None, state)

    def steps() -> int:
        nonlocal state
        for _ in range(4):
            state, metrics = step(state, x_bd, x_bd)
        jax.block_until_ready((state, metrics))
        return 4 * len(x_bd)

    return cost(steps)


def measure(sizes: list[int]) -> dict[str, Any]:
    """Returns the cost of each part, and the rows of a pass that were best."""
    cfg, params = random_model("smollm2-135m")
    mesh = make_mesh("data=1")
    by_rows = {rows: model_cost(params, cfg, rows) for rows in sizes}
    rows = min(by_rows, key=by_rows.__getitem__)
    file = corpus(1 << 20, cfg.vocab)
    source = open_source(params, file, Packing(CONTEXT), (SITE,), cfg=cfg, mesh=mesh)
    model = {"cfg": cfg, "mesh": mesh}
    collect = collector(params, source, **model, batch_rows=rows)
    index = np.arange(BUFFER // CONTEXT)
    stream = live_blocks(params, source, **model, batch_rows=rows, buffer_tokens=BUFFER)
    batches = batch_function(stream, batch_size=BATCH)
    sae = TrainConfig(
        d_in=cfg.d_model,
        n_latents=LATENTS,
        steps=2 * BUFFER // BATCH,
        objective="batch_topk",
        k=ACTIVE,
    )
    return {
        "rows": rows,
        "by_rows": {rows: c._asdict() for rows, c in by_rows.items()},
        "model": by_rows[rows],
        "collected": cost(lambda: len(collect(index).ids_k2)),
        "shuffled": shuffled_cost(batches),
        "SAE": step_cost(np.asarray(inputs(batches, SITE)(0)), sae),
        "whole": whole_cost(params, source, sae, rows, model),
    }


def shuffled_cost(batches: Callable[[int], Any]) -> Cost:
    """Batches of two blocks, of which each run computes new ones."""
    step = 0

    def run() -> int:
        nonlocal step
        count = 2 * BUFFER // BATCH
        for _ in range(count):
            batches(step)
            step += 1
        return count * BATCH

    return cost(run)


def whole_cost(
    params: Params,
    source: ActivationSource,
    sae: TrainConfig,
    rows: int,
    model: dict[str, Any],
) -> Cost:
    """Steps of training, as `experiments.train_sae` does them: a long run's less a short
    one's, since both compile and begin.
    """

    def run(steps: int) -> Cost:
        stream = live_blocks(
            params, source, **model, batch_rows=rows, buffer_tokens=BUFFER
        )
        batch_of = inputs(batch_function(stream, batch_size=BATCH), SITE)
        wall, cpu = time.perf_counter(), time.process_time()
        train_sae(replace(sae, steps=steps), batch_of, progress=False)
        return Cost(time.process_time() - cpu, time.perf_counter() - wall)

    short, long = run(sae.steps), run(4 * sae.steps)
    tokens = 3 * sae.steps * BATCH
    return Cost(*(1e6 * (a - b) / tokens for a, b in zip(long, short, strict=True)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    found = measure(args.rows)
    whole, model = found["whole"], found["model"]
    collected, shuffled = found["collected"], found["shuffled"]
    parts = {
        f"model, {found['rows']} rows a pass": model.cpu,
        "masks and copies": collected.cpu - model.cpu,
        "order": shuffled.cpu - collected.cpu,
        "SAE": found["SAE"].cpu,
    }
    parts["the rest"] = whole.cpu - sum(parts.values())
    for name, cpu in parts.items():
        print(f"{name:<24} {cpu:8.1f} µs a token  {cpu / whole.cpu:6.1%}")
    print(
        f"{'whole':<24} {whole.cpu:8.1f} µs a token, {1e6 / whole.wall:.0f} tokens/s on "
        "the clock"
    )
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1))
    overhead = shuffled.cpu - model.cpu
    sys.exit(int(overhead > LIMIT * whole.cpu))


if __name__ == "__main__":
    main()
