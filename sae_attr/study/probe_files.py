"""Figures, tables and JSON of what stands beside effects."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae_attr.report.figures import Drawing
from sae_attr.report.figures.sampled import sampled_figure
from sae_attr.report.figures.screen import screen_figure
from sae_attr.report.figures.specificity import specificity_figure
from sae_attr.report.page.probe_records import (
    SampledCheck,
    Screen,
    Specificity,
    UnsteeredRates,
)
from sae_attr.report.page.records import CaseReport
from sae_attr.report.tables import columns_from_rows, csv_text


def probe_drawings(
    specificity: Specificity | None,
    sampled: SampledCheck | None,
    screen: Screen | None,
) -> dict[str, Drawing]:
    """Returns title -> figure of the sections that are there."""
    drawings = {}
    if screen:
        drawings["screen"] = Drawing(screen_figure, screen.numbers)
    for numbers in specificity.figures if specificity else ():
        title = f"specificity_{numbers['direction']}"
        drawings[title] = Drawing(specificity_figure, numbers)
    if sampled and sampled.numbers:
        drawings["sampled_check"] = Drawing(sampled_figure, sampled.numbers)
    return drawings


def probe_tables(report: CaseReport) -> dict[str, str]:
    """Returns name -> CSV: specificity, unsteered_rates, sampled_check; those that the
    study has.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    if report.specificity:
        rows["specificity"] = _specificity_rows(report.specificity)
    if report.unsteered:
        rows["unsteered_rates"] = _rate_rows(report.unsteered)
    if report.sampled and report.sampled.numbers:
        rows["sampled_check"] = []
        for panel in report.sampled.numbers["panels"]:
            for point in panel["points"]:
                row = {"direction": panel["direction"], **point}
                rows["sampled_check"].append(row)
    tables = {}
    for name, of_table in rows.items():
        tables[f"{name}.csv"] = csv_text(columns_from_rows(of_table))
    return tables


def _specificity_rows(specificity: Specificity) -> list[dict[str, Any]]:
    """Returns a row per direction, method, latent and set of prompts."""
    rows = []
    for numbers in specificity.figures:
        for latent in numbers["rows"]:
            for at, name in enumerate(numbers["sets"]):
                row = {
                    "direction": numbers["direction"],
                    "method": latent["method"],
                    "latent": latent["latent"],
                    "strength": latent["strength"],
                    "prompts": name,
                    "unsteered": numbers["base"][at],
                    "change": latent["change"][at],
                    "low": latent["low"][at],
                    "high": latent["high"][at],
                    "nats": latent["nats"],
                }
                rows.append(row)
    return rows


def _rate_rows(unsteered: UnsteeredRates) -> list[dict[str, Any]]:
    """Returns a row per set of prompts and topic."""
    rows = []
    for rate in unsteered.rates:
        row: dict[str, Any] = {
            "prompts": rate.name,
            "topic": rate.topic or "all",
            "trained": rate.trained,
            "number": rate.prompts,
        }
        for name in ("rate", "other", "difference"):
            estimate = getattr(rate, name)
            row[name] = estimate.value
            row[f"{name}_low"] = estimate.low
            row[f"{name}_high"] = estimate.high
        rows.append(row)
    return rows


def probe_summary(report: CaseReport) -> dict[str, Any]:
    """Returns what result.json holds of the sections that are there."""
    summary: dict[str, Any] = {}
    if report.screen:
        values = dataclasses.asdict(report.screen)
        values["latents"] = values.pop("numbers")
        summary["screen"] = values
    if report.unsteered:
        summary["unsteered"] = dataclasses.asdict(report.unsteered)
    if report.specificity:
        values = dataclasses.asdict(report.specificity)
        values["latents"] = values.pop("figures")
        summary["specificity"] = values
    if report.sampled:
        values = dataclasses.asdict(report.sampled)
        values["latents"] = values.pop("numbers")
        summary["sampled_check"] = values
    return summary


def probe_findings(report: CaseReport) -> tuple[str, ...]:
    """Returns the sentences of the sections, as the terminal prints them."""
    sentences: list[str] = []
    sections = (report.screen, report.unsteered, report.specificity, report.sampled)
    for section in sections:
        if section is not None:
            sentences += section.sentences
    return tuple(sentences)
