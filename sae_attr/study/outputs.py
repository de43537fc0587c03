"""What a study shows: figures with their numbers, tables, and one page of everything.

No stage stores any of it, so that a changed template, column or drawing shows on the
next run; a picture alone may be that of the run before, where neither its numbers nor
what draws them has changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sae_attr.attribution.roles import COUNTED_ROLES
from sae_attr.comparison_records import Convergence, MethodCount, MethodDifference
from sae_attr.report.conclusion import conclusion
from sae_attr.report.figures import (
    Draw,
    Drawing,
    ablation_figure,
    draw_anew,
    effects_figure,
    plane_figure,
    render,
    roles_figure,
)
from sae_attr.report.page import (
    CaseReport,
    PageContents,
    StageTime,
    Table,
    render_page,
)
from sae_attr.report.sentences import overlap_sentence
from sae_attr.report.tables import csv_text, json_text, versions
from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.case_findings import (
    case_facts,
    case_findings,
    case_warnings,
)
from sae_attr.study.case_results import CaseResults
from sae_attr.study.case_stage import plain
from sae_attr.study.cause_and_lever import plane_numbers
from sae_attr.study.columns import written
from sae_attr.study.figure_numbers import (
    ablated_counts,
    ablated_numbers,
    effect_numbers,
)
from sae_attr.study.latent_table import latent_table, steered_latents
from sae_attr.study.open_choices import choices
from sae_attr.study.probe_files import (
    probe_drawings,
    probe_findings,
    probe_summary,
    probe_tables,
)
from sae_attr.study.probe_results import specificity, unsteered_rates
from sae_attr.study.reading import first_latents, reader_test
from sae_attr.study.reading_files import reader_findings, reading_files, reading_summary
from sae_attr.study.role_numbers import role_numbers
from sae_attr.study.sampled_results import sampled_check
from sae_attr.study.screen_results import screen_section, screen_table
from sae_attr.study.stages import dictionaries
from sae_attr.text.rows import ROLES

Files = dict[str, bytes | str]
"""Path in the workdir -> contents."""

_COSTS = ("samples", "tokens", "graded", "resampled", "exact rows")
_EFFECTS_IN_RESULT = (
    "counts",
    "differences",
    "signed_counts",
    "detectable",
    "base_rates",
    "settings",
)


@dataclass(frozen=True)
class Shown:
    """Holds what a study shows: its files, and its findings in sentences (none where a
    stage that the page needs is not done).
    """

    files: Files
    sentences: tuple[str, ...] = ()


def show(
    cases: Sequence[Case],
    stages: Sequence[str],
    shared: Sequence[str],
    results: Mapping[str, Result],
    draw: Draw = draw_anew,
) -> Shown:
    """Draws all that the results allow: the figures of a case once its effects are
    known, the page once all is done.

    Args:
      stages: of each case, without its name.
      shared: stages of several cases together.
      results: stage -> result, of those that are done.
      draw: draws a figure, unless that was done before.
    """
    files: Files = {}
    for case in cases:
        done = _of_case(case, stages, results)
        if "effects" in done:
            files |= figures(CaseResults(case, done), draw)
    needed = set(shared)
    for case in cases:
        needed |= {f"{case.settings.name}.{stage}" for stage in stages}
    if not needed <= results.keys():
        return Shown(files)
    pages = page(cases, stages, shared, results, draw)
    return Shown(files | pages.files, pages.sentences)


def _of_case(
    case: Case, stages: Sequence[str], results: Mapping[str, Result]
) -> dict[str, Result]:
    """Returns a case's results by stage, those that are done."""
    done = {}
    for stage in stages:
        result = results.get(f"{case.settings.name}.{stage}")
        if result is not None:
            done[stage] = result
    return done


# ---- figures -------------------------------------------------------------------------


