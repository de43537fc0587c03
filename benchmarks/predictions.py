"""What a whole study costs at least on other machines, and what limits each stage.

Command: python -m benchmarks.predictions
Hardware: any; it computes and measures nothing.
Predicted: the post's first case study with a dictionary of 2,097,152 latents: 35 pairs of
  100 + 300 tokens, ā over 1,000,000 tokens, firing rates over 100,000, then (100 + 100 +
  100) latents × 2 directions × 44 prompts × 5 samples and the search of 6 strengths on 20
  prompts, of 300 new tokens each. The post's model is not public: a 7B and a 70B shape
  stand for it, in bfloat16, sites in the middle. Seconds are operations, bytes of memory,
  of disk and of links over the rates that makers state, the largest of the four; real
  runs take two to four times as long. Formulas: docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

LATENTS = 2**21
PAIRS, PROMPT, COMPLETION = 35, 100, 300
CORPUS, FIRING = 1_000_000, 100_000
STEERED = (300 * 2 * 44 * 5) + (300 * 2 * 6 * 20)  # completions: effects and strengths
PAIR_SAMPLES = 70 * 16  # two prompts sampled for each that gives a pair
ROWS = 512  # completions that a device samples at a time, where they fit
DISK = 3e9  # bytes a second, of one host's drive


@dataclass(frozen=True)
class Shape:
    """A language model of bfloat16 weights.

    Args:
      layers, d, mlp, heads, kv_heads, head, vocab: sizes; `head` is a head's width.
    """

    name: str
    layers: int
    d: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocab: int

    @property
    def block(self) -> int:
        """Numbers in the kernels of one layer."""
        attention = 2 * self.d * self.head * (self.heads + self.kv_heads)
        return attention + 3 * self.d * self.mlp

    @property
    def weights(self) -> int:
        """Numbers in all layers, embedding and head."""
        return self.layers * self.block + 2 * self.vocab * self.d

    @property
    def cache(self) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head * 2


@dataclass(frozen=True)
class Machine:
    """Devices, and how they are used.

    Args:
      flops, flops32: operations a second of one, in bfloat16 and in full float32.
      memory, bandwidth: bytes of one, and bytes a second.
      link: bytes a second that one sends to others.
      hosts: with a drive each.
    """

    name: str
    devices: int
    flops: float
    flops32: float
    memory: float
    bandwidth: float
    link: float
    hosts: int = 1


@dataclass(frozen=True)
class Cost:
    """What one stage costs on one device, and the seconds that each part takes at least."""

    stage: str
    operations: float
    bytes: float
    collective_bytes: float
    seconds: float
    limit: str


MODELS = (
    Shape("7B", 28, 3584, 18944, 28, 4, 128, 152064),
    Shape("70B", 80, 8192, 28672, 64, 8, 128, 128256),
)
H200 = (989e12, 67e12, 141e9, 4.8e12, 450e9)
V5P = (459e12, 76e12, 95e9, 2.765e12, 600e9)  # float32 as six bfloat16 products
MACHINES = (
    Machine("one H200", 1, *H200),
    Machine("eight H200", 8, *H200),
    Machine("v5p-64 (32 chips)", 32, *V5P, hosts=8),
)


def parts(model: Shape, machine: Machine) -> int:
    """Returns the smallest model axis whose part of the weights, and of the keys and
    values of a batch, fits a device with a tenth to spare; 0 where none does.
    """
    held = 2 * model.weights + ROWS * (PROMPT + COMPLETION) * model.cache
    axis = 1
    while axis <= min(machine.devices, model.kv_heads):
        if held / axis < 0.9 * machine.memory:
            return axis
        axis *= 2
    return 0


def costs(model: Shape, machine: Machine) -> list[Cost]:
    """Returns the cost of every stage; none where the model does not fit."""
    axis = parts(model, machine)
    if not axis:
        return []
    data = machine.devices // axis
    made = []
    for stage, rate, operations, size, linked, disk in _stages(model, axis, data):
        # An all-reduce over a ring sends each byte almost twice.
        sent = linked * 2 * (axis - 1) / axis
        seconds = {
            "products": operations / getattr(machine, rate),
            "memory": size / machine.bandwidth,
            "links": sent / machine.link,
            "disk": disk / (DISK * machine.hosts),
        }
        limit = max(seconds, key=lambda name: seconds[name])
        made.append(Cost(stage, operations, size, linked, seconds[limit], limit))
    return made


def _stages(
    model: Shape, axis: int, data: int
) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Yields (stage, rate, operations, bytes, collective bytes, bytes of the disk), all
    but the last of one device.
    """
    devices = axis * data
    half = model.layers // 2
    stream = 4 * model.d  # the residual stream of a token
    all_reduces = 2 if axis > 1 else 0
    weights = 2 * model.weights / axis

    yield "read weights", "flops", 0, weights, 0, 2 * model.weights
    tokens = PAIR_SAMPLES * COMPLETION
    yield "sample pairs", *_sampling(model, axis, data, tokens), 0
    tokens = CORPUS / data
    ops = 2 * model.block * half * CORPUS / devices
    linked = all_reduces * half * stream * tokens
    yield "mean of the corpus", "flops", ops, weights / 2, linked, 0
    tokens = 2 * PAIRS * (PROMPT + COMPLETION)
    layers = model.layers + half
    head = 4 * COMPLETION / (PROMPT + COMPLETION) * model.vocab * model.d
    ops = tokens * (2 * model.block * layers + head) / devices
    linked = all_reduces * layers * stream * tokens / data
    yield "gradients of pairs", "flops", ops, 2 * weights, linked, 0
    row = 2 * LATENTS * model.d
    ops = 2 * LATENTS * model.d**2 / devices
    yield "scores of all latents", "flops32", ops, 2 * row / devices, 0, row
    ops = 2 * LATENTS * model.d * FIRING / devices
    yield "firing rates", "flops", ops, row / devices * FIRING / 4096, 0, row
    yield "steering", *_sampling(model, axis, data, STEERED * COMPLETION), 0


