"""Judges: one interface to whoever grades completions, rubrics as files, replies read strictly and kept."""

from sae_attr.judge.base import (
    BudgetExhausted,
    Grade,
    Item,
    Judge,
    JudgeStopped,
    check_items,
    counts,
    grade_of_row,
    grade_row,
    judge_name,
    values,
)

__all__ = [
    "BudgetExhausted",
    "Grade",
    "Item",
    "Judge",
    "JudgeStopped",
    "check_items",
    "counts",
    "grade_of_row",
    "grade_row",
    "judge_name",
    "values",
]
