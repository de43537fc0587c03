"""Files on the latents that are read: JSON, and text for a terminal."""

from __future__ import annotations

import dataclasses

from sae_attr.report.page import CaseReport
from sae_attr.report.reading_text import reading_text
from sae_attr.report.tables import json_text


def reading_files(report: CaseReport) -> dict[str, str]:
    """Returns name -> content: reading.json and reading.txt; {} where nothing is read."""
    if not report.reading:
        return {}
    rows = [dataclasses.asdict(reading) for reading in report.reading]
    return {
        "reading.json": json_text({"latents": rows}),
        "reading.txt": reading_text(report.reading),
    }
