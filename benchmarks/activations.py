"""Shuffled activations for training: what the order costs, and how good it is.

Command: python -m benchmarks.activations
Measured, d 768, float32, rows of 128 tokens, batches of 4096, GPT-2-small shape with
random weights:
* a cache on disk: tokens a second of shuffled batches, beside reading the same files in
  their order with np.load; the share of that time that goes into putting tokens in
  order (the rest is reading), and the same beside the encoder product of a step of
  training; the peak of memory;
* the model as it runs: tokens a second of shuffled batches of layer 6, beside the
  forward pass alone;
* the order: of all pairs of tokens in a batch, the share that comes from one document,
  beside the share if every token were drawn anew from the whole corpus, and beside
  batches in the order of the corpus.
The cache is written a moment before it is read, so that its files lie in the system's
memory: the hardest case for the order, since a disk would only make reading slower.
About 3 minutes on 2 cores.
Expect: shuffled at half the rate of reading in order or better (both at the speed of
memory), the order below 2 % of the time when the model runs or an SAE of 24576 latents
is trained on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._shapes import GPT2, random_model
from sae_attr.activations import (
    ActivationBlock,
    BlockStream,
    Masks,
    batch_function,
    cached_blocks,
    collector,
    live_blocks,
    open_source,
    read_index,
    write_cache,
)
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params
from sae_attr.lm.params import init_params
from sae_attr.parallel import make_mesh
from sae_attr.text.packed_rows import Packing, documents_at
from sae_attr.text.token_file import TokenFile

CONTEXT, BATCH, BOS = 128, 4096, 0
ENOUGH = (
    0.35  # of the rate of reading in order, below which the program ends with status 1
)


def corpus(tokens: int, vocab: int) -> TokenFile:
    """Draws random ids in documents of some 400 tokens, as a token file in memory."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5.7, 0.8, tokens // 100).astype(np.int64) + 2
    starts_s = np.concatenate([[0], np.cumsum(lengths)])
    starts_s = starts_s[: np.searchsorted(starts_s, tokens) + 1]
    ids_k = rng.integers(1, vocab, starts_s[-1]).astype(np.uint16)
    ids_k[starts_s[:-1]] = BOS
    meta = {
        "vocab_size": vocab,
        "bos_id": BOS,
        "eos_id": None,
        "special_ids": [BOS],
        "prepend_bos": True,
    }
    meta |= {
        "append_eos": False,
        "sha256": "",
        "tokens": len(ids_k),
        "documents": len(starts_s) - 1,
    }
    return TokenFile(ids_k, starts_s, meta)


def timed(blocks: BlockStream, seconds: list[float]) -> BlockStream:
    """Returns the same blocks; the time of every reading is noted."""

    def read(g: int) -> ActivationBlock:
        start = time.perf_counter()
        block = blocks.read(g)
        seconds.append(time.perf_counter() - start)
        return block

    return replace(blocks, read=read)


def rate(batches: Callable[[int], ActivationBlock], steps: int) -> tuple[float, float]:
    """Returns tokens a second and seconds of so many batches."""
    start = time.perf_counter()
    for step in range(steps):
        batches(step)
    seconds = time.perf_counter() - start
    return steps * BATCH / seconds, seconds


def in_order(folder: Path, site: Site) -> float:
    """Returns tokens a second of loading every array of the site whole, in the order
    of the shards.
    """
    start, tokens = time.perf_counter(), 0
    for path in sorted(folder.glob("shard-*")):
        tokens += len(np.load(path / f"layer{site.layer}%2E{site.point}.npy"))
    return tokens / (time.perf_counter() - start)


def encoder_ms(d: int) -> float:
    """Returns milliseconds of the product [4096, d] × [d, 24576], the least that a
    step of training has to do.
    """
    product = jax.jit(lambda x, w: (x @ w).sum())
    x, w = np.ones((BATCH, d), np.float32), jax.numpy.ones((d, 24576))
    product(x, w).block_until_ready()
    start = time.perf_counter()
    product(x, w).block_until_ready()
    return (time.perf_counter() - start) * 1e3


def measure_cache(
    params: Params, cfg: LMConfig, tokens: int, buffer: int
) -> dict[str, Any]:
    """Measures a cache of embeddings, which run no layer: its time is that of reading."""
    site, mesh = Site(0, "resid_pre"), make_mesh("data=1")
    source = open_source(
        params, corpus(tokens, cfg.vocab), Packing(CONTEXT), (site,), cfg=cfg, mesh=mesh
    )
    found: dict[str, Any] = {"buffer_tokens": buffer}
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        write_cache(
            name,
            params,
            source,
            cfg=cfg,
            mesh=mesh,
            lm="random",
            shard_tokens=1 << 14,
            batch_rows=64,
        )
        index = read_index(name)
        found |= {"tokens": index["counts"]["kept"], "shards": len(index["shards"])}
        found["written_per_s"] = found["tokens"] / (time.perf_counter() - start)
        seconds: list[float] = []
        batches = batch_function(
            timed(cached_blocks(name, buffer_tokens=buffer), seconds), batch_size=BATCH
        )
        steps = found["tokens"] // BATCH
        rates = []
        for _ in range(3):
            plain = in_order(Path(name), site)
            seconds.clear()
            shuffled, wall = rate(batches, steps)
            rates.append((shuffled, plain, 1 - sum(seconds) / wall))
        shuffled, plain, share = max(rates)
        found |= {
            "shuffled_per_s": shuffled,
            "in_order_per_s": plain,
            "ordering_share": share,
        }
        tracemalloc.start()
        rate(batches, steps)
        found["peak_mib"] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        found |= {
            "order_ms": share / shuffled * BATCH * 1e3,
            "block_mib": buffer * cfg.d_model * 4 / 2**20,
        }
        found["encoder_ms"] = encoder_ms(cfg.d_model)
    return found


