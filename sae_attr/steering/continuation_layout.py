"""Prompts and the texts that may follow them, laid out so that nothing runs twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

Ids = Sequence[int]
_WORTH = 0.8  # a further group of lengths runs at most this share of the tokens


@struct.dataclass
class ContinuationLayout:
    """Prompts with the texts that may follow them; numpy arrays, p prompts, n texts,
    r rows of text, s shared tokens, t further tokens of a prompt, c tokens of a row.

    A row of text serves every text that begins like it. It lacks the last token of its
    text, which is predicted and never read: one row without a token serves all texts of
    one token.

    Args:
      shared_s: int32, the tokens with which all prompts begin; never a whole prompt.
      rest_pt: int32, the prompt's further tokens, 0 behind the end.
      length_p: int32, tokens of the whole prompt.
      rows_prc: int32, 0 behind the end.
      row_length_pr: int32, tokens of the row.
      row_of_pn: int32, the row that serves a text.
      ids_pnc: int32 `[p, n, c + 1]`, tokens of the text, 0 behind the end.
      text_length_pn: int32, 0 where a prompt has fewer texts than another.
    """

    shared_s: Any
    rest_pt: Any
    length_p: Any
    rows_prc: Any
    row_length_pr: Any
    row_of_pn: Any
    ids_pnc: Any
    text_length_pn: Any


def lay_out(
    prompts: Sequence[Ids], texts: Sequence[Sequence[Ids]]
) -> ContinuationLayout:
    """Lays out prompts with their texts.

    Args:
      prompts: token ids, at least one each.
      texts: of every prompt, token ids of each text, at least one each.

    Raises:
      ValueError: no prompt, or one without a token or a text; a text without a token.
    """
    _check_tokens(prompts, texts)
    shared = _shared_tokens(prompts)
    rows = [_text_rows(of_prompt) for of_prompt in texts]
    longest_text = max(len(text) for of_prompt in texts for text in of_prompt)
    p, r, n = len(prompts), max(map(len, rows)), max(map(len, texts))
    layout = ContinuationLayout(
        shared_s=np.array(prompts[0][:shared], np.int32),
        rest_pt=_zeros(p, max(map(len, prompts)) - shared),
        length_p=np.array([len(prompt) for prompt in prompts], np.int32),
        rows_prc=_zeros(p, r, longest_text - 1),
        row_length_pr=_zeros(p, r),
        row_of_pn=_zeros(p, n),
        ids_pnc=_zeros(p, n, longest_text),
        text_length_pn=_zeros(p, n),
    )
    for i, prompt in enumerate(prompts):
        layout.rest_pt[i, : len(prompt) - shared] = prompt[shared:]
        for j, row in enumerate(rows[i]):
            layout.rows_prc[i, j, : len(row)] = row
            layout.row_length_pr[i, j] = len(row)
        for j, text in enumerate(texts[i]):
            layout.ids_pnc[i, j, : len(text)] = text
            layout.text_length_pn[i, j] = len(text)
            layout.row_of_pn[i, j] = _row_of(text, rows[i])
    return layout


def width_groups(prompts: Sequence[Ids], *, most: int = 3) -> list[np.ndarray]:
    """Returns places of prompts in groups of similar length; each group is one layout
    and one compiled program.

    Args:
      prompts: token ids.
      most: groups at most; a further one must save a fifth of the tokens that run.
    """
    best, best_cost = [np.arange(len(prompts))], _tokens_run(prompts)
    for count in range(2, most + 1):
        groups = _by_length(prompts, count)
        cost = sum([_tokens_run([prompts[i] for i in group]) for group in groups])
        if cost <= _WORTH * best_cost:
            best, best_cost = groups, cost
    return best


def _by_length(prompts: Sequence[Ids], count: int) -> list[np.ndarray]:
    """Returns places of prompts in groups of equal size by length, equal lengths
    together.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    edges = np.quantile(lengths, np.arange(1, count + 1) / count, method="higher")
    group_of = np.searchsorted(np.unique(edges), lengths)
    return [np.flatnonzero(group_of == group) for group in np.unique(group_of)]


def _tokens_run(prompts: Sequence[Ids]) -> int:
    """Returns the tokens that one condition runs on a group of prompts, padding among
    them.
    """
    shared, longest = _shared_tokens(prompts), max(map(len, prompts))
    return shared + len(prompts) * (longest - shared)


def _shared_tokens(prompts: Sequence[Ids]) -> int:
    """Returns with how many equal tokens all prompts begin, each at least one longer."""
    shortest = min(map(len, prompts))
    for place, tokens in enumerate(zip(*prompts, strict=False)):
        if len(set(tokens)) > 1:
            return min(place, shortest - 1)
    return shortest - 1


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def _check_tokens(prompts: Sequence[Ids], texts: Sequence[Sequence[Ids]]) -> None:
    if not prompts or len(prompts) != len(texts):
        raise ValueError(
            f"{len(prompts)} prompts with texts of {len(texts)}; give every prompt its "
            "texts, and at least one prompt"
        )
    for i, (prompt, of_prompt) in enumerate(zip(prompts, texts, strict=True)):
        if not len(prompt) or not of_prompt or not min(map(len, of_prompt)):
            raise ValueError(
                f"prompt {i} needs a token, and texts of at least one token each"
            )


def _text_rows(texts: Sequence[Ids]) -> list[tuple[int, ...]]:
    """Returns the rows that serve all texts of a prompt, none the beginning of another."""
    rows: list[tuple[int, ...]] = []
    # Longest first: a row that begins another one is there already.
    for text in sorted(texts, key=len, reverse=True):
        row = tuple(text[:-1])
        if not any(longer[: len(row)] == row for longer in rows):
            rows.append(row)
    return rows


def _row_of(text: Ids, rows: Sequence[tuple[int, ...]]) -> int:
    row = tuple(text[:-1])
    for place, longer in enumerate(rows):
        if longer[: len(row)] == row:
            return place
    raise AssertionError  # _text_rows
