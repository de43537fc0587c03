"""Stages of the claims' inputs: pairs of one source, and the scores of every latent
within each of their prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.claim_settings import KINDS, ON_POLICY, ClaimCase
from sae_attr.analyses.completion_scores import (
    SidedScores,
    completion_scores,
    sided,
)
from sae_attr.analyses.dilution import activation_differences
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.token_table import TokenTable, collect
from sae_attr.lm.weights import load_lm
from sae_attr.organism.exact import STUDIED
from sae_attr.organism.pair_sampling import graded_pairs
from sae_attr.organism.pair_sources import SAMPLER, source_answers
from sae_attr.report.numbers import share
from sae_attr.store import (
    Computed,
    Progress,
    Result,
    Stage,
    fingerprint,
    write_atomic,
)
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.setup import Setup
from sae_attr.study.stages.aligned_activations import aligned_acts
from sae_attr.study.stages.mean_activation import mean_of
from sae_attr.text.pairing import jsonl

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"pairs": 1, "scores": 1}
ACTIVATION_SCOPES = ("prompt", "completion")

Results = Mapping[str, Result]


# ---- pairs ---------------------------------------------------------------------------


def pair_stage(case: ClaimCase, e: Evaluation, source: str) -> Stage:
    """Pairs of one source as records in `meta`, and the rates of its answers."""
    s = case.settings
    prompts, pairs = s.source_prompts, 2 * s.source_pairs
    if source == ON_POLICY:
        prompts, pairs = s.pair_prompts, s.pairs
    if e is not case.evaluation:
        prompts, pairs = 2 * s.harmless_pairs, s.harmless_pairs
    sampler = SAMPLER[source]
    part = sampler or STUDIED[e.behaviour]

    def run(results: Results, progress: Progress) -> Computed:
        folder = getattr(e.organism, part)
        cfg, params = load_lm(folder, mesh=e.mesh)
        world, to_answer = e.organism.world, e.deciding_prompts("pairs", prompts)
        texts = source_answers(
            source,
            world,
            e.behaviour,
            to_answer,
            params,
            cfg=cfg,
            samples=s.samples,
            seed=e.recipe.seed,
        )
        records, rates = graded_pairs(
            world,
            to_answer,
            e.behaviour,
            texts,
            count=pairs,
            sampler="generator" if sampler is None else fingerprint(folder),
            seed=e.recipe.seed,
        )
        return {}, {"records": records, "rates": dict(rates), "asked": len(to_answer)}

    fields = {
        "source": source,
        "behaviour": e.behaviour,
        "prompts": prompts,
        "samples": s.samples,
        "pairs": pairs,
    }
    needs = (e.organism.stages[part],)
    name = e.stage_name(f"{source}.pairs")
    return Stage(name, run, fields, needs, VERSIONS["pairs"])


def required_pairs(case: ClaimCase, e: Evaluation, source: str) -> int:
    """Returns how many pairs a source must have given to be measured."""
    s = case.settings
    if source == ON_POLICY and e is case.evaluation:
        return 2 * max(s.counts)
    return s.source_pairs


# ---- scores --------------------------------------------------------------------------


def score_stage(case: ClaimCase, e: Evaluation, source: str) -> Stage:
    """Scores within each prompt of the two sides: arrays `<kind>.positive`,
    `<kind>.negative`; where harmless changes are measured, Δ-activation of the first
    prompts: `delta_activation_<scope>`. Nothing but the reason in `meta["skipped"]`
    where a source other than the studied model gave too few pairs.
    """
    s, pairs_name = case.settings, e.stage_name(f"{source}.pairs")
    mean_name = e.stage_name("mean_activation")
    required = required_pairs(case, e, source)
    with_activation = source == ON_POLICY and bool(case.diluted)

    def run(results: Results, progress: Progress) -> Computed:
        records = results[pairs_name].meta["records"]
        if why := too_few_pairs(results[pairs_name].meta, required):
            if source == ON_POLICY:
                raise ValueError(f"{e.name}: {why}")
            return {}, {"skipped": why}
        setup = _with_pairs(e, source, records)
        table = collect(
            setup.params,
            setup.encoded.rows,
            cfg=setup.cfg,
            site=setup.site,
            mesh=e.mesh,
            batch_size=s.batch_size,
        )
        arrays = _sided_arrays(setup, table, results[mean_name])
        if with_activation:
            first = _with_pairs(e, f"{source}.first", records[: s.harmless_pairs])
            arrays |= _activation_arrays(first, table)
        return arrays, {"nats": nats_per_token(table)}

    fields = {"required": required, "activation": 0}
    if with_activation:
        fields["activation"] = s.harmless_pairs
    parts = (STUDIED[e.behaviour], "chat", "sae")
    needs = (pairs_name, mean_name, *(e.organism.stages[part] for part in parts))
    name = e.stage_name(f"{source}.scores")
    return Stage(name, run, fields, needs, VERSIONS["scores"])


def too_few_pairs(meta: Mapping[str, Any], required: int) -> str:
    """Says that there are too few pairs, and how often the answers show the behaviour;
    "" for enough.

    Args:
      meta: of a stage `pairs`.
    """
    count = len(meta["records"])
    if count >= required:
        return ""
    return (
        f"{count} of {meta['asked']} prompts gave a pair, {required} are needed: "
        f"{share(meta['rates']['behaviour'])} of the graded answers show the "
        "behaviour; ask more prompts (pair_prompts, source_prompts), sample more "
        "(samples), or train the fine-tune longer"
    )


def _with_pairs(
    e: Evaluation, name: str, records: Sequence[Mapping[str, Any]]
) -> Setup:
    """Returns the setup of an evaluation with these pairs, which are written for it."""
    path = e.workdir / "pairs" / f"{e.name}.{name}.jsonl"
    if e.store.writer:
        write_atomic(path, jsonl([dict(record) for record in records]))
    settings = replace(e.setup.settings, pairs=str(path))
    return replace(e.setup, settings=settings, shared=e.setup.model_files)


def _sided_arrays(
    setup: Setup, table: TokenTable, mean: Result
) -> dict[str, np.ndarray]:
    dec_nd = decoder_rows(setup.decoder, np.arange(len(setup.decoder)))
    mean_d = jnp.asarray(mean_of(mean).mean_d, jnp.float32)
    arrays = {}
    for kind in KINDS:
        scores_rn = completion_scores(table, dec_nd, mean_d, kind, setup.exclude)
        of_sides = sided(scores_rn, table.rows)
        arrays[f"{kind.label}.positive"] = of_sides.positive_pn
        arrays[f"{kind.label}.negative"] = of_sides.negative_pn
    return arrays


def _activation_arrays(setup: Setup, table: TokenTable) -> dict[str, np.ndarray]:
    """Δ-activation within each of the setup's prompts, whose rows begin the table."""
    rows = setup.encoded.rows
    aligned_kd = aligned_acts(setup)
    acts_kd = np.asarray(table.acts_kd[: len(aligned_kd)])
    arrays = {}
    for scope in ACTIVATION_SCOPES:
        arrays[f"delta_activation_{scope}"] = activation_differences(
            setup.sae, rows, acts_kd, aligned_kd, scope, setup.exclude
        )
    return arrays


