"""The stages that find latents: sample → grade → pair → attribute → select."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sae_attr.store import Computed, Progress, Result, write_atomic
from sae_attr.study.case import Case, plain
from sae_attr.study.grading import Graded, known_mean
from sae_attr.study.outcome import Outcome, compute
from sae_attr.study.pairing import jsonl, make_pairs
from sae_attr.study.samples import UNSTEERED, Arms, unpadded
from sae_attr.study.selection import about, select
from sae_attr.study.trial import Trial

PLAIN_MODEL = Arms(np.array([UNSTEERED]), np.zeros(1))


def _trial(case: Case) -> Trial:
    """The model with the behaviour as it is, on the prompts for pairs."""
    return Trial(case, "away", "pairs", PLAIN_MODEL, 0.0, case.settings.pair_samples)


def sample(case: Case, progress: Progress) -> Computed:
    """Completions of the model with the behaviour, `pair_samples` per prompt: arrays
    `tokens_rn`.
    """
    tokens_rn, counts = _trial(case).sample(progress, "sample")
    return {"tokens_rn": tokens_rn}, counts


def grade(case: Case, samples: Result, progress: Progress) -> Computed:
    """What the judge says of them; excluded ones are sampled again."""
    found, counts = _trial(case).grade(samples.arrays["tokens_rn"], progress)
    facts = {
        "rate": known_mean(found.behaviour_r),
        "incoherent": 1 - known_mean(found.coherent_r),
    }
    return found.arrays(), {
        "labels": list(found.labels_r),
        "counts": counts,
        "judge": dict(case.judge.identity),
        **facts,
    }


def pair(case: Case, grades: Result) -> Computed:
    """Prompts that gave both, as records of a pairs file in `meta["records"]`."""
    found, prompts = Graded.load(grades.arrays, grades.meta), case.prompts("pairs")
    records, counts = make_pairs(
        prompts,
        case.prompt_ids("pairs"),
        found,
        [case.text(ids) for ids in unpadded(found.tokens_rn)],
        samples=case.settings.pair_samples,
        sampler=case.attribution.lm_key,
        limit=case.settings.pairs,
        per_side=case.settings.per_side,
        fits=case.can_score,
    )
    return {}, {"records": records, "counts": counts}


def attribute(case: Case, pairs: Result) -> Computed:
    """Δ-attribution with all rivals and exact ablation; arrays are the scores of every
    latent.
    """
    write_atomic(case.pairs_file, jsonl(pairs.meta["records"]))
    outcome = compute(case.attribution)
    return outcome.scores, outcome_meta(outcome, f"{case.runtime.workdir}/")


def outcome_meta(outcome: Outcome, folder: str) -> dict[str, Any]:
    """What a stage keeps of an attribution run beside the scores; paths are told from
    `folder` on, wherever it lies.
    """
    columns = {
        preset: {k: list(v.tolist()) for k, v in found.items()}
        for preset, found in outcome.columns.items()
    }
    return {
        "columns": columns,
        "ablation": outcome.ablation,
        "summary": _plain(outcome.summary, folder),
    }


def _plain(value: Any, folder: str) -> Any:
    """Nested mappings, sets and dataclass fields as JSON can say them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, folder) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v, folder) for v in value]
    if isinstance(value, str):
        return value.removeprefix(folder)
    return value.tolist() if hasattr(value, "tolist") else value


def best_latents(case: Case, attribution: Result, method: str) -> list[int] | None:
    """A preset's best latents; None for a method that is no preset."""
    summary = attribution.meta["summary"]
    preset = {
        "delta_attribution": summary["primary"],
        "recommended": "recommended",
    }.get(method)
    columns = attribution.meta["columns"].get(preset)
    return None if columns is None else columns["latent"][: case.study.top]


def choose(case: Case, attribution: Result, *others: Result) -> Computed:
    """The latents that are steered; `others`: attributions of other cases with the same
    dictionary.
    """
    summary, study = attribution.meta["summary"], case.study
    named = {
        name: best_latents(case, attribution, name)
        for name in ("delta_attribution", "recommended")
    }
    rankings = {name: latents for name, latents in named.items() if latents is not None}
    theirs = [best_latents(case, other, study.methods[0]) or [] for other in others]
    key = jax.random.fold_in(jax.random.key(study.seed), 12)
    chosen, skipped = select(
        rankings,
        attribution.arrays,
        scope=summary["presets"][summary["primary"]]["tokens"],
        methods=study.methods,
        top=study.top,
        random=study.random,
        key=key,
        others=sorted({i for latents in theirs for i in latents}),
        why=summary["skipped"],
    )
    return chosen.arrays(), about(chosen, skipped)


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    s, study = case.settings, case.study
    sampling = plain(study.sampling, "attempts") | {"stop_ids": case.declared_stops()}
    asked = {
        "prompts": case.declared_prompts("pairs"),
        "limit": s.pair_prompts,
        "samples": s.pair_samples,
    }
    return {
        "sample": {
            **asked,
            "sampling": sampling,
            "seed": study.seed,
            "dtype": study.dtype,
            "resid_dtype": study.resid_dtype,
        },
        "grade": {
            "judge": dict(case.judge.identity),
            "attempts": study.sampling.attempts,
        },
        "pair": {"limit": s.pairs, "per_side": s.per_side},
        "attribute": {"top": study.top, "attribution": dict(s.attribution)},
        "select": {"methods": study.methods, "top": study.top, "random": study.random},
    }
