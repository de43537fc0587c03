"""What is shown of a sweep that steers named latents: its completions, and counts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sae_attr.steering.plan import NO_LATENT
from sae_attr.store import Result
from sae_attr.study.steering_job import SteeringJob
from sae_attr.text.chat import options_read
from sae_attr.text.tokenizer import decode


def shown_completions(job: SteeringJob, records: list[dict[str, Any]]) -> str:
    """Returns the unsteered completion of every prompt and sample as text, and the
    steered ones below it.
    """
    by_sample: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["prompt"], record["sample"])
        by_sample.setdefault(key, []).append(record)
    lines = []
    for (prompt, sample), of_sample in by_sample.items():
        text = decode(job.setup.tokenizer, job.prompts[prompt])
        lines.append(f"\n{prompt}, sample {sample}: {text!r}")
        for record in of_sample:
            lines.append(f"  {_condition_text(record):<28} {record['text']!r}")
    return "\n".join(lines)


def _condition_text(record: dict[str, Any]) -> str:
    if record["latent"] == NO_LATENT:
        return "unsteered"
    return f"latent {record['latent']}, {record['strength']:+g}, {record['tokens']}"


def summary(job: SteeringJob, unit: dict[str, Any], result: Result) -> dict[str, Any]:
    """Returns what result.json holds beside the config: the files' names by contents,
    counts and what it cost.
    """
    records = result.meta["rows"]
    lengths = {name: len(ids) for name, ids in job.prompts.items()}
    cost = job.plan.cost(lengths, max_new=job.sampling.max_new)
    return {
        "site": str(job.setup.site),
        "unit": unit,
        "latents": sorted(job.vectors),
        "sampling": asdict(job.sampling),
        "template_options": options_read(job.setup.tokenizer),
        "scopes": "prompt: positions of the prompt, its last token's too; generated: "
        "those of drawn tokens; all: both",
        "inputs": {
            "lm": job.setup.lm_key,
            "vectors": job.origin,
            "stage": result.key,
        },
        "completions": len(records),
        "stopped": sum(record["stopped"] for record in records),
        "cost": asdict(cost),
        "nats_per_token": {
            "unsteered": _mean_nats(records, steered=False),
            "steered": _mean_nats(records, steered=True),
        },
    }


def _mean_nats(records: list[dict[str, Any]], *, steered: bool) -> float | None:
    """The mean nats per token of steered or of unsteered completions."""
    nats = []
    for record in records:
        is_steered = record["latent"] != NO_LATENT
        if is_steered == steered and record["nats_per_token"] is not None:
            nats.append(record["nats_per_token"])
    return float(np.mean(nats)) if nats else None
