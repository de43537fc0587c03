"""One self-contained HTML page of case studies: `render_page(PageContents(...))`."""

from sae_attr.report.page.records import (
    CaseReport,
    Choice,
    Column,
    Comparison,
    Completion,
    LatentReading,
    PageContents,
    ShadedPassage,
    StageTime,
    SteeredLatent,
    Table,
)
from sae_attr.report.page.render import render_page

__all__ = [
    "CaseReport",
    "Choice",
    "Column",
    "Comparison",
    "Completion",
    "LatentReading",
    "PageContents",
    "ShadedPassage",
    "StageTime",
    "SteeredLatent",
    "Table",
    "render_page",
]
