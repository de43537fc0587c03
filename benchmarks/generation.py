"""A sweep's tokens per second, beside transformers' `generate` with a forward hook.

Command: python -m benchmarks.generation --model=smollm2-135m
Measured: the sweep of `--latents` vectors at a middle layer on `--prompts` prompts of
`--prompt` tokens, `--new` tokens each at temperature 1 without top-k or top-p, in
float32 with random weights: ours (`steering.sample_batches`, the fastest of `--rows`
places), and transformers' generate with a forward hook that adds each row's vector, at
the fastest of `--torch_rows` (in a first round: one batch of each, times the batches of
the sweep). Then both take turns, and the shortest time counts.
With `--stop_every=N` every N-th token ends an answer on both sides: then places are
filled again here, and a batch of transformers runs until its longest row ends.
`share` is the time of the blocks', the unembedding's and the draw's products for as
many tokens, measured alone, over the sweep's time. `cpu` is processor time. The sweep's
rate is that of its products with weights alone, each counted once; at a bare large
product's rate, with nothing else to do, it would be `at most` so many times as fast as
transformers.
Expect: three times as many tokens a second as transformers, else the status is 1. That
depends on the machine: see docs/sampling.md. Some 10 minutes on 2 idle cores;
`--latents=8` takes one. On a busy machine set OMP_NUM_THREADS=1 and read processor
time: torch's threads spin while they wait.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks._shapes import SHAPES, block_weights, random_model, torch_model
from benchmarks._timing import product_seconds, seconds
from benchmarks.decode_step import parts_alone, timed
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.parallel import make_mesh
from sae_attr.steering import Plan, Sampler, every_condition, sample_batches

LEAST = 3.0  # times as many tokens a second as transformers


def our_sweep(
    args: argparse.Namespace,
    cfg: LMConfig,
    params: Params,
    rows: int,
    sampling: Sampling,
) -> Callable[[], int]:
    """Returns a function that samples the sweep and counts its tokens."""
    rng = np.random.default_rng(0)
    vectors = {}
    for latent in range(args.latents):
        row_d = rng.standard_normal(cfg.d_model).astype(np.float32)
        vectors[latent] = row_d / np.linalg.norm(row_d)
    prompts = {}
    for number in range(args.prompts):
        prompts[str(number)] = rng.integers(3, cfg.vocab, args.prompt).tolist()
    conditions = every_condition(range(args.latents), [1.0], tokens=[args.tokens])[1:]
    plan = Plan(conditions, tuple(prompts), 1)
    sampler = Sampler(
        params=params,
        prompts=prompts,
        vectors=vectors,
        key=jax.random.key(0),
        cfg=cfg,
        site=Site(cfg.n_layers // 2),
        mesh=make_mesh("data=1"),
        batch_size=rows,
        sampling=sampling,
    )

    def run() -> int:
        tokens = 0
        for batch in sample_batches(sampler, plan.rows):
            tokens += sum([len(row.ids) + row.stopped for row in batch])
        return tokens

    return run


def sweep_operations(args: argparse.Namespace, cfg: LMConfig, tokens: int) -> float:
    """Counts multiplications and additions of the products with weights without which
    there is no sweep of so many tokens.
    """
    answers = args.latents * args.prompts
    above = cfg.n_layers - cfg.n_layers // 2
    # Below the edited layer a prompt is read once; above it once, or once a vector.
    arms = answers if args.tokens == "all" else args.prompts
    prompts = args.prompt * (args.prompts * (cfg.n_layers - above) + arms * above)
    # The last token of an answer is drawn, and not read.
    steps = (tokens - answers) * cfg.n_layers
    weights = (prompts + steps) * block_weights(cfg) + tokens * cfg.d_model * cfg.vocab
    return 2.0 * weights


def torch_batch(
    args: argparse.Namespace, model: Any, rows: int, stop_ids: tuple[int, ...]
) -> Callable[[], int]:
    """Returns a function that generates one batch under a hook and counts its tokens."""
    import torch

    cfg = model.config
    ids = torch.randint(3, cfg.vocab_size, (rows, args.prompt))
    vectors = torch.nn.functional.normalize(torch.randn(rows, cfg.hidden_size), dim=1)
    blocks = (
        model.transformer.h if hasattr(model, "transformer") else model.model.layers
    )
    block = blocks[len(blocks) // 2]

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if args.tokens == "all" or hidden.shape[1] == 1:
            hidden = hidden + vectors[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    options = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": args.new,
        "pad_token_id": 0,
        "eos_token_id": list(stop_ids) or None,
        "use_cache": True,
    }

    def run() -> int:
        handle = block.register_forward_hook(hook)
        try:
            with torch.no_grad():
                mask = torch.ones_like(ids)
                out = model.generate(ids, attention_mask=mask, **options)
        finally:
            handle.remove()
        new = out[:, args.prompt :].numpy()
        stopped = np.isin(new, stop_ids)
        lengths = np.where(stopped.any(1), stopped.argmax(1) + 1, new.shape[1])
        return int(lengths.sum())

    return run


def show_limit(cfg: LMConfig, operations: float, walls: dict[str, float]) -> None:
    """Prints the rate of the sweep's products beside that of one large product of an
    MLP's shape, and how many times as fast as transformers that one would make it.

    Args:
      walls: seconds of each side.
    """
    m, k, n = 2048, cfg.d_model, cfg.d_mlp
    bare = 2 * m * k * n / product_seconds(m, k, n, rounds=30)[0]
    rate = operations / walls["sweep"]
    print(
        f"products of the sweep: {rate / 1e9:.0f} GF/s, {rate / bare:.2f} of a bare "
        f"product's {bare / 1e9:.0f}"
    )
    if "transformers" in walls:
        most = walls["transformers"] * bare / operations
        print(f"with nothing but products at that rate: at most {most:.2f}")


def fastest(
    side: str, sizes: str, sweep_of: Callable[[int], tuple[Callable[[], int], int]]
) -> tuple[int, Callable[[], int], int]:
    """Returns the number of rows with which a side does the sweep fastest, its run, and
    how many such runs make the sweep.

    Args:
      sizes: numbers of rows, between commas.
      sweep_of: gives a run and how many of it make the sweep; the first one compiles.
    """
    best = math.inf, 0, lambda: 0, 0
    for rows in map(int, sizes.split(",")):
        run, times = sweep_of(rows)
        if times == 1:
            run()
        took = times * seconds(run)[0]
        print(f"  {side} at {rows} rows: {took:.1f} s", flush=True)
        best = min(best, (took, rows, run, times), key=lambda one: one[0])
    return best[1:]


def main() -> None:
    """Prints one line a side, the ratio and the share of products."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = {"latents": 100, "prompts": 4, "prompt": 64, "new": 48}
    for name, default in (numbers | {"rounds": 2, "stop_every": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--tokens", default="all", choices=("all", "generated"))
    parser.add_argument("--rows", default="64,100,200")
    parser.add_argument("--torch_rows", default="32,64,100,128")
    args = parser.parse_args()
    cfg, params = random_model(args.model)
    every = args.stop_every
    stop_ids = tuple(range(every - 1, cfg.vocab, every)) if every else ()
    sampling = Sampling(max_new=args.new, stop_ids=stop_ids)
    answers = args.latents * args.prompts
    rows, run, times = fastest(
        "sweep",
        args.rows,
        lambda rows: (our_sweep(args, cfg, params, rows, sampling), 1),
    )
    sides = {"sweep": (run, times)}
    model = torch_model(args.model)
    if model is not None:
        _, torch_run, torch_times = fastest(
            "transformers",
            args.torch_rows,
            lambda rows: (
                torch_batch(args, model, rows, stop_ids),
                math.ceil(answers / rows),
            ),
        )
        sides["transformers"] = torch_run, torch_times
    best = dict.fromkeys(sides, (math.inf, math.inf))
    tokens = dict.fromkeys(sides, 0)
    for _ in range(args.rounds):
        for name, (run, times) in sides.items():
            took = seconds(lambda run=run, name=name: tokens.update({name: run()}))
            best[name] = tuple(map(min, best[name], (s * times for s in took)))  # type: ignore[assignment]
    for name, (wall, cpu) in best.items():
        count = tokens[name] * sides[name][1]
        print(
            f"{name:<14} {wall:8.1f} s  {cpu:8.1f} cpu s  {answers / wall:7.2f} answers/s"
            f"  {count / wall:8.0f} tokens/s",
            flush=True,
        )
    status = 0
    if model is not None:
        ratios = [best["transformers"][i] / best["sweep"][i] for i in (0, 1)]
        print(f"sweep over transformers: {ratios[0]:.2f}, of cpu s {ratios[1]:.2f}")
        status = int(ratios[0] < LEAST)
    operations = sweep_operations(args, cfg, tokens["sweep"])
    show_limit(cfg, operations, {name: wall for name, (wall, _) in best.items()})
    parts = timed(parts_alone(cfg, params, rows), args.rounds + 1)
    for clock, name in enumerate(("wall", "cpu")):
        step = sum([milliseconds[clock] for milliseconds in parts.values()]) / 1000
        share = tokens["sweep"] / rows * step / best["sweep"][clock]
        print(f"share of the steps' products, {name}: {share:.2f}")
    sys.exit(status)


if __name__ == "__main__":
    main()
