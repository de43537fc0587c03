"""Stage `attribute`: the ranking report, from all stages before it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.attribution import candidates as statistics
from sae_attr.attribution.ablation_table import (
    ablation_columns,
    figure_numbers,
    first_prompts,
    with_exact,
)
from sae_attr.attribution.candidates import Columns, Draws
from sae_attr.attribution.evidence import Evidence
from sae_attr.attribution.presets import baseline_rankings, decoder_rows
from sae_attr.attribution.ranking import Ranking
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import unembedding
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study import ranking_notes as notes
from sae_attr.study.columns import quoted
from sae_attr.study.ranking_report import RankingReport
from sae_attr.study.setup import Draw, Setup
from sae_attr.study.stages import (
    ablation,
    candidate_codes,
    norm_limits,
    rankings,
    sae_check,
    scores,
)
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.study.stages.evidence import NEEDS, evidence_of
from sae_attr.text.tokenizer import token_strings

NAME = "attribute"
# 2: Δ is split by system, assistant and special tokens too.
VERSION = 2

# Settings that say where files lie or how texts are rendered, which the keys of what is
# read stand for, or how fast a run is.
_UNDECLARED = (
    "template_options",
    "lm",
    "adapter",
    "lm_aligned",
    "sae",
    "pairs",
    "corpus",
    "batch_size",
    "corpus_batch",
    "remat",
)


def stage(c: Context) -> Stage:
    """Makes the stage, whose result `report_of` reads."""
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        report = _report(setup, inputs)
        # Where the pairs are made by a stage, they and the files may lie in the
        # workdir, which may move.
        workdir = os.path.dirname(os.fspath(setup.store.root))
        return report.to_stored(f"{workdir}/" if c.pairs_stage else None)

    fields = {
        field.name: getattr(setup.settings, field.name)
        for field in dataclasses.fields(setup.settings)
        if field.name not in _UNDECLARED
    }
    fields["pairs"] = None if c.pairs_stage else notes.fingerprint(setup.settings.pairs)
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(
            norm_limits.NAME,
            sae_check.NAME,
            *NEEDS,
            scores.NAME,
            rankings.NAME,
            candidate_codes.NAME,
            ablation.NAME,
        ),
        files=("lm", "lm_aligned", "corpus", "sae"),
        pairs=True,
    )


def _report(setup: Setup, inputs: Inputs) -> RankingReport:
    """Puts the results of all stages together."""
    check = sae_check.check_record(setup, inputs[sae_check.NAME])
    evidence = evidence_of(setup, inputs)
    filled = candidate_codes.filled(
        setup,
        inputs[scores.NAME],
        evidence.codes,
        inputs[candidate_codes.NAME].arrays,
    )
    exact = _exact(setup, evidence, inputs[ablation.NAME])
    by_preset = rankings.rankings_of(setup, inputs[rankings.NAME])
    ranked = _rank(setup, evidence, by_preset, filled, exact)
    summary = {
        "primary": setup.settings.presets()[0].name,
        "presets": ranked.about,
        **_numbers(setup, evidence, ranked.scores),
        "sae_check": check,
        "exact_ablation": exact.about,
        "skipped": filled.skipped,
        **_inputs(setup, inputs, evidence, check, ranked),
    }
    return RankingReport(ranked.columns, ranked.scores, exact.figure, summary)


@dataclasses.dataclass(frozen=True, eq=False)
class _Ranked:
    """Per preset the columns of its candidates and numbers about the ranking; and the
    scores with what candidates know of them.
    """

    columns: Mapping[str, Columns]
    about: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, np.ndarray]


def _rank(
    setup: Setup,
    evidence: Evidence,
    by_preset: Mapping[str, Ranking],
    filled: candidate_codes.Filled,
    exact: _Exact,
) -> _Ranked:
    s = setup.settings
    primary = s.presets()[0]
    scores_by_key = filled.scores
    baselines = baseline_rankings(
        scores_by_key,
        # Rates that are known of candidates alone would draw "random" latents among
        # the candidates.
        evidence.codes.rate_n,
        by_preset[primary.name],
        scope=primary.tokens,
        top=s.top,
        key=setup.key(Draw.RANDOM),
    )
    columns: dict[str, Columns] = {}
    about: dict[str, dict[str, Any]] = {}
    for preset in s.presets():
        name = preset.name
        ranking = by_preset[name]
        others = {k: v for k, v in by_preset.items() if k != name} | baselines
        of_preset, numbers = statistics.candidate_columns(
            evidence,
            ranking,
            preset,
            scores_by_key,
            filled.rates_n,
            others,
            _draws(setup),
        )
        scores_by_key = statistics.with_candidates(
            scores_by_key, preset, ranking, of_preset
        )
        of_preset |= _nearest(setup, evidence, ranking)
        columns[name] = with_exact(of_preset, exact.latents_k, exact.columns)
        about[name] = {**ranking.options, **numbers}
    final = {k: v for k, v in scores_by_key.items() if k != "best_direction_d"}
    final["firing_rate"] = filled.rates_n
    return _Ranked(columns, about, final)


def _numbers(
    setup: Setup, evidence: Evidence, scores_by_key: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns numbers about the primary ranking as a whole."""
    primary, top = setup.settings.presets()[0], setup.settings.top
    return {
        "stability": statistics.stability(scores_by_key, top),
        "prompt_mean_overlap": statistics.prompt_mean_overlap(
            scores_by_key, primary.tokens, top
        ),
        "reconstruction_error": statistics.reconstruction_error(
            evidence, primary, scores_by_key, _draws(setup)
        ),
        "mean": {
            "tokens": evidence.mean.tokens,
            "norm": evidence.mean.norm,
            "firing_tokens": evidence.codes.tokens,
        },
        "masked": notes.masked_counts(setup, evidence.table, evidence.mean),
    }


