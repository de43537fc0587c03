"""What a study shows: figures with their numbers, tables, and one page of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.case_study.case import Case, plain
from sae_attr.case_study.latents import latent_table, steered_latents
from sae_attr.case_study.results import CaseResults
from sae_attr.case_study.settings import DIRECTIONS
from sae_attr.case_study.words import case_facts, case_sentences, case_warnings, choices, study_sentences
from sae_attr.figures import ablation_figure, effects_figure, render
from sae_attr.page import (
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
from sae_attr.report import csv_text, json_text, versions
from sae_attr.store import Made, Result


def stored(files: Mapping[str, bytes | str]) -> dict[str, np.ndarray]:
    """Files as arrays of a stage: name -> bytes."""
    return {
        f"file:{name}": np.frombuffer(data.encode() if isinstance(data, str) else data, np.uint8)
        for name, data in files.items()
    }


def files_of(results: Mapping[str, Result]) -> dict[str, bytes]:
    """The files that stages made: path in the workdir -> contents."""
    return {
        name.removeprefix("file:"): np.asarray(array).tobytes()
        for result in results.values()
        for name, array in result.arrays.items()
        if name.startswith("file:")
    }


# ---- figures ---------------------------------------------------------------------------------------------------------


def effect_numbers(case: Case, panels: Mapping[str, Any], *, signed: bool = False) -> dict[str, Any]:
    """What `figures.effects_figure` takes."""
    return {"behaviour": case.settings.behaviour, "signed": signed, "panels": [panels[d] for d in DIRECTIONS]}


def figures(case: Case, attribution: Result, effects: Result) -> Made:
    """Figures of a case as SVG and PNG, each with its numbers as JSON; and its scores."""
    meta, name = effects.meta, case.settings.name
    drawn = {"effects": (effects_figure, effect_numbers(case, meta["panels"]))}
    if meta["signed_panels"]:
        drawn["effects_gradient_signed"] = (effects_figure, effect_numbers(case, meta["signed_panels"], signed=True))
    if attribution.meta["ablation"] is not None:
        drawn["attribution_vs_ablation"] = (ablation_figure, attribution.meta["ablation"])
    files: dict[str, bytes | str] = {}
    for figure, (draw, numbers) in drawn.items():
        files |= {f"figures/{name}.{figure}.{suffix}": data for suffix, data in render(draw(numbers), numbers).items()}
    return stored(files), {"figures": sorted(drawn)}


# ---- page ------------------------------------------------------------------------------------------------------------


def page(cases: Sequence[Case], stages: Sequence[str], *read: Result) -> Made:
    """report.html, the tables of every case as CSV, result.json.

    `read`: the results of `stages` of one case after the other, then of what they share.
    """
    found = [
        CaseResults(case, dict(zip(stages, read[i * len(stages) : (i + 1) * len(stages)], strict=True)))
        for i, case in enumerate(cases)
    ]
    shared = [row for result in read[len(cases) * len(stages) :] for row in result.meta["convergence"]]
    report = _report(found, shared)
    files: dict[str, bytes | str] = {"report.html": render_page(report)}
    for results, shown in zip(found, report.cases, strict=True):
        files |= _tables(results, shown.latents)
    files["result.json"] = json_text(_summary(found, shared, report))
    return stored(files), {"found": list(report.found), "cases": {c.id: list(c.found) for c in report.cases}}


def page_fields(cases: Sequence[Case]) -> dict[str, Any]:
    """The config fields that the page declares."""
    return {"study": plain(cases[0].study), "versions": versions()}


def _report(found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]]) -> Report:
    study = found[0].case.study
    times = [
        StageTime(f"{r.case.settings.name}.{name}", "made", float(result.meta.get("seconds", 0.0)), _cost(result))
        for r in found
        for name, result in r.of.items()
    ]
    totals = {k: sum(int(t.cost.get(k, 0)) for t in times) for k in ("samples", "tokens", "graded", "resampled")}
    cases = tuple(_case_report(r) for r in found)
    tokens = {int(row["latent"]): tuple(row["tokens"]) for case in cases for row in case.latents.rows}
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
        cost |= {"graded": sum(counts["labels"].values()), "resampled": counts["resampled"]}
    return cost


def _case_report(r: CaseResults) -> CaseReport:
    meta, settings = r.of["effects"].meta, r.case.settings
    signed = effect_numbers(r.case, meta["signed_panels"], signed=True) if meta["signed_panels"] else None
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
        differences=tuple(MethodDifference(**_tuples(row)) for row in meta["differences"]),
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
    return Convergence(**{**_tuples(row), "firsts": tuple(FirstLatent(**first) for first in row["firsts"])})


# ---- files -----------------------------------------------------------------------------------------------------------


def _tables(r: CaseResults, table: Table) -> dict[str, bytes | str]:
    """latents.csv of a case, and the attribution's candidates with every statistic."""
    name = r.case.settings.name
    cell = lambda value: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    columns = {c.key: [cell(row.get(c.key)) for row in table.rows] for c in table.columns}
    out: dict[str, bytes | str] = {f"{name}/latents.csv": csv_text(columns)}
    for preset, found in r.of["attribute"].meta["columns"].items():
        out[f"{name}/candidates_{preset.replace(', ', '_')}.csv"] = csv_text(found)
    return out


def _summary(found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]], report: Report) -> dict[str, Any]:
    """What result.json holds; no times, so that two runs of one study are the same."""
    cases = {}
    for r, shown in zip(found, report.cases, strict=True):
        effects = r.of["effects"].meta
        cases[r.case.settings.name] = {
            "found": list(shown.found),
            "facts": dict(shown.facts),
            "judge": dict(r.case.judge.identity),
            "attribution": {k: v for k, v in r.of["attribute"].meta["summary"].items() if k != "timings"},
            **{
                k: effects[k]
                for k in ("counts", "differences", "signed_counts", "detectable", "base_rates", "settings")
                if k in effects
            },
            "selection": {k: v for k, v in r.of["select"].meta.items() if k != "seconds"},
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


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    return {"figures": {"title": case.settings.title, "behaviour": case.settings.behaviour}}
