"""Whether a server of samples answers: one short completion, before anything is
sampled.
"""

from __future__ import annotations

import time
from dataclasses import replace

import jax

from sae_attr.report.numbers import duration
from sae_attr.report.safe_text import one_line
from sae_attr.server.budget import CallBudget
from sae_attr.steering.plan import SweepRow
from sae_attr.steering.served import SamplesStopped, served_batches
from sae_attr.study.case import Case
from sae_attr.study.dry_run.judge_trial import Trial
from sae_attr.study.sample_sources import endpoint_of, served_model, server_sampler

_TOKENS = 8
_SECONDS = 10.0


def try_servers(case: Case) -> dict[str, Trial]:
    """Asks the server of a case for the beginning of one answer of each model that it
    samples.

    Returns:
      the server's name of the model -> outcome; {} where the models here sample.
    """
    prompts = case.prompts("pairs")
    names = {}
    for direction in ("away", "toward"):
        name = served_model(case, direction)
        if name and prompts:
            names.setdefault(name, direction)
    return {name: _trial(case, direction) for name, direction in names.items()}


def _trial(case: Case, direction: str) -> Trial:
    quick = replace(
        case.settings.server.patience, timeout=_SECONDS, retries=0, concurrency=1
    )
    sampling = replace(case.sampling, max_new=_TOKENS)
    row = SweepRow(case.prompts("pairs")[0].id, 0)
    start = time.perf_counter()
    try:
        sampler = server_sampler(
            case,
            direction,
            "pairs",
            jax.random.key(0),
            sampling,
            # A trial is in no ledger: a dry run leaves no files.
            endpoint=endpoint_of(case, quick, CallBudget()),
        )
        list(served_batches(sampler, [row]))
    except (ValueError, ImportError, SamplesStopped) as error:
        return Trial(False, one_line(str(error), 400))
    seconds = time.perf_counter() - start
    return Trial(True, f"answered in {duration(seconds)}", seconds)