def figures(results: CaseResults, draw: Draw = draw_anew) -> Files:
    """Returns the figures of a case as SVG and PNG, each with its numbers as JSON.

    Args:
      results: the effects and what they read are among them.
    """
    name = results.case.settings.name
    numbers = effect_numbers(results)
    drawings = {"effects": Drawing(effects_figure, numbers)}
    if results.of["effects"].meta["signed_panels"]:
        numbers = effect_numbers(results, signed=True)
        drawings["effects_gradient_signed"] = Drawing(effects_figure, numbers)
    ablated = ablated_numbers(results)
    if ablated is not None:
        drawings["effects_of_ablation"] = Drawing(effects_figure, ablated)
    numbers = plane_numbers(results)
    drawings["plane"] = Drawing(plane_figure, numbers)
    if "roles" in results.of:
        numbers = role_numbers(results)
        drawings["roles"] = Drawing(roles_figure, numbers)
    ablation = results.of["attribute"].meta["ablation"]
    if ablation is not None:
        drawings["attribution_vs_ablation"] = Drawing(ablation_figure, ablation)
    drawings |= probe_drawings(
        specificity(results), sampled_check(results), screen_section(results)
    )
    # The numbers beside the pictures, so that they can be drawn anew in another style.
    files: Files = {}
    for title, drawing in drawings.items():
        for suffix, data in render(drawing, draw).items():
            files[f"figures/{name}.{title}.{suffix}"] = data
    return files


# ---- page ----------------------------------------------------------------------------


def page(
    cases: Sequence[Case],
    stages: Sequence[str],
    shared: Sequence[str],
    results: Mapping[str, Result],
    draw: Draw = draw_anew,
) -> Shown:
    """Returns report.html, the tables of every case as CSV, and result.json; and the
    findings.

    Args:
      stages, shared, results, draw: of `show`, with every result there.
    """
    of_cases = []
    for case in cases:
        of_cases.append(CaseResults(case, _of_case(case, stages, results)))
    convergence: list[Mapping[str, Any]] = []
    for name in shared:
        convergence += results[name].meta["convergence"]
    contents = _contents(of_cases, convergence)
    files: Files = {"report.html": render_page(contents, draw)}
    for case_results, report in zip(of_cases, contents.cases, strict=True):
        files |= _tables(case_results, report.latents)
        beside = {**probe_tables(report), **reading_files(report)}
        for name, content in beside.items():
            files[f"{report.id}/{name}"] = content
    files["result.json"] = json_text(_summary(of_cases, convergence, contents))
    sentences = list(contents.findings)
    for report in contents.cases:
        sentences += (*report.findings, *probe_findings(report))
        sentences += reader_findings(report)
    return Shown(files, tuple(sentences))


def _contents(
    of_cases: Sequence[CaseResults], convergence: Sequence[Mapping[str, Any]]
) -> PageContents:
    """Gathers the whole page."""
    study = of_cases[0].case.study
    cases = tuple(map(_case_report, of_cases))
    times, hashes, tokens = [], {}, {}
    for results in of_cases:
        for stage, result in results.of.items():
            name = f"{results.case.settings.name}.{stage}"
            seconds = float(result.meta.get("seconds", 0.0))
            times.append(StageTime(name, seconds, stage_cost(result)))
            hashes[name] = result.key.rpartition("-")[2]
    for case in cases:
        for row in case.latents.rows:
            tokens[row["latent"]] = tuple(row["tokens"])
    totals = {name: sum(int(t.cost.get(name, 0)) for t in times) for name in _COSTS}
    records = tuple(map(Convergence.load, convergence))
    return PageContents(
        title="Which latents caused it",
        subtitle=" · ".join(results.case.settings.title for results in of_cases),
        cases=cases,
        findings=(
            *chain.from_iterable(map(conclusion, cases)),
            *map(overlap_sentence, records),
        ),
        convergence=records,
        latent_tokens=tokens,
        stages=tuple(times),
        cost=totals,
        config=plain(study),
        versions=versions(),
        hashes=hashes,
        choices=choices(of_cases[0].case),
    )


def stage_cost(result: Result) -> dict[str, int]:
    """Returns how many completions and tokens a stage sampled, how many answers it
    graded, and how many rates it read from exact probabilities.
    """
    meta, cost = result.meta, {}
    # A pass over a corpus has tokens too, but samples none.
    if "samples" in meta:
        cost = _fields_of(meta, ("samples", "tokens"))
    if "exact_rows" in meta:
        cost["exact rows"] = meta["exact_rows"]
    counts = meta.get("counts", {})
    if "labels" in counts:
        cost["graded"] = sum(counts["labels"].values())
        cost["resampled"] = counts["resampled"]
    return cost


