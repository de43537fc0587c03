"""Operations of the compiled gradient program over the least that a gradient at a site
can cost.

Command: python -m benchmarks.operations
Measured: `act_and_grad` at layer 6 of 12, GPT-2-small shape, one row of 128 + 128
  tokens, compiled and not run. Layers are
unrolled, since XLA counts the body of a loop once. Least: products of the forward pass,
of the backward pass to the site's own activations (no parameter gradients) and of the
completion's logits, with attention as full t × t.
Two counts: `dots`, the matrix products in the optimised program, and `all`, what
`cost_analysis()` calls flops, with every elementwise operation.
Expect: dots 1.00 without remat and 1.15 with it; all below 1.15 without. Under a minute
  on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._shapes import GPT2, block_weights
from sae_attr.attribution.gradients import act_and_grad
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.params import init_params
from sae_attr.text.batching import RowBatch

LIMIT = 1.15


def least_operations(
    cfg: LMConfig, site: Site, rows: int, prompt: int, completion: int
) -> float:
    """Counts multiplications and additions of the matrix products without which there is no
    gradient at the site.
    """
    t = prompt + completion
    width = cfg.n_heads * cfg.head_dim
    weights = block_weights(cfg)
    forward = 2 * t * weights + 4 * t**2 * width
    # Of attention: gradients of queries, keys, values and weights.
    backward = 2 * t * weights + 8 * t**2 * width
    head = 2 * (2 * completion * cfg.d_model * cfg.vocab)
    return float(
        rows
        * (cfg.n_layers * forward + (cfg.n_layers - 1 - site.layer) * backward + head)
    )


def dot_operations(hlo: str) -> float:
    """Counts operations of every `dot` in the text of an optimised program that has no loops
    around its dots.
    """
    shapes = {
        m[1]: _sizes(m[2]) for m in re.finditer(r"%?([\w.-]+) = \w+\[([\d,]*)\]", hlo)
    }
    shapes |= {
        m[1]: _sizes(m[2])
        for m in re.finditer(r"([\w.-]+): \w+\[([\d,]*)\]", hlo)
        if m[1] not in shapes
    }
    total = 0.0
    for m in re.finditer(
        r"= \w+\[([\d,]*)\]\S* dot\((?:\S+ )?%?([\w.-]+), .*?lhs_contracting_dims=\{([\d,]*)\}",
        hlo,
    ):
        contracted = math.prod(shapes[m[2]][axis] for axis in _sizes(m[3]))
        total += 2 * math.prod(_sizes(m[1])) * contracted
    return total


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def compiled_program(
    cfg: LMConfig,
    site: Site,
    rows: int,
    prompt: int,
    completion: int,
    remat: bool,
    unroll: bool,
) -> Any:
    """Compiles `act_and_grad` for shapes alone: no weights are made."""
    t = prompt + completion
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((rows, *sizes), dtype)
    batch = RowBatch(
        shape(jnp.int32, t),
        shape(bool, t),
        shape(bool, t),
        shape(jnp.int32, completion),
        shape(bool, completion),
    )
    params = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    grad = jax.jit(
        lambda p, b: act_and_grad(
            p, b, cfg=cfg, sites=(site,), remat=remat, unroll=unroll
        )
    )
    return grad.lower(params, batch).compile()


def measure(
    cfg: LMConfig, site: Site, rows: int, prompt: int, completion: int
) -> dict[str, Any]:
    """Returns both counts over the least, without and with remat, and the memory that
    each needs when it runs in loops.
    """
    least = least_operations(cfg, site, rows, prompt, completion)
    found: dict[str, Any] = {
        "least_operations": least,
        "rows": rows,
        "prompt": prompt,
        "completion": completion,
    }
    for name, remat in (("stored", False), ("remat", True)):
        program = compiled_program(
            cfg, site, rows, prompt, completion, remat, unroll=True
        )
        looped = compiled_program(
            cfg, site, rows, prompt, completion, remat, unroll=False
        )
        text = program.as_text()
        if " while(" in text and re.search(r"while/body[^\"]*dot_general", text):
            raise RuntimeError(
                "a product stands in a loop, which would be counted once; unroll it "
                "before counting"
            )
        found[name] = {
            "dots": dot_operations(text) / least,
            "all": program.cost_analysis()["flops"] / least,
            "temporary_bytes": looped.memory_analysis().temp_size_in_bytes,
        }
    return found


def main() -> None:
    """Prints the table and ends with status 1 if the stored program is above the limit
    by either count.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--site", type=int, default=6)
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    found = measure(
        config_from_hf(GPT2), Site(args.site), args.rows, args.prompt, args.completion
    )
    print(
        f"least: {found['least_operations'] / 1e9:.2f}e9 operations for {args.rows} "
        "row(s)"
    )
    print(
        f"{'program':<8} {'dots / least':>13} {'all / least':>12} {'temporaries':>12}"
    )
    for name in ("stored", "remat"):
        row = found[name]
        print(
            f"{name:<8} {row['dots']:13.3f} {row['all']:12.3f} "
            f"{row['temporary_bytes'] / 2**20:9.0f} MB"
        )
    if args.out:
        with open(args.out, "w") as file:
            json.dump(found | {"limit": LIMIT}, file, indent=1)
    sys.exit(int(max(found["stored"]["dots"], found["stored"]["all"]) > LIMIT))


if __name__ == "__main__":
    main()
