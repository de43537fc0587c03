"""Prompts and the texts that may follow them, laid out so that nothing runs twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import struct

Ids = Sequence[int]


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
    prompts: Sequence[Ids],
    texts: Sequence[Sequence[Ids]],
    *,
    shared: int | None = None,
    width: int = 0,
) -> ContinuationLayout:
    """Lays out prompts with their texts.

    Args:
      prompts: token ids, at least one each.
      texts: of every prompt, token ids of each text, at least one each.
      shared: tokens with which all prompts begin, fewer than any has; default as many
        as are equal.
      width: least number of further tokens, padding among them.

    Raises:
      ValueError: no prompt, or one without a token or a text; a text without a token.
    """
    _check_tokens(prompts, texts)
    if shared is None:
        shared = shared_tokens(prompts)
    rows = [_text_rows(of_prompt) for of_prompt in texts]
    longest_text = max(len(text) for of_prompt in texts for text in of_prompt)
    p, r, n = len(prompts), max(map(len, rows)), max(map(len, texts))
    layout = ContinuationLayout(
        shared_s=np.array(prompts[0][:shared], np.int32),
        rest_pt=_zeros(p, max(width, max(map(len, prompts)) - shared)),
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


@dataclass(frozen=True, eq=False)
class LayoutPart:
    """A few prompts of similar length, laid out together.

    Args:
      places: of these prompts among all.
      layout: theirs; the last one is repeated where parts of equal size need it.
    """

    places: np.ndarray
    layout: ContinuationLayout


def in_parts(
    prompts: Sequence[Ids],
    texts: Sequence[Sequence[Ids]],
    *,
    most: int,
    longest_row: int,
) -> list[LayoutPart]:
    """Lays out prompts a few at a time, by their length, with what all share cut off
    from each.

    The shapes of parts are few: a compiled program serves other parts, and parts of
    other prompts.

    Args:
      prompts, texts: as for `lay_out`.
      most: prompts of a part.
      longest_row: tokens of a prompt and a text that padding must not exceed.
    """
    shared = shared_tokens(prompts)
    behind = max(len(text) for of_prompt in texts for text in of_prompt)
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    size = min(most, len(prompts))
    parts = []
    for start in range(0, len(prompts), size):
        places = order[start : start + size]
        longest = len(prompts[places[-1]])
        room = max(longest, longest_row - behind)
        width = min(_rounded(longest - shared), room - shared)
        rows = np.pad(places, (0, size - len(places)), mode="edge")
        layout = lay_out(
            [prompts[i] for i in rows],
            [texts[i] for i in rows],
            shared=shared,
            width=width,
        )
        parts.append(LayoutPart(places, layout))
    return parts


def _rounded(width: int) -> int:
    """Returns a width rounded up to one of at most eight between powers of two."""
    step = max(4, 2 ** (width.bit_length() - 4))
    return width + -width % step


def shared_tokens(prompts: Sequence[Ids]) -> int:
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