def nats_per_token(table: TokenTable) -> dict[str, float]:
    """Returns the mean over completions of a side of nats per token under the studied
    model.
    """
    lengths_r = np.array([len(row.ids) - row.n_prompt for row in table.rows])
    side_r = np.array([row.side for row in table.rows])
    nats_r = table.nll_r / lengths_r
    return {
        "positive": float(nats_r[side_r > 0].mean()),
        "negative": float(nats_r[side_r < 0].mean()),
    }


def sided_of(result: Result, label: str) -> SidedScores:
    """Reads the two sides of a score from the result of a stage `scores`."""
    return SidedScores(
        np.asarray(result.arrays[f"{label}.positive"]),
        np.asarray(result.arrays[f"{label}.negative"]),
    )


def differences_of(result: Result, pairs: int) -> dict[str, np.ndarray]:
    """Returns score -> its value within each of the first prompts, `[p, n]`: Δ of every
    kind, and Δ-activation by scope.
    """
    differences = {}
    for kind in KINDS:
        difference_pn = sided_of(result, kind.label).difference_pn
        differences[kind.label] = difference_pn[:pairs]
    for scope in ACTIVATION_SCOPES:
        label = f"delta_activation_{scope}"
        differences[label] = np.asarray(result.arrays[label])
    return differences