def _case_report(results: CaseResults) -> CaseReport:
    """Gathers one case's part of the page."""
    case, meta = results.case, results.of["effects"].meta
    signed_effects = None
    if meta["signed_panels"]:
        signed_effects = effect_numbers(results, signed=True)
    return CaseReport(
        id=case.settings.name,
        title=case.settings.title,
        behaviour=case.settings.behaviour,
        effects=effect_numbers(results),
        latents=latent_table(results),
        question=case.settings.question,
        findings=case_findings(results),
        facts=case_facts(results),
        counts=tuple(MethodCount(**row) for row in meta["counts"]),
        differences=tuple(map(MethodDifference.load, meta["differences"])),
        detectable=meta.get("detectable", {}),
        signed_effects=signed_effects,
        plane=plane_numbers(results),
        ablated=ablated_numbers(results),
        ablated_counts=ablated_counts(results),
        roles=role_numbers(results),
        screen=screen_section(results),
        unsteered=unsteered_rates(results),
        specificity=specificity(results),
        sampled=sampled_check(results),
        ablation=results.of["attribute"].meta["ablation"],
        steered=tuple(steered_latents(results)),
        reading=tuple(first_latents(results)),
        reader=reader_test(results),
        warnings=tuple(case_warnings(results)),
    )


# ---- files ---------------------------------------------------------------------------


def _tables(results: CaseResults, table: Table) -> Files:
    """Returns latents.csv of a case, and the attribution's candidates with every
    statistic.
    """
    name = results.case.settings.name
    keys = [column.key for column in table.columns]
    # Columns that a page has no room for: there they are a figure, and in the section
    # on reading.
    keys += [f"from_{ROLES[role]}" for role in COUNTED_ROLES]
    keys += ["raised", "lowered"]
    columns = {key: [row.get(key) for row in table.rows] for key in keys}
    files: Files = {f"{name}/latents.csv": csv_text(written(columns))}
    if results.has("screen"):
        files[f"{name}/screen.csv"] = screen_table(results)
    for preset, candidates in results.of["attribute"].meta["columns"].items():
        path = f"{name}/candidates_{preset.replace(', ', '_')}.csv"
        files[path] = csv_text(written(candidates))
    return files


def _summary(
    of_cases: Sequence[CaseResults],
    convergence: Sequence[Mapping[str, Any]],
    contents: PageContents,
) -> dict[str, Any]:
    """Returns what result.json holds; no times, so that two runs of one study are the
    same.
    """
    cases = {}
    for results, report in zip(of_cases, contents.cases, strict=True):
        effects = results.of["effects"].meta
        summary = results.of["attribute"].meta["summary"]
        selection = results.of["select"].meta
        cases[report.id] = {
            "findings": list(report.findings),
            "facts": dict(report.facts),
            "judge": dict(results.case.judge.identity),
            "attribution": _without(summary, "timings"),
            **_fields_of(effects, _EFFECTS_IN_RESULT),
            "ablated": [dataclasses.asdict(count) for count in report.ablated_counts],
            "roles": report.roles,
            "selection": _without(selection, "seconds"),
            **_dictionaries(results),
            **probe_summary(report),
            **reading_summary(report),
            "warnings": list(report.warnings),
        }
    return {
        "findings": list(contents.findings),
        "cases": cases,
        "convergence": list(convergence),
        "cost": dict(contents.cost),
        "config": contents.config,
        "choices": [dataclasses.asdict(choice) for choice in contents.choices],
        "versions": contents.versions,
        "stages": dict(contents.hashes),
    }


def _dictionaries(results: CaseResults) -> dict[str, Any]:
    """Returns how further dictionaries were ranked; {} without any."""
    if not results.case.dictionaries:
        return {}
    return _fields_of(results.of[dictionaries.NAME].meta, (dictionaries.NAME,))


def _fields_of(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns some of the values by name, those that are there."""
    fields = {}
    for name in names:
        if name in values:
            fields[name] = values[name]
    return fields


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns all values but one."""
    rest = dict(values)
    rest.pop(name, None)
    return rest
