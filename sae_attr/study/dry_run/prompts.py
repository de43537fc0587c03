"""Tokens of prompts through the model's own chat template, in numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sae_attr.lm.end_tokens import Ends
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table
from sae_attr.text.tokenizer import Tokenizer, token_strings

_SHOWN = 600  # characters of a rendered prompt

Prompts = Mapping[str, Mapping[str, Sequence[int]]]
"""Split -> prompt id -> token ids."""


def prompts_table(prompts: Prompts, *, max_new: int, context: int) -> str:
    """Returns how long the prompts of each split are, and whether the longest leaves
    room for an answer.

    Args:
      context: tokens that the model takes.
    """
    splits = [split for split, ids in prompts.items() if ids]
    lengths = [[len(ids) for ids in prompts[split].values()] for split in splits]
    columns = {
        "prompts for": splits,
        "prompts": [len(counts) for counts in lengths],
        "min tokens": [min(counts) for counts in lengths],
        "median": [int(statistics.median(counts)) for counts in lengths],
        "max": [max(counts) for counts in lengths],
        f"max + {max_new} new": [max(counts) + max_new for counts in lengths],
        "of context": [context] * len(splits),
    }
    return text_table(columns, dict.fromkeys(list(columns)[1:], ","))


def example_text(prompts: Prompts, tok: Tokenizer) -> str:
    """Returns the first prompt as the model reads it, on one line."""
    for ids in prompts.values():
        for name, tokens in ids.items():
            text = "".join(token_strings(tok, tokens))
            return f"prompt {one_line(name, 60)}: {one_line(text, _SHOWN)}"
    return "no prompts"


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
