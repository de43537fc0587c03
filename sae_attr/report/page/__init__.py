"""One self-contained HTML page of case studies: `render_page(Report(...))`."""

from sae_attr.report.page.contents import (
    CaseReport,
    Choice,
    Column,
    Comparison,
    Completion,
    Convergence,
    FirstLatent,
    MethodCount,
    MethodDifference,
    Picture,
    Report,
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
    "Convergence",
    "FirstLatent",
    "MethodCount",
    "MethodDifference",
    "Picture",
    "Report",
    "StageTime",
    "SteeredLatent",
    "Table",
    "render_page",
]
