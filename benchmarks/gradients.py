"""Gradients at a site, beside PyTorch's autograd on the same weights.

Command: python -m benchmarks.gradients --shape=smollm2-135m --torch_python=<an
  interpreter with torch and transformers>
Measured: milliseconds a row of `act_and_grad` at a middle layer (6 of 12 of GPT-2-small's
shape, the default; 15 of 30 of SmolLM2-135M's), random weights, float32, rows of 128 +
128 tokens, against three peers: `plain`, written for speed in torch functions (it too
stops at the site, takes no parameter gradients and unembeds the completion alone);
`hooked`, transformers' own model, frozen, with a hook at the site; `unfrozen`, the same
with parameter gradients. Each side runs at the
batch size that a first round found best for it, then all by turns, and the shortest
time counts. `share` is a side's rate over that of its own library's product [1024, d] ×
[d, f], the rate being the least operations that any such gradient needs over the time.
Expect: as fast as `plain` where both libraries' products run at one rate (1.0 to 1.2
times), since products are most of either side; where JAX's products are faster, that much
less of the rate comes through: 1.8 times `plain` and 2.0 times `hooked` on
SmolLM2-135M's shape at 484 GF/s of products against 217. Gradients agree to 1e-5. `cpu ms` is
processor time over all threads, which moves less than the clock when other programs
run. Some 5 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._peer import Peer
from benchmarks._shapes import SHAPES, random_model
from benchmarks._timing import product_seconds, seconds
from benchmarks.operations import least_operations
from sae_attr.attribution.gradients import act_and_grad
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.text.batching import RowBatch

PROMPT, COMPLETION = 128, 128
ROWS_OF_PRODUCT = 1024
AGREE = 1e-4
PEERS = ("plain", "hooked", "unfrozen")

Run = Callable[[int], tuple[float, float]]
"""Batch size -> seconds of one call: on the clock, and of processor time over all
threads.
"""


def rows_of(tokens_bt: np.ndarray) -> RowBatch:
    """Returns rows without padding whose last `COMPLETION` tokens are the completion."""
    b, t = tokens_bt.shape
    target_bc = np.tile(np.arange(PROMPT, t, dtype=np.int32), (b, 1))
    completion_bt = np.broadcast_to(np.arange(t) >= PROMPT, (b, t))
    return RowBatch(
        tokens_bt,
        np.ones((b, t), bool),
        completion_bt,
        target_bc,
        np.ones(target_bc.shape, bool),
    )


def write_weights(params: Params, folder: Path) -> None:
    """Writes weights.npz for the torch side: every array under the name that it uses."""
    arrays = {
        f"{name}.{leaf}": w
        for name, layer in params["blocks"].items()
        for leaf, w in layer.items()
    }
    arrays["embed"] = params["embed"]["table"]
    if "pos" in params:
        arrays["pos"] = params["pos"]["table"]
    arrays |= {f"final.{leaf}": w for leaf, w in params["final_norm"].items()}
    named: Any = {name: np.asarray(w) for name, w in arrays.items()}
    np.savez(folder / "weights.npz", **named)


def best_batches(runs: dict[str, Run], sizes: list[int]) -> dict[str, int]:
    """Returns per side the batch size with the least time a row; every size is run once
    unmeasured and twice measured.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in runs}
    for size in sizes:
        for name, run in runs.items():
            run(size)
            found[name][size] = min(run(size)[0] for _ in range(2)) / size
    for name, times in found.items():
        print(
            f"{name:<9}"
            + "".join(f"  {size}: {t * 1e3:.0f}" for size, t in times.items())
            + "  ms/row by batch size",
            flush=True,
        )
    return {name: min(times, key=times.__getitem__) for name, times in found.items()}


@dataclass(frozen=True)
class Times:
    """Measured calls.

    Args:
      sizes: side -> its best batch size.
      calls: side -> seconds of each call, on the clock and of the processor.
      products: library -> seconds of its product.
    """

    sizes: dict[str, int]
    calls: dict[str, list[tuple[float, float]]]
    products: dict[str, list[float]]


def time_sides(
    runs: dict[str, Run], peer: Peer, args: argparse.Namespace, cfg: LMConfig
) -> Times:
    """Times all sides and both products by turns, so that another program which slows
    the machine slows every side.
    """
    times = Times(
        best_batches(runs, args.batch),
        {name: [] for name in runs},
        {"jax": [], "torch": []},
    )
    shape = [ROWS_OF_PRODUCT, cfg.d_model, cfg.d_mlp]
    for _ in range(args.repeats):
        times.products["jax"].append(product_seconds(*shape)[0])
        times.products["torch"].append(peer.ask(side="product", shape=shape)["seconds"])
        for name, run in runs.items():
            times.calls[name].append(run(times.sizes[name]))
    return times


