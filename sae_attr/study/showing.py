"""What a study shows: figures with their numbers, tables, and one page of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.report.figures import ablation_figure, effects_figure, render
from sae_attr.report.page import (
    CaseReport,
    Convergence,
    FirstLatent,
    MethodCount,
    MethodDifference,
    Report,
    StageTime,
    Table,
    render_page,
)
from sae_attr.report.tables import csv_text, json_text, versions
from sae_attr.store import Result
from sae_attr.study.case import Case, plain
from sae_attr.study.columns import written
from sae_attr.study.latents import latent_table, steered_latents
from sae_attr.study.results import CaseResults
from sae_attr.study.sentences import (
    case_facts,
    case_sentences,
    case_warnings,
    choices,
    study_sentences,
)
from sae_attr.study.settings import DIRECTIONS

Files = dict[str, bytes | str]
"""Path in the workdir -> contents."""


@dataclass(frozen=True)
class Shown:
    """What a study shows: its files, and what was found in sentences (none where a
    stage that the page needs is not done).
    """

    files: Files
    sentences: tuple[str, ...] = ()


def show(
    cases: Sequence[Case],
    stages: Sequence[str],
    shared: Sequence[str],
    results: Mapping[str, Result],
) -> Shown:
    """Draws all that the results allow: the figures of a case once its effects are
    known, the page once all is done.

    Nothing here is stored, so that a changed template, column or drawing shows on the
    next run.

    Args:
      stages: of each case, without its name.
      shared: stages of several cases together.
      results: stage -> result, of those that are done.
    """
    files: Files = {}
    for case in cases:
        read = [
            results.get(f"{case.settings.name}.{stage}")
            for stage in ("attribute", "effects")
        ]
        if read[0] is not None and read[1] is not None:
            files |= figures(case, read[0], read[1])
    names = [
        f"{case.settings.name}.{stage}" for case in cases for stage in stages
    ] + list(shared)
    if any(name not in results for name in names):
        return Shown(files)
    made, sentences = page(cases, stages, *(results[name] for name in names))
    return Shown(files | made, sentences)


# ---- figures -------------------------------------------------------------------------


def effect_numbers(
    case: Case, panels: Mapping[str, Any], *, signed: bool = False
) -> dict[str, Any]:
    """What `figures.effects_figure` takes."""
    return {
        "behaviour": case.settings.behaviour,
        "signed": signed,
        "panels": [panels[d] for d in DIRECTIONS],
    }


def figures(case: Case, attribution: Result, effects: Result) -> Files:
    """Figures of a case as SVG and PNG, each with its numbers as JSON; and its scores."""
    meta, name = effects.meta, case.settings.name
    drawn = {"effects": (effects_figure, effect_numbers(case, meta["panels"]))}
    if meta["signed_panels"]:
        drawn["effects_gradient_signed"] = (
            effects_figure,
            effect_numbers(case, meta["signed_panels"], signed=True),
        )
    if attribution.meta["ablation"] is not None:
        drawn["attribution_vs_ablation"] = (
            ablation_figure,
            attribution.meta["ablation"],
        )
    files: Files = {}
    for figure, (draw, numbers) in drawn.items():
        files |= {
            f"figures/{name}.{figure}.{suffix}": data
            for suffix, data in render(draw(numbers), numbers).items()
        }
    return files


# ---- page ----------------------------------------------------------------------------


def page(
    cases: Sequence[Case], stages: Sequence[str], *read: Result
) -> tuple[Files, tuple[str, ...]]:
    """report.html, the tables of every case as CSV, result.json; and what was found, in
    sentences.

    `read`: the results of `stages` of one case after the other, then of what they
      share.
    """
    found = [
        CaseResults(
            case,
            dict(
                zip(stages, read[i * len(stages) : (i + 1) * len(stages)], strict=True)
            ),
        )
        for i, case in enumerate(cases)
    ]
    shared = [
        row
        for result in read[len(cases) * len(stages) :]
        for row in result.meta["convergence"]
    ]
    report = _report(found, shared)
    files: Files = {"report.html": render_page(report)}
    for results, shown in zip(found, report.cases, strict=True):
        files |= _tables(results, shown.latents)
    files["result.json"] = json_text(_summary(found, shared, report))
    return files, (
        *report.found,
        *(sentence for case in report.cases for sentence in case.found),
    )


def _report(
    found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]]
) -> Report:
    study = found[0].case.study
    times = [
        StageTime(
            f"{r.case.settings.name}.{name}",
            "made",
            float(result.meta.get("seconds", 0.0)),
            _cost(result),
        )
        for r in found
        for name, result in r.of.items()
    ]
    totals = {
        k: sum(int(t.cost.get(k, 0)) for t in times)
        for k in ("samples", "tokens", "graded", "resampled")
    }
    cases = tuple(_case_report(r) for r in found)
    tokens = {
        int(row["latent"]): tuple(row["tokens"])
        for case in cases
        for row in case.latents.rows
    }
    return Report(
        title="Which latents caused it",
        subtitle=" · ".join(r.case.settings.title for r in found),
        cases=cases,
        found=tuple(study_sentences(found, shared)),
        convergence=tuple(_convergence(row) for row in shared),
        latent_tokens=tokens,
        stages=tuple(times),
        cost=totals,
        config=plain(study),
        versions=versions(),
        hashes={
            f"{r.case.settings.name}.{name}": result.key.rpartition("-")[2]
            for r in found
            for name, result in r.of.items()
        },
        choices=choices(found[0].case),
    )


def _cost(result: Result) -> dict[str, int]:
    """What a stage sampled and graded."""
    counts = result.meta.get("counts", {})
    cost = {k: result.meta[k] for k in ("samples", "tokens") if k in result.meta}
    if "labels" in counts:
        cost |= {
            "graded": sum(counts["labels"].values()),
            "resampled": counts["resampled"],
        }
    return cost


def _case_report(r: CaseResults) -> CaseReport:
    meta, settings = r.of["effects"].meta, r.case.settings
    signed = (
        effect_numbers(r.case, meta["signed_panels"], signed=True)
        if meta["signed_panels"]
        else None
    )
    return CaseReport(
        id=settings.name,
        title=settings.title,
        behaviour=settings.behaviour,
        effects=effect_numbers(r.case, meta["panels"]),
        latents=latent_table(r),
        question=settings.question,
        found=tuple(case_sentences(r)),
        facts=case_facts(r),
        counts=tuple(MethodCount(**row) for row in meta["counts"]),
        differences=tuple(
            MethodDifference(**_tuples(row)) for row in meta["differences"]
        ),
        detectable=meta.get("detectable", {}),
        signed_effects=signed,
        ablation=r.of["attribute"].meta["ablation"],
        steered=tuple(steered_latents(r)),
        warnings=tuple(case_warnings(r)),
    )


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, as JSON gives them back, as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}


def _convergence(row: Mapping[str, Any]) -> Convergence:
    return Convergence(
        **{
            **_tuples(row),
            "firsts": tuple(FirstLatent(**first) for first in row["firsts"]),
        }
    )


# ---- files ---------------------------------------------------------------------------


def _tables(r: CaseResults, table: Table) -> Files:
    """latents.csv of a case, and the attribution's candidates with every statistic."""
    name = r.case.settings.name
    columns = {c.key: [row.get(c.key) for row in table.rows] for c in table.columns}
    out: Files = {f"{name}/latents.csv": csv_text(written(columns))}
    for preset, found in r.of["attribute"].meta["columns"].items():
        out[f"{name}/candidates_{preset.replace(', ', '_')}.csv"] = csv_text(
            written(found)
        )
    return out


def _summary(
    found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]], report: Report
) -> dict[str, Any]:
    """What result.json holds; no times, so that two runs of one study are the same."""
    cases = {}
    for r, shown in zip(found, report.cases, strict=True):
        effects = r.of["effects"].meta
        cases[r.case.settings.name] = {
            "found": list(shown.found),
            "facts": dict(shown.facts),
            "judge": dict(r.case.judge.identity),
            "attribution": {
                k: v
                for k, v in r.of["attribute"].meta["summary"].items()
                if k != "timings"
            },
            **{
                k: effects[k]
                for k in (
                    "counts",
                    "differences",
                    "signed_counts",
                    "detectable",
                    "base_rates",
                    "settings",
                )
                if k in effects
            },
            "selection": {
                k: v for k, v in r.of["select"].meta.items() if k != "seconds"
            },
            "warnings": list(shown.warnings),
        }
    return {
        "found": list(report.found),
        "cases": cases,
        "convergence": list(shared),
        "cost": dict(report.cost),
        "config": report.config,
        "choices": [dataclasses.asdict(choice) for choice in report.choices],
        "versions": report.versions,
        "stages": dict(report.hashes),
    }