def _inputs(
    setup: Setup,
    inputs: Inputs,
    evidence: Evidence,
    check: Mapping[str, Any],
    ranked: _Ranked,
) -> dict[str, Any]:
    """Returns facts about what was read and chosen, and warnings about it."""
    pairs = notes.pair_facts(setup, evidence.table)
    limits = norm_limits.limits_of(inputs[norm_limits.NAME])
    meta = inputs[scores.NAME].meta
    return {
        "bound": {name: meta[name] for name in ("bound", "best_over_bound")},
        "pairs": pairs,
        "choices": notes.choices(setup, limits),
        "inputs": notes.input_keys(setup),
        "warnings": notes.warnings(setup, pairs, check, ranked.about),
    }


def _draws(setup: Setup) -> Draws:
    return Draws(
        bootstrap=setup.key(Draw.BOOTSTRAP),
        splits=setup.key(Draw.SPLITS),
        error=setup.key(Draw.ERROR),
        resamples=setup.settings.bootstrap,
    )


def _nearest(setup: Setup, evidence: Evidence, ranking: Ranking) -> Columns:
    """Returns the tokens whose unembedding vectors are nearest to each candidate."""
    dec_kd = decoder_rows(evidence.decoder, ranking.latents_k)
    ids, cosines = nearest_tokens(dec_kd, unembedding(setup.params, cfg=setup.cfg))
    words = [quoted(token_strings(setup.tokenizer, row)) for row in np.asarray(ids)]
    return {"tokens": np.array(words), "token_cosine": np.asarray(cosines)[:, 0]}


@dataclasses.dataclass(frozen=True, eq=False)
class _Exact:
    """Exact ablation as the report has it; empty without."""

    latents_k: np.ndarray
    columns: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    figure: Mapping[str, Any] | None


def _exact(setup: Setup, evidence: Evidence, result: Result) -> _Exact:
    if "skipped" in result.meta:
        return _Exact(np.zeros(0, int), {}, {"skipped": result.meta["skipped"]}, None)
    rows = first_prompts(evidence.table.rows, setup.settings.ablate_rows)
    columns, about = ablation_columns(rows, result.arrays)
    latents_k = np.asarray(result.arrays["latents_k"])
    figure = figure_numbers(
        latents_k, result.meta["candidates"], columns, about, result.arrays
    )
    about |= {
        "rows": len(rows),
        "scope": setup.settings.presets()[0].tokens,
        "matched": result.meta["matched"],
    }
    return _Exact(latents_k, columns, about, figure)
