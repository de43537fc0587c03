"""What each choice of SAE training here is worth: all of them, and one undone at a
time.

Command: python -m benchmarks.sae_choices --shared=<the shared fixtures>
Measured: as in benchmarks.sae_quality (stories260K, layer 2, n 512, 1000 steps of 512
tokens, the same L0 of 16), on the validation tokens, seeds 100 to 102. A row is the
mean over the seeds at the rate that is best for it, so that a choice which only makes
larger rates bearable is told from one that does more.
Undone are: the encoder's first scale (norm 1, the decoder's transpose, as with tied
weights), b_dec from the data (zero), AuxK, and for JumpReLU and Gated first thresholds
from the data (1e-3, as in the JumpReLU
paper), for Gated the weight of what its gates learn from (1, as in the paper).
Expect, in units of 0.001 of explained variance (standard errors 0.1 to 0.4, JumpReLU's
scale 0.9), what undoing changes:
                     topk   batch_topk   jumprelu   gated
  encoder's scale    -1.8         -0.7      -21.7    -1.6
  b_dec              -3.8         -2.0       -2.2    -0.6
  first thresholds                           -4.2    -0.6
  gate_coef                                          -0.9
  AuxK               -0.1          0.0
  short memory       -0.3         +0.6       -0.4    +0.4
The short memory gives nothing by itself: without it the same is reached at twice the
rate, with more dead latents (5.1 % for 2.0 % of BatchTopK, 6.7 % for 1.1 % of
JumpReLU). At 1,000 steps of 512 tokens AuxK has had no time to matter. Some 40 minutes
on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import sae_quality
from benchmarks._sae_match import matched
from benchmarks._sae_stories import TOKENS, Bench, collect
from sae_attr.sae.metrics import dead_share, explained_variance, fit

RATES = (6e-3, 1.2e-2, 2.4e-2)
SEEDS = (100, 101, 102)
AUX = {"AuxK": {"aux_k": 0}}
FIRST = {"first thresholds": {"threshold_init": 1e-3}}
COMMON = {
    "encoder's scale": {"enc_scale": 1.0},
    "b_dec from the data": {"centre": "zero"},
}
UNDONE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "topk": {**COMMON, **AUX},
    "batch_topk": {**COMMON, **AUX},
    "jumprelu": {**COMMON, **FIRST},
    "gated": {**COMMON, **FIRST, "gate_coef": {"gate_coef": 1.0}},
}


def trained(
    bench: Bench,
    args: argparse.Namespace,
    objective: str,
    fields: Mapping[str, Any],
    lr: float,
    seed: int,
) -> dict[str, Any]:
    """Trains one SAE; returns explained variance, L0 and dead share on the validation
    tokens.
    """
    recipe = sae_quality.OURS[objective][0]._replace(fields=dict(fields))
    run = partial(sae_quality.ours, bench, args, objective, recipe, lr, seed)
    sae, _, is_matched = matched(
        run, objective, recipe, bench.valid_kd, args.l0, recipe.first
    )
    sums = fit(sae, bench.valid_kd)
    return {
        "lr": lr,
        "seed": seed,
        "ev": explained_variance(sums),
        "dead": dead_share(sums),
        "matched": is_matched,
    }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns rate, explained variances over the seeds and mean dead share at the best
    rate that reaches the target L0.
    """
    found = []
    for lr in dict.fromkeys(row["lr"] for row in rows):
        here = [row for row in rows if row["lr"] == lr]
        evs = np.array([row["ev"] for row in here])
        if all(row["matched"] for row in here):
            found.append(
                {
                    "lr": lr,
                    "ev": evs,
                    "dead": float(np.mean([row["dead"] for row in here])),
                }
            )
    return max(found, key=lambda one: one["ev"].mean()) if found else {}


def show(objective: str, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Prints the table of one objective."""
    whole = best(rows["all of them"])
    print(f"{objective:<30} {'EV':>7} {'less':>8} {'se':>7} {'dead':>6} {'rate':>6}")
    for name, tried in rows.items():
        one = best(tried)
        if not one:
            print(f"  {name:<28} L0 not matched at any rate")
            continue
        off = one["ev"] - whole["ev"]
        print(
            f"  {name:<28} {one['ev'].mean():7.4f} {off.mean():+8.4f} "
            f"{off.std(ddof=1) / len(off) ** 0.5:7.4f}"
            f" {one['dead']:6.1%} {one['lr']:6g}",
            flush=True,
        )


def main() -> None:
    """Prints a table per objective."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared",
        type=Path,
        required=True,
        help="folder with models/stories260K and corpora",
    )
    parser.add_argument(
        "--objectives", nargs="+", choices=list(UNDONE), default=list(UNDONE)
    )
    parser.add_argument("--out", help="write the numbers here as JSON")
    given = parser.parse_args()
    bench = collect(given.shared, TOKENS)
    args = argparse.Namespace(**sae_quality.SIZES)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for objective in given.objectives:
        variants = {
            "all of them": {},
            **{f"without {name}": f for name, f in UNDONE[objective].items()},
        }
        rows = found[objective] = {name: [] for name in variants}
        for name, fields in tqdm(variants.items(), desc=objective):
            rows[name] += [
                trained(bench, args, objective, fields, lr, seed)
                for lr in RATES
                for seed in SEEDS
            ]
        show(objective, rows)
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
