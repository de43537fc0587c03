"""Tokens of prompts through the model's own chat template, in numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.lm.end_tokens import Ends
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table
from sae_attr.text.example_records import Example
from sae_attr.text.tokenizer import Tokenizer, token_strings

_SHOWN = 600  # characters of a rendered prompt

Prompts = Mapping[str, Mapping[str, Sequence[int]]]
"""Split -> prompt id -> token ids."""


def prompts_table(
    prompts: Prompts, *, max_new: int | Mapping[str, int], context: int
) -> str:
    """Returns how long the prompts of each split are, and whether the longest leaves
    room for an answer.

    Args:
      max_new: tokens of an answer, of all splits or by split.
      context: tokens that the model takes.
    """
    splits = [split for split, ids in prompts.items() if ids]
    lengths = [[len(ids) for ids in prompts[split].values()] for split in splits]
    columns: dict[str, Any] = {
        "prompts for": splits,
        "prompts": [len(counts) for counts in lengths],
        "min tokens": [min(counts) for counts in lengths],
        "median": [int(statistics.median(counts)) for counts in lengths],
        "max": [max(counts) for counts in lengths],
    }
    of_split = dict.fromkeys(splits, max_new) if isinstance(max_new, int) else max_new
    new = [of_split[split] for split in splits]
    columns["new tokens"] = new
    columns["together"] = [max(x) + more for x, more in zip(lengths, new, strict=True)]
    columns["of context"] = [context] * len(splits)
    return text_table(columns, dict.fromkeys(list(columns)[1:], ","))


def example_text(prompts: Prompts, tok: Tokenizer) -> str:
    """Returns the first prompt as the model reads it, on one line."""
    for ids in prompts.values():
        for name, tokens in ids.items():
            return f"prompt {one_line(name, 60)}: {shown_ids(tokens, tok)}"
    return "no prompts"


def shown_ids(ids: Sequence[int] | np.ndarray, tok: Tokenizer) -> str:
    """Returns tokens as text on one line that cannot act on a terminal, cut where it is
    long.
    """
    return one_line("".join(token_strings(tok, ids)), _SHOWN)


def ends_text(stop_ids: Sequence[int], ends: Ends, tok: Tokenizer) -> str:
    """Returns the tokens that end a completion, and which files say so."""
    if not stop_ids:
        return "no token ends a completion: every one has all its new tokens"
    shown = []
    for token, text in zip(stop_ids, token_strings(tok, stop_ids), strict=True):
        sources = [source for source, ids in ends.items() if token in ids]
        named = f" ({', '.join(sources)})" if sources else ""
        shown.append(f"{token} {one_line(text, 40)}{named}")
    return f"a completion ends with {'; '.join(shown)}"


def rows_text(rows: Sequence[Example], tok: Tokenizer) -> str:
    """Returns how long rows of training are and how much of them is learnt, and the
    first of them.
    """
    lengths = [len(row.ids) for row in rows]
    learnt = [int(row.loss_mask.sum()) for row in rows]
    columns = {
        "tokens of": ["rows", "what is learnt of them"],
        "rows": [len(rows)] * 2,
        "min": [min(lengths), min(learnt)],
        "median": [int(statistics.median(counts)) for counts in (lengths, learnt)],
        "max": [max(lengths), max(learnt)],
        "in all": [sum(lengths), sum(learnt)],
    }
    table = text_table(columns, dict.fromkeys(list(columns)[1:], ","))
    return f"{table}\nthe first row: {shown_ids(rows[0].ids, tok)}"
