"""One self-contained HTML page of case studies: `render_page(PageContents(...))`."""

from sae_attr.report.description_records import Description, ReaderTest, SourceTest
from sae_attr.report.page.reading_records import (
    LatentReading,
    ShadedPassage,
    TokenEffect,
)
from sae_attr.report.page.records import (
    CaseReport,
    Choice,
    Column,
    Comparison,
    Completion,
    PageContents,
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
    "Description",
    "LatentReading",
    "PageContents",
    "ReaderTest",
    "ShadedPassage",
    "SourceTest",
    "StageTime",
    "SteeredLatent",
    "Table",
    "TokenEffect",
    "render_page",
]
