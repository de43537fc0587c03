"""Files on the latents that are read: JSON, and text for a terminal."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae_attr.report.page import CaseReport
from sae_attr.report.reading_text import reading_text
from sae_attr.report.tables import json_text


def reading_files(report: CaseReport) -> dict[str, str]:
    """Returns name -> content: reading.json and reading.txt; {} where nothing is read."""
    if not report.reading:
        return {}
    rows = [dataclasses.asdict(reading) for reading in report.reading]
    test = None if report.reader is None else dataclasses.asdict(report.reader)
    sentences = "".join(f"{sentence}\n" for sentence in reader_findings(report))
    return {
        "reading.json": json_text({"reader": test, "latents": rows}),
        "reading.txt": "\n".join(
            filter(None, [sentences, reading_text(report.reading)])
        ),
    }


def reader_findings(report: CaseReport) -> tuple[str, ...]:
    """Returns the sentences on a reader's descriptions, as the terminal prints them."""
    return report.reader.sentences if report.reader else ()


def reading_summary(report: CaseReport) -> dict[str, Any]:
    """Returns what result.json holds of a reader's descriptions; the rest is in
    reading.json.
    """
    if report.reader is None:
        return {}
    return {"reader": dataclasses.asdict(report.reader)}