def row_of_side(
    name: str, times: Times, rates: dict[str, float], least: float
) -> dict[str, Any]:
    """Returns a side's best seconds a row, its rate, and the share of its library's
    product.
    """
    size = times.sizes[name]
    wall, cpu = np.array(times.calls[name]).T / size
    library = "jax" if name == "sae_attr" else "torch"
    rate = least / wall.min()
    return {
        "batch": size,
        "seconds": wall.min(),
        "cpu_seconds": cpu.min(),
        "all": wall.tolist(),
        "flops_per_s": rate,
        "share": rate / rates[library],
    }


def asked(peer: Peer, side: str, rows: int) -> tuple[float, float]:
    """Returns the seconds of a peer's call, on the clock and of processor time."""
    answer = peer.ask(side=side, rows=rows)
    return answer["seconds"], answer["cpu_seconds"]


def difference(peer: Peer, name: str, ours: np.ndarray, folder: Path) -> float:
    """Returns the relative distance of our gradients to a peer's on the same rows."""
    peer.ask(side=name, rows=len(ours), save="grads.npy")
    other = np.load(folder / "grads.npy")
    return float(np.linalg.norm(ours - other) / np.linalg.norm(other))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures all sides; returns per side seconds a row, rate, share of its library's
    product and difference to ours.
    """
    cfg, params = random_model(args.shape)
    site = Site(cfg.n_layers // 2)
    shape = (max(args.batch), PROMPT + COMPLETION)
    tokens_bt = np.random.default_rng(0).integers(0, cfg.vocab, shape, dtype=np.int32)
    write_weights(params, folder)
    np.save(folder / "tokens.npy", tokens_bt)
    batches = {size: rows_of(tokens_bt[:size]) for size in args.batch}
    grad = jax.jit(
        lambda p, batch: act_and_grad(p, batch, cfg=cfg, sites=(site,)).grads[site]
    )
    (folder / "shape.json").write_text(json.dumps(SHAPES[args.shape]))
    peer = Peer(
        args.torch_python,
        "_torch_gradients.py",
        *(folder, args.threads, PROMPT, site.layer),
        threads=args.threads,
        needs="torch and transformers",
    )
    runs: dict[str, Run] = {
        "sae_attr": lambda size: seconds(lambda: grad(params, batches[size]))
    }
    for name in args.peers:
        runs[name] = partial(asked, peer, name)
    times = time_sides(runs, peer, args, cfg)
    least = least_operations(cfg, site, 1, PROMPT, COMPLETION)
    product = 2 * ROWS_OF_PRODUCT * cfg.d_model * cfg.d_mlp
    rates = {name: product / min(values) for name, values in times.products.items()}
    sides = {name: row_of_side(name, times, rates, least) for name in runs}
    ours = np.asarray(grad(params, batches[args.batch[0]]))
    for name in args.peers:
        sides[name]["difference"] = difference(peer, name, ours, folder)
    peer.close()
    return {
        "torch": peer.versions["torch"],
        "product_flops_per_s": rates,
        "least_operations": least,
        "sides": sides,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    jax_rate, torch_rate = (
        found["product_flops_per_s"][name] / 1e9 for name in ("jax", "torch")
    )
    print(
        f"plain products: jax {jax_rate:.0f} GF/s, torch {found['torch']} "
        f"{torch_rate:.0f} GF/s"
    )
    print(
        f"{'side':<9} {'batch':>5} {'ms/row':>7} {'cpu ms':>7} {'GF/s':>5} "
        f"{'share':>6} {'ours is faster':>14} {'differ':>8}"
    )
    ours = found["sides"]["sae_attr"]["seconds"]
    for name, row in found["sides"].items():
        differ = f"{row['difference']:8.1e}" if "difference" in row else ""
        print(
            f"{name:<9} {row['batch']:5d} {row['seconds'] * 1e3:7.0f} "
            f"{row['cpu_seconds'] * 1e3:7.0f} "
            f"{row['flops_per_s'] / 1e9:5.0f} {row['share']:6.2f} "
            f"{row['seconds'] / ours:13.2f}x {differ}"
        )


def main() -> None:
    """Prints the table and ends with status 1 if a side's gradients are others than
    ours.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch_python",
        default=sys.executable,
        help="interpreter with torch and transformers",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="threads of torch; give JAX as many cores (taskset)",
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    show(found)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(found, file, indent=1)
    sys.exit(
        int(max(row.get("difference", 0.0) for row in found["sides"].values()) > AGREE)
    )


if __name__ == "__main__":
    main()