def measure_live(
    params: Params, cfg: LMConfig, buffer: int, rows: int
) -> dict[str, Any]:
    """Measures batches from the model while it runs, at layer 6 of 12."""
    mesh = make_mesh("data=1")
    source = open_source(
        params,
        corpus(1 << 20, cfg.vocab),
        Packing(CONTEXT),
        (Site(6),),
        cfg=cfg,
        mesh=mesh,
    )
    collect = collector(params, source, cfg=cfg, mesh=mesh, batch_rows=rows)
    collect(range(rows))  # compiles
    start = time.perf_counter()
    forward = len(collect(range(buffer // CONTEXT)).ids_k2) / (
        time.perf_counter() - start
    )
    seconds: list[float] = []
    blocks = live_blocks(
        params, source, cfg=cfg, mesh=mesh, buffer_tokens=buffer, batch_rows=rows
    )
    batches = batch_function(timed(blocks, seconds), batch_size=BATCH)
    rate(batches, 1)  # compiles
    seconds.clear()
    shuffled, wall = rate(lambda step: batches(step + 1), 2 * buffer // BATCH)
    return {
        "shuffled_per_s": shuffled,
        "forward_per_s": forward,
        "ordering_share": 1 - sum(seconds) / wall,
    }


def measure_order(file: TokenFile, buffer: int) -> dict[str, float]:
    """Measures, for several orders, the share of the pairs of a batch that come from
    one document; a model of width 16 will do.
    """
    cfg = config_from_hf(GPT2 | {"n_embd": 16, "n_head": 2, "n_layer": 1})
    mesh = make_mesh("data=1")
    site = Site(0, "resid_pre")
    params, packing = init_params(cfg, jax.random.key(0)), Packing(CONTEXT)
    source = open_source(
        params, file, packing, (site,), cfg=cfg, mesh=mesh, masks=Masks(outlier=None)
    )
    blocks = live_blocks(
        params, source, cfg=cfg, mesh=mesh, buffer_tokens=buffer, batch_rows=64
    )
    stream = batch_function(blocks, batch_size=BATCH)
    document_rt = np.stack([documents_at(file, row, packing) for row in source.rows])
    sizes = np.bincount(document_rt[document_rt >= 0])
    in_order = document_rt[document_rt >= 0]

    def share(batch: Callable[[int], np.ndarray]) -> float:
        counts = [np.bincount(batch(step)) for step in range(20)]
        return float(
            np.mean([(c * (c - 1)).sum() / (BATCH * (BATCH - 1)) for c in counts])
        )

    return {
        "every token anew": float(((sizes / sizes.sum()) ** 2).sum()),
        f"two levels, {buffer // CONTEXT} rows a block": share(
            lambda step: document_rt[tuple(stream(step).ids_k2.T)]
        ),
        "order of the corpus": share(
            lambda step: in_order[step * BATCH : (step + 1) * BATCH]
        ),
    }


def show(found: dict[str, Any]) -> None:
    """Prints the tables."""
    cache, live = found["cache"], found["live"]
    print(
        f"cache: {cache['tokens']} tokens in {cache['shards']} shards, "
        f"{cache['buffer_tokens']} in memory"
    )
    print(
        f"  written          {cache['written_per_s']:12.0f} tokens/s (embeddings: no "
        "layer is run)"
    )
    print(f"  in order         {cache['in_order_per_s']:12.0f} tokens/s, np.load")
    print(
        f"  shuffled         {cache['shuffled_per_s']:12.0f} tokens/s, "
        f"{cache['ordering_share']:.0%} of the time for the order"
    )
    print(
        f"  the order        {cache['order_ms']:12.1f} ms a batch; an encoder of 24576 "
        f"{cache['encoder_ms']:.0f} ms"
    )
    print(
        f"  memory           {cache['peak_mib']:12.0f} MiB at the peak; a block has "
        f"{cache['block_mib']:.0f}"
    )
    print("model as it runs, layer 6 of 12:")
    print(f"  forward alone    {live['forward_per_s']:12.0f} tokens/s")
    print(
        f"  shuffled         {live['shuffled_per_s']:12.0f} tokens/s, "
        f"{live['ordering_share']:.1%} of the time for the order"
    )
    print(f"pairs of a batch of {BATCH} from one document:")
    for name, share in found["order"].items():
        print(f"  {name:<28} {share:8.4%}")


def main() -> None:
    """Prints the tables; status 1 if the order makes reading much slower."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, default=1 << 18, help="of the cache: 3 KiB each"
    )
    parser.add_argument("--buffer", type=int, default=1 << 16, help="tokens in memory")
    parser.add_argument(
        "--live_buffer", type=int, default=1 << 14, help="the same where the model runs"
    )
    parser.add_argument("--rows", type=int, default=16, help="rows of one forward pass")
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    cfg, params = random_model("gpt2-small")
    found = {"cache": measure_cache(params, cfg, args.tokens, args.buffer)}
    found["live"] = measure_live(params, cfg, args.live_buffer, args.rows)
    found["order"] = measure_order(corpus(1 << 21, cfg.vocab), args.buffer)
    show(found)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1))
    sys.exit(
        int(
            found["cache"]["shuffled_per_s"] < ENOUGH * found["cache"]["in_order_per_s"]
        )
    )


if __name__ == "__main__":
    main()
