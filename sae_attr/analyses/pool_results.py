"""What every latent of the pools does, and what each selector's latents do beside random
ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.analyses.pool_settings import PoolCase, Task
from sae_attr.analyses.pool_stages import VECTOR, pool_of
from sae_attr.analyses.selector_pool import PLANTED, RANDOM, SELECTORS
from sae_attr.store import Result

Row = dict[str, Any]
RESAMPLES = 2000
VECTOR_NAME = "gradient_vector"


def is_complete(case: PoolCase, results: Mapping[str, Result]) -> bool:
    """Returns True if everything that was measured of a case is there."""
    stages = ("pool", "pool_steering", "pool_monitoring")
    return all(case.stage_name(stage) in results for stage in stages)


def latent_rows(case: PoolCase, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row for the contrastive gradient vector, every latent of the pool and
    every control: `along`, `against` and `steering`, their sum, the effect at +s minus
    that at −s; `auc.<task>`; `lowest` of all tasks and `lowest_same` of those of its
    behaviour; `steers` and `monitors`.
    """
    pool = pool_of(results[case.stage_name("pool")])
    steering = results[case.stage_name("pool_steering")].arrays
    aucs = results[case.stage_name("pool_monitoring")].arrays
    along_k = np.asarray(steering["along_k"], np.float64)
    against_k = np.asarray(steering["against_k"], np.float64)
    heads = [(VECTOR, (VECTOR_NAME,), 1)]
    heads += [(latent.latent, latent.origins, latent.sign) for latent in pool]
    is_random_k = np.array([RANDOM in origins for _, origins, _ in heads])
    steering_k = along_k + against_k
    threshold = steering_threshold(steering_k[is_random_k], case.settings.level)
    rows = []
    for k, (latent, origins, sign) in enumerate(heads):
        row: Row = {**case.about, "latent": latent, "origins": list(origins)}
        row |= {"sign": sign, "along": along_k[k], "against": against_k[k]}
        row |= {"steering": steering_k[k], "steers": bool(steering_k[k] > threshold)}
        row |= {f"auc.{task}": float(auc_k[k]) for task, auc_k in aucs.items()}
        rows.append(row | _lowest(row, case.tasks, case.evaluation.behaviour))
    return rows


def steering_threshold(random_k: np.ndarray, level: float) -> float:
    """Returns what a latent has to exceed to count as steering."""
    return float(np.quantile(random_k, level)) if len(random_k) else float("nan")


def _lowest(row: Row, tasks: Sequence[Task], behaviour: str) -> Row:
    """The lowest AUC of all tasks that could be monitored, and of a behaviour's."""
    same, every = [], []
    for task in tasks:
        if (auc := row.get(f"auc.{task.name}")) is not None:
            every.append(auc)
            if task.behaviour == behaviour:
                same.append(auc)
    lowest = min(every, default=float("nan"))
    lowest_same = min(same, default=float("nan"))
    return {
        "lowest": lowest,
        "lowest_same": lowest_same,
        "monitors": lowest > 0.5,
        "monitors_same": lowest_same > 0.5,
    }


def selector_rows(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """Returns a row for every behaviour and selector, and for the random latents: mean
    steering with its bootstrap interval over latents, and the shares that steer, that
    monitor every task, and both, with exact intervals and the one-sided p-value of
    Fisher's test against the random latents.
    """
    summary = []
    for behaviour in dict.fromkeys(row["behaviour"] for row in rows):
        of_behaviour = [row for row in rows if row["behaviour"] == behaviour]
        controls = [row for row in of_behaviour if RANDOM in row["origins"]]
        for name in (*SELECTORS, PLANTED, RANDOM):
            members = [row for row in of_behaviour if name in row["origins"]]
            if members:
                head: Row = {"behaviour": behaviour, "selector": name}
                summary.append(head | _summary(members, controls, seed))
    return summary


def _summary(members: Sequence[Row], controls: Sequence[Row], seed: int) -> Row:
    steering_k = np.array([row["steering"] for row in members])
    mean, low, high = mean_interval(steering_k, seed)
    row: Row = {"latents": len(members)}
    row |= {"mean": mean, "low": low, "high": high}
    tests = {
        "steers": lambda r: r["steers"],
        "monitors_same": lambda r: r["monitors_same"],
        "monitors": lambda r: r["monitors"],
        "both": lambda r: r["steers"] and r["monitors"],
    }
    for name, passes in tests.items():
        count = sum(bool(passes(r)) for r in members)
        expected = sum(bool(passes(r)) for r in controls)
        interval = stats.binomtest(count, len(members)).proportion_ci()
        row[name] = count / len(members)
        row[f"{name}_low"], row[f"{name}_high"] = interval.low, interval.high
        table = [
            [count, len(members) - count],
            [expected, len(controls) - expected],
        ]
        _, p = np.asarray(stats.fisher_exact(table, "greater"))
        row[f"{name}_p"] = float(p)
    return row


def mean_interval(values_k: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Returns a mean over latents, and its 95 % bootstrap interval."""
    draw = np.random.default_rng(seed)
    picks = draw.integers(0, len(values_k), (RESAMPLES, len(values_k)))
    low, high = np.quantile(values_k[picks].mean(1), [0.025, 0.975])
    return float(values_k.mean()), float(low), float(high)


def task_rows(case: PoolCase, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row for every task: rollouts, rate, the AUC of the gradient vector, the
    median and the 95th percentile of the random latents' AUC; `skipped` says why a task
    is not monitored.
    """
    pool = pool_of(results[case.stage_name("pool")])
    monitoring = results[case.stage_name("pool_monitoring")]
    is_random_k = np.array([False, *(RANDOM in latent.origins for latent in pool)])
    rows = []
    for name, facts in monitoring.meta["tasks"].items():
        row: Row = {**case.about, "task": name, **facts}
        row["skipped"] = monitoring.meta["skipped"].get(name, "")
        if not row["skipped"]:
            auc_k = np.asarray(monitoring.arrays[name])
            row["vector"] = float(auc_k[0])
            if is_random_k.any():
                random_k = auc_k[is_random_k]
                row["random_median"] = float(np.median(random_k))
                row["random_95"] = float(np.quantile(random_k, 0.95))
        rows.append(row)
    return rows


def pool_numbers(
    cases: Sequence[PoolCase], results: Mapping[str, Result]
) -> dict[str, list[Row]]:
    """Returns the rows of the cases that are complete: `latents`, `selectors`, `tasks`,
    and `skipped`: selectors that are left out.
    """
    numbers: dict[str, list[Row]] = {"latents": [], "tasks": [], "skipped": []}
    for case in cases:
        if is_complete(case, results):
            numbers["latents"] += latent_rows(case, results)
            numbers["tasks"] += task_rows(case, results)
            skipped = results[case.stage_name("pool")].meta["skipped"]
            for selector, why in skipped.items():
                row = {**case.about, "selector": selector, "why": why}
                numbers["skipped"].append(row)
    return numbers | {"selectors": selector_rows(numbers["latents"])}