def _sampling(
    model: Shape, axis: int, data: int, tokens: float
) -> tuple[str, float, float, float]:
    """Returns (rate, operations, bytes, collective bytes) of sampling on one device."""
    steps = math.ceil(tokens / (ROWS * data))
    operations = steps * 2 * ROWS * model.weights / axis
    length = PROMPT + COMPLETION / 2
    size = 2 * model.weights + ROWS * length * model.cache
    linked = 2 * model.layers * 4 * model.d * ROWS if axis > 1 else 0
    return "flops", operations, steps * size / axis, steps * linked


def shown(seconds: float) -> str:
    """Returns a time with few digits."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Prints a table for every model and machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    rows = []
    for model in MODELS:
        for machine in MACHINES:
            axis = parts(model, machine)
            if not axis:
                print(
                    f"\n{model.name} on {machine.name}: {2 * model.weights / 1e9:.0f} GB "
                    f"of weights, and keys and values of {ROWS} completions, do not fit "
                    f"{machine.devices} × {machine.memory / 1e9:.0f} GB"
                )
                continue
            print(f"\n{model.name} on {machine.name}, {machine.devices // axis}×{axis}")
            for cost in costs(model, machine):
                rows.append(
                    {"model": model.name, "machine": machine.name} | asdict(cost)
                )
                print(
                    f"{cost.stage:<22} {cost.operations:9.1e} ops {cost.bytes:9.1e} B "
                    f"{cost.collective_bytes:9.1e} B sent  {shown(cost.seconds):>8}  "
                    f"{cost.limit}"
                )
            total = sum(cost.seconds for cost in costs(model, machine))
            print(f"{'in all':<22} {shown(total):>61}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
