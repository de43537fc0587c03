"""SAEs with our settings and with the published ones, on the same activations, for the
same number of steps, at the same measured L0.

Command: python -m benchmarks.sae_published --shared=<the shared fixtures>
  --workdir=runs/sae_published
Measured: stories260K, residual after layer 2 (d 64), the data of benchmarks.sae_quality;
512 latents, 12,000 steps of 128 tokens, so that the published rise of the penalty
(10,000 steps) ends; seeds 0 to 2. Nothing is tuned: "ours" are the defaults of
`TrainConfig`, "published" is `as_published`, and "published, our rate" is the same with
our learning rate and its schedule, which tells what the published rate, meant for runs
that are a hundred times as long, does to a short one. L0 is matched on validation
tokens, by the one knob that a way to train has: k (and one threshold on those tokens),
the controller's or the penalty's target, or the penalty's coefficient. SAEs that could
not be brought within 2 % in five runs are counted as missed.
Columns: explained variance, CE recovered, L0, and the share of latents that are silent
on the test tokens; `max cosine` is the mean over the others of the largest |cosine| of
a decoder row with another one. Mean ± standard deviation over seeds.
Every SAE is a file in the workdir: a run that was stopped goes on, and `--minutes`
stops it by itself. Expect the table of docs/training.md, some 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._sae_match import TRIES, Recipe, matched
from benchmarks._sae_stories import TOKENS, Bench, collect, losses, test_row, trained
from sae_attr.sae.model import SAE
from sae_attr.sae.published import as_published
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store.files import to_json, write_atomic

OUR_RATE = {"lr": None, "warmup": None, "warmup_shape": "linear", "decay": 0.2}
# Digits shown.
MEASURES = {"ev": 4, "ce": 4, "l0": 1, "dead": 3, "cosine": 3}
SPREAD = ("ev", "ce", "cosine")


class Arm(NamedTuple):
    """A way to train, and the family of those that it is compared with. The recipe's
    name says whose settings it has.
    """

    family: str
    recipe: Recipe

    @property
    def stem(self) -> str:
        """Returns what the arm's files begin with."""
        return f"{self.family}-{self.recipe.name}".replace(",", "").replace(" ", "_")


def arms(l0: int) -> list[Arm]:
    """Returns all ways to train for a target L0."""

    def ours(objective: str) -> Arm:
        fields = {"objective": objective}
        if objective in ("jumprelu", "gated"):
            return Arm(objective, Recipe("ours", fields, "target_l0", l0, True))
        return Arm(objective, Recipe("ours", fields))

    def published(name: str, *knob: Any) -> list[Arm]:
        fields = as_published(name)
        as_is = Recipe("published", fields, *knob)
        faster = Recipe("published, our rate", fields | OUR_RATE, *knob)
        return [Arm(name, as_is), Arm(name, faster)]

    return [
        ours("jumprelu"),
        *published("jumprelu", "sparsity", 1e-3, False),
        ours("batch_topk"),
        *published("batch_topk"),
        ours("matryoshka"),
        *published("matryoshka"),
        ours("topk"),
        ours("gated"),
        *published("gemma_scope_2", "target_l0", l0, True),
    ]


def run(
    bench: Bench,
    recipe: Recipe,
    args: argparse.Namespace,
    seed: int,
    first: float,
    tries: int,
) -> tuple[SAE, float, bool]:
    """Trains one SAE at the target L0; returns it, its knob, and whether L0 is met."""

    def train(knob: float) -> SAE:
        fields = dict(recipe.fields)
        if recipe.knob is not None:
            fields[recipe.knob] = knob
        width = bench.train_kd.shape[1]
        cfg = TrainConfig(width, args.n, args.steps, k=args.l0, seed=seed, **fields)
        return trained(bench, cfg, args.batch)

    objective = recipe.fields["objective"]
    return matched(train, objective, recipe, bench.valid_kd, args.l0, first, tries)


def result_file(args: argparse.Namespace, arm: Arm, seed: int) -> Path:
    """Returns where one SAE's numbers are; another size has another folder."""
    sizes = f"n{args.n}-l0_{args.l0}-steps{args.steps}-batch{args.batch}"
    return Path(args.workdir) / sizes / f"{arm.stem}-{seed}.json"


def fill(bench: Bench, args: argparse.Namespace) -> bool:
    """Trains what has no file yet, seed after seed; returns whether all have one."""
    end = time.monotonic() + 60 * args.minutes
    plain, mean = losses(bench, None), losses(bench, bench.mean_d)
    before: dict[str, dict[str, Any]] = {}
    for seed in args.seeds:
        for arm in arms(args.l0):
            file = result_file(args, arm, seed)
            if not file.exists():
                if time.monotonic() > end:
                    return False
                start = time.process_time()
                last = before.get(arm.stem, {"knob": arm.recipe.first, "matched": True})
                # Where the seed before missed the target this one need not search.
                tries = TRIES if last["matched"] else 1
                sae, knob, good = run(
                    bench, arm.recipe, args, seed, last["knob"], tries
                )
                row = test_row(bench, sae, plain, mean)
                row |= {"knob": knob, "matched": good}
                row["cpu_seconds"] = time.process_time() - start
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, to_json(row))
                print(arm.stem, seed, row, flush=True)
            before[arm.stem] = json.loads(file.read_text("utf-8"))
    return True


def finished_rows(args: argparse.Namespace) -> list[tuple[Arm, list[dict[str, Any]]]]:
    """Returns every arm with the numbers of the seeds that are done."""
    done = []
    for arm in arms(args.l0):
        files = [result_file(args, arm, seed) for seed in args.seeds]
        rows = [json.loads(f.read_text("utf-8")) for f in files if f.exists()]
        if rows:
            done.append((arm, rows))
    return done


def table(done: Sequence[tuple[Arm, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Returns the lines of a Markdown table, mean ± standard deviation over seeds."""
    lines = [
        "| | settings | explained variance | CE recovered | L0 | silent | max cosine |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for arm, rows in done:
        shown = {}
        for name, digits in MEASURES.items():
            values = np.array([row[name] for row in rows])
            shown[name] = f"{values.mean():.{digits}f}"
            if name in SPREAD and len(values) > 1:
                shown[name] += f" ± {values.std(ddof=1):.{digits}f}"
        missed = sum(not row["matched"] for row in rows)
        if missed:
            shown["l0"] += f" ({missed} of {len(rows)} missed)"
        lines.append(
            f"| {arm.family} | {arm.recipe.name} | {' | '.join(shown.values())} |"
        )
    return lines


def main() -> None:
    """Trains what is missing and prints the table of what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="the fixtures")
    parser.add_argument("--workdir", default="runs/sae_published")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--l0", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e9, help="start no SAE later")
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    whole = fill(collect(args.shared, TOKENS), args)
    done = finished_rows(args)
    print("\n".join(table(done)))
    if args.out:
        rows = [{"arm": arm.stem, "seeds": seeds} for arm, seeds in done]
        Path(args.out).write_text(to_json(rows))
    sys.exit(0 if whole else 3)


if __name__ == "__main__":
    main()
