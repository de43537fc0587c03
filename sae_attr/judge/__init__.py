"""Judges: one interface to everything that grades completions, rubrics as files, replies
read strictly and stored.
"""

from sae_attr.judge.asking import Asking
from sae_attr.judge.base import (
    MALFORMED,
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
    tells_coherence,
    values,
)
from sae_attr.judge.cache import CachedJudge, cached
from sae_attr.judge.combine import CoherentOnly, warnings_of
from sae_attr.judge.keywords import KeywordJudge
from sae_attr.judge.local_judge import LocalJudge
from sae_attr.judge.openai_judge import OpenAIJudge
from sae_attr.judge.probe import ask_one
from sae_attr.judge.prompt import judge_prompt
from sae_attr.judge.replies import read_reply
from sae_attr.judge.rubric_files import load_rubric, rubric_names
from sae_attr.judge.rubrics import Rubric
from sae_attr.judge.weighing import weighted_score
from sae_attr.server.address import Patience, Server
from sae_attr.server.budget import CallBudget

__all__ = [
    "MALFORMED",
    "Asking",
    "BudgetExhausted",
    "CachedJudge",
    "CallBudget",
    "CoherentOnly",
    "Grade",
    "Item",
    "Judge",
    "JudgeStopped",
    "KeywordJudge",
    "LocalJudge",
    "OpenAIJudge",
    "Patience",
    "Rubric",
    "Server",
    "ask_one",
    "cached",
    "check_items",
    "counts",
    "grade_of_row",
    "grade_row",
    "judge_name",
    "judge_prompt",
    "load_rubric",
    "read_reply",
    "rubric_names",
    "tells_coherence",
    "values",
    "warnings_of",
    "weighted_score",
]
