"""Token arrays of pairs and corpora: rows, batches, and the roles and masks of every
position.

A prompt and its completion are rendered and encoded together once and split by
character offset: a token that straddles the border belongs to the completion (encoding
a completion alone adds a space in SentencePiece). Token ids that a record gives win, so
sampled completions are never encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct

from sae_attr.text.chat import Message, prompt_text
from sae_attr.text.masks import REASONS, Masks, check_exclude
from sae_attr.text.pairs import Pair, Prompt
from sae_attr.text.tokenizer import (
    Span,
    Tokenizer,
    adds_bos,
    check_ids,
    encode,
    encode_many,
    leading_bos,
    token_strings,
)

# Codes are positions in the tuple. 'last' is the final prompt token, 'template'
# chat-template text and special tokens inside the prompt, 'user' the text of the
# messages or of a plain prompt, 'bos' a BOS at the front only.
ROLES = ("pad", "bos", "template", "user", "last", "completion")
SCOPES = ("prompt", "completion", "all")
PAD, BOS, TEMPLATE, USER, LAST, COMPLETION = range(len(ROLES))

_MAX_SHAPES = 4  # compiled programs per data set


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt with one completion as tokens.

    Args:
      ids: int32 [t].
      n_prompt: tokens of the prompt, BOS included; ids[n_prompt:] is the completion.
      roles: int8 [t], codes of `ROLES`.
      special: bool [t], ids that are special tokens (BOS among them).
      pair: index in the list of pairs.
      side: +1 positive, -1 negative.
      completion: index within the side.
      masked: bool [t], tokens that never count, whatever the scope: the first k,
        attention sinks; None: no such token.
    """

    ids: np.ndarray
    n_prompt: int
    roles: np.ndarray
    special: np.ndarray
    pair: int
    side: int
    completion: int
    masked: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Encoded:
    """The rows of all pairs (pair by pair, positives first) and how many of them have a
    straddling token.
    """

    rows: list[Row]
    straddling: int


@struct.dataclass
class Batch:
    """Rows of one fixed shape; a pytree, to be passed to jitted functions.

    Args:
      tokens_bt: int32, padded on the right with 0.
      valid_bt: bool, False on padding; a whole row of padding is possible.
      completion_bt: bool, the completion's own tokens.
      target_bc: int32, positions in the row of the completion's tokens, padded with 0.
      target_valid_bc: bool, False on the padding of `target_bc`.
    """

    tokens_bt: Any
    valid_bt: Any
    completion_bt: Any
    target_bc: Any
    target_valid_bc: Any


# ---- encoding pairs ------------------------------------------------------------------


def encode_pairs(
    pairs: Sequence[Pair],
    tok: Tokenizer,
    *,
    context: int,
    path: str | Path,
    prepend_bos: bool | None = None,
) -> Encoded:
    """Token rows of all completions of all pairs.

    Args:
      pairs: as read from `path`, which is used in messages.
      tok: the model's tokenizer.
      context: the most tokens that a row may have.
      prepend_bos: True puts BOS in front unless it stands there; False adds none (one
        that a template writes stays); None leaves it to the chat template for messages
        (as transformers' apply_chat_template does) and to the tokenizer for plain
        prompts. Given token ids are left as they are unless True.

    Raises:
      ValueError: with file and line: a row longer than `context`, no prompt token, a
        completion without tokens, given ids beyond the vocabulary or beginning with two
        BOS, messages that the chat template refuses.
    """
    rows: list[Row] = []
    straddling = 0
    for index, pair in enumerate(pairs):
        where = f"{path}:{pair.line}"
        try:
            prompt = _render_prompt(pair, tok, prepend_bos)
            for side, texts, ids in (
                (1, pair.positives, pair.positive_ids),
                (-1, pair.negatives, pair.negative_ids),
            ):
                for k, completion in enumerate(ids or texts):
                    row, straddles = _row(prompt, completion, tok, (index, side, k))
                    _check_row(row, context)
                    rows.append(row)
                    straddling += straddles
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return Encoded(rows=rows, straddling=straddling)


def encode_prompt(
    prompt: Prompt | Pair, tok: Tokenizer, *, prepend_bos: bool | None = None
) -> list[int]:
    """Token ids of a prompt alone, to be completed; BOS as in `encode_pairs`, and a
    last assistant message is continued.

    Raises ValueError, with the prompt's id, for a prompt without tokens, ids that the
    model's embedding (or the vocabulary) lacks, messages that the chat template
    refuses.
    """
    try:
        if prompt.prompt_ids is not None:
            ids = list(_given_prompt(prompt, tok, prepend_bos is True).ids)
        else:
            text = _text_prompt(prompt.prompt, tok, prepend_bos)
            ids = encode(tok, text.text, add_bos=text.add_bos)[0]
        if not ids:
            raise ValueError(
                "it has no token; begin it with BOS (prepend_bos=True) or fill it in"
            )
    except ValueError as error:
        line = f" (line {prompt.line})" if prompt.line else ""
        raise ValueError(f"prompt {prompt.id!r}{line}: {error}") from error
    return ids


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt as text with the mask of its message text [characters], or as token ids
    with their roles.
    """

    text: str
    is_user: np.ndarray
    add_bos: bool
    ids: tuple[int, ...] = ()
    roles: np.ndarray | None = None


def _render_prompt(pair: Pair, tok: Tokenizer, prepend_bos: bool | None) -> _Prompt:
    if pair.prompt_ids is not None:
        return _given_prompt(pair, tok, prepend_bos is True)
    prompt = _text_prompt(pair.prompt, tok, prepend_bos)
    if not pair.positive_ids:
        return prompt
    ids, offsets = encode(tok, prompt.text, add_bos=prompt.add_bos)
    return _Prompt(
        prompt.text,
        prompt.is_user,
        False,
        tuple(ids),
        _prompt_roles(ids, offsets, prompt.is_user, tok),
    )


def _text_prompt(
    prompt: str | tuple[Message, ...], tok: Tokenizer, prepend_bos: bool | None
) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(
            prompt,
            np.ones(len(prompt), bool),
            adds_bos(tok) if prepend_bos is None else prepend_bos,
        )
    text, spans = prompt_text(tok, prompt)
    is_user = np.zeros(len(text), bool)
    for start, end in spans:
        is_user[start:end] = True
    return _Prompt(text, is_user, prepend_bos is True)


def _given_prompt(pair: Prompt | Pair, tok: Tokenizer, prepend_bos: bool) -> _Prompt:
    """Given ids; their roles come from the record's own prompt where that encodes to
    the same ids.
    """
    assert pair.prompt_ids is not None
    ids = list(pair.prompt_ids)
    check_ids(tok, ids)
    if leading_bos(tok, ids) > 1:
        raise ValueError(
            f"'prompt_ids' begins with BOS ({tok.bos_id}) more than once; remove one"
        )
    if prepend_bos and not leading_bos(tok, ids):
        ids = [*encode(tok, "", add_bos=True)[0], *ids]
    offsets, is_user = [(0, 1)] * len(ids), np.ones(1, bool)
    with suppress(
        ValueError
    ):  # a template that refuses the messages is no hindrance: the ids are given
        prompt = _text_prompt(pair.prompt, tok, leading_bos(tok, ids) > 0)
        text_ids, text_offsets = encode(tok, prompt.text, add_bos=prompt.add_bos)
        if text_ids == ids:
            offsets, is_user = text_offsets, prompt.is_user
    return _Prompt(
        "", is_user, False, tuple(ids), _prompt_roles(ids, offsets, is_user, tok)
    )


_Key = tuple[int, int, int]  # pair, side, completion


def _row(
    prompt: _Prompt, completion: str | Sequence[int], tok: Tokenizer, key: _Key
) -> tuple[Row, bool]:
    straddles = False
    if isinstance(completion, str):
        ids, offsets = encode(tok, prompt.text + completion, add_bos=prompt.add_bos)
        border = len(prompt.text)
        n_prompt = next(
            (t for t, (_, end) in enumerate(offsets) if end > border), len(ids)
        )
        straddles = n_prompt < len(ids) and offsets[n_prompt][0] < border
        prompt_roles = _prompt_roles(
            ids[:n_prompt], offsets[:n_prompt], prompt.is_user, tok
        )
    else:
        assert prompt.roles is not None
        ids = [*prompt.ids, *completion]
        n_prompt = len(prompt.ids)
        prompt_roles = prompt.roles
        check_ids(tok, ids)
    roles = np.full(len(ids), COMPLETION, np.int8)
    roles[:n_prompt] = prompt_roles
    pair, side, k = key
    return Row(
        np.asarray(ids, np.int32), n_prompt, roles, is_special(ids, tok), pair, side, k
    ), straddles


def is_special(ids: Sequence[int], tok: Tokenizer) -> np.ndarray:
    """Returns which token ids are special tokens of the tokenizer, bool `[t]`."""
    return np.fromiter((i in tok.special_ids for i in ids), bool, len(ids))


def _prompt_roles(
    ids: Sequence[int], offsets: Sequence[Span], is_user: np.ndarray, tok: Tokenizer
) -> np.ndarray:
    """int8 [t]: a token is the user's if any character of it is, and special tokens
    never are.
    """
    roles = np.full(len(ids), TEMPLATE, np.int8)
    for t, (start, end) in enumerate(offsets):
        if ids[t] not in tok.special_ids and is_user[start:end].any():
            roles[t] = USER
    roles[-1:] = LAST
    roles[: leading_bos(tok, ids[:1])] = BOS  # after LAST: a prompt of BOS alone is BOS
    return roles


def _check_row(row: Row, context: int) -> None:
    name = f"{'positive' if row.side > 0 else 'negative'} completion {row.completion}"
    if row.n_prompt == 0:
        raise ValueError(
            f"the prompt of {name} has no token to predict from; set prepend_bos=True "
            "or fill it in"
        )
    if row.n_prompt == len(row.ids):
        raise ValueError(
            f"{name} gives no token after its prompt of {row.n_prompt} tokens; fill it "
            "in"
        )
    if len(row.ids) > context:
        raise ValueError(
            f"{name} has {len(row.ids)} tokens with its prompt but the context is "
            f"{context}; shorten the record or "
            "raise the context"
        )


# ---- batches -------------------------------------------------------------------------


def batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    multiple: int = 32,
    context: int | None = None,
) -> list[tuple[Batch, np.ndarray]]:
    """Packs rows of similar length into at most four fixed shapes; every row stands in
    exactly one batch.

    Lengths are rounded up to `multiple` (but not beyond `context`), completion lengths
    to 8. Only the last batch has empty rows: a group that does not fill its last batch
    hands the rest to the next longer group. Within a group rows keep their order, so
    that the completions of a pair stay close.

    Returns:
      (batch, row index int64 [b], -1 for an empty row) for every batch, short rows
      first.
    """
    if not rows:
        return []
    lengths = np.array([len(row.ids) for row in rows])
    widths = _widths(lengths, multiple, context)
    groups = np.searchsorted(widths, lengths)
    out: list[tuple[Batch, np.ndarray]] = []
    waiting = np.array([], np.int64)
    for k, width in enumerate(widths):
        waiting = np.sort(np.concatenate([waiting, np.flatnonzero(groups == k)]))
        count = (
            len(waiting)
            if k == len(widths) - 1
            else len(waiting) // batch_size * batch_size
        )
        used, waiting = waiting[:count], waiting[count:]
        longest = max((len(rows[i].ids) - rows[i].n_prompt for i in used), default=0)
        for start in range(0, count, batch_size):
            index = np.full(batch_size, -1)
            chosen = used[start : start + batch_size]
            index[: len(chosen)] = chosen
            out.append(
                (
                    _batch(
                        [rows[i] for i in chosen],
                        batch_size,
                        int(width),
                        _round_up(longest, 8),
                    ),
                    index,
                )
            )
    return out


def _widths(lengths: np.ndarray, multiple: int, context: int | None) -> np.ndarray:
    """Row lengths of the shapes: quartiles of the lengths, rounded up."""
    ordered, quarter = np.sort(lengths), np.arange(1, _MAX_SHAPES + 1)
    picked = ordered[_round_up(len(ordered) * quarter, _MAX_SHAPES) // _MAX_SHAPES - 1]
    rounded = np.unique(_round_up(picked, multiple))
    return (
        rounded
        if context is None
        else np.unique(np.minimum(rounded, max(context, ordered[-1])))
    )


def _round_up(number: Any, multiple: int) -> Any:
    return -(-number // multiple) * multiple


def _batch(rows: Sequence[Row], b: int, t: int, c: int) -> Batch:
    tokens_bt, target_bc = np.zeros((b, t), np.int32), np.zeros((b, c), np.int32)
    valid_bt = np.zeros((b, t), bool)
    completion_bt = np.zeros((b, t), bool)
    target_valid_bc = np.zeros((b, c), bool)
    for k, row in enumerate(rows):
        n = len(row.ids)
        tokens_bt[k, :n] = row.ids
        valid_bt[k, :n] = True
        completion_bt[k, row.n_prompt : n] = True
        target_bc[k, : n - row.n_prompt] = np.arange(row.n_prompt, n)
        target_valid_bc[k, : n - row.n_prompt] = True
    return Batch(tokens_bt, valid_bt, completion_bt, target_bc, target_valid_bc)


def corpus_batches(
    texts: Iterable[str],
    tok: Tokenizer,
    *,
    context: int,
    batch_size: int,
    prepend_bos: bool | None = None,
    max_tokens: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Texts in their order, one a row, each with its own BOS and cut at `context`
    tokens (the rest is dropped).

    The number of columns is `context` or, where all rows of a batch are short enough, a
    half, a quarter or an eighth of it: four shapes at most. The last batch is filled up
    with empty rows.

    Args:
      prepend_bos: None leaves BOS to the tokenizer.
      max_tokens: stop after exactly this many positions.

    Yields:
      tokens_bt int32 padded on the right with 0, valid_bt bool, special_bt bool
      (special ids, BOS among them).

    Raises:
      ValueError: `prepend_bos` with a tokenizer that has no BOS.
    """
    add_bos = adds_bos(tok) if prepend_bos is None else prepend_bos

    def documents() -> Iterator[list[int]]:
        source, seen = iter(texts), 0
        while chunk := list(islice(source, batch_size)):
            yield from encode_many(tok, chunk, add_bos=add_bos, first=seen)
            seen += len(chunk)

    return document_batches(
        documents(), tok, context=context, batch_size=batch_size, max_tokens=max_tokens
    )


def document_batches(
    documents: Iterable[Sequence[int] | np.ndarray],
    tok: Tokenizer,
    *,
    context: int,
    batch_size: int,
    max_tokens: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`corpus_batches` of documents that are token ids already, each with the BOS that
    it is to have.
    """
    special = np.array(sorted(tok.special_ids), int)
    left = np.inf if max_tokens is None else max_tokens
    source = iter(documents)
    while left > 0 and (chunk := list(islice(source, batch_size))):
        rows = []
        for ids in chunk:
            rows.append(ids[: int(min(context, left))])
            left -= len(rows[-1])
        tokens_bt, valid_bt = _packed(rows, batch_size, context)
        yield tokens_bt, valid_bt, np.isin(tokens_bt, special) & valid_bt


def _packed(
    rows: Sequence[Sequence[int] | np.ndarray], b: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, rows))
    width = min(w for k in range(_MAX_SHAPES) if (w := -(-context // 2**k)) >= longest)
    tokens_bt, valid_bt = np.zeros((b, width), np.int32), np.zeros((b, width), bool)
    for k, ids in enumerate(rows):
        tokens_bt[k, : len(ids)] = ids
        valid_bt[k, : len(ids)] = True
    return tokens_bt, valid_bt


# ---- masks ---------------------------------------------------------------------------


def scope_mask(
    row: Row | tuple[np.ndarray, np.ndarray],
    scope: str,
    *,
    exclude: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Positions that count: the one rule for scores and for the mean activation.

    Args:
      row: a row, whose `masked` tokens never count, or its (roles, special) as arrays
        of any equal shape.
      scope: prompt, completion (the completion's own tokens, not those that predict
        them) or all; never padding.
      exclude: of "bos" (the BOS at the front) and "special" (every special token, BOS
        among them).

    Returns:
      bool, the shape of the roles.

    Raises:
      ValueError: unknown scope or exclusion.
    """
    if scope not in SCOPES:
        raise ValueError(
            f"scope {scope!r} is unknown; choose one of {', '.join(SCOPES)}"
        )
    check_exclude(exclude)
    roles, special = (row.roles, row.special) if isinstance(row, Row) else row
    mask = roles != PAD
    if scope != "all":
        mask &= (roles == COMPLETION) == (scope == "completion")
    if "bos" in exclude:
        mask &= roles != BOS
    if isinstance(row, Row) and row.masked is not None:
        mask &= ~row.masked
    return mask & ~special if "special" in exclude else mask


def mask_codes(
    tokens_bt: np.ndarray,
    valid_bt: np.ndarray,
    special_bt: np.ndarray,
    *,
    bos_id: int | None,
    masks: Masks,
    since_bt: np.ndarray | None = None,
) -> np.ndarray:
    """Says why each position of ordinary text does not count as far as tokens tell,
    int8 [b, t] codes of `REASONS`.

    The first reason is told. Outliers are known from activations alone, see
    `masks.beyond_limits`.

    Args:
      special_bt: special ids, BOS among them.
      since_bt: tokens since the text began; None where each row is one text.
    """
    since_bt = (
        np.broadcast_to(np.arange(tokens_bt.shape[1]), tokens_bt.shape)
        if since_bt is None
        else since_bt
    )
    roles_bt = np.where(valid_bt, USER, PAD)
    if bos_id is not None:
        roles_bt[valid_bt & (since_bt == 0) & (tokens_bt == bos_id)] = BOS
    codes_bt = np.where(valid_bt, 0, REASONS.index("padding")).astype(np.int8)
    for name in sorted(masks.exclude):  # bos before special
        counts_bt = scope_mask((roles_bt, special_bt), "all", exclude=frozenset({name}))
        codes_bt[(codes_bt == 0) & ~counts_bt] = REASONS.index(name)
    codes_bt[(codes_bt == 0) & (since_bt < masks.first_k)] = REASONS.index("first_k")
    return codes_bt


def corpus_mask(
    tokens_bt: np.ndarray,
    valid_bt: np.ndarray,
    special_bt: np.ndarray,
    tok: Tokenizer,
    *,
    masks: Masks,
) -> np.ndarray:
    """Returns which positions of a corpus batch count as far as tokens tell, bool [b,
    t].
    """
    return (
        mask_codes(tokens_bt, valid_bt, special_bt, bos_id=tok.bos_id, masks=masks) == 0
    )


def shown_tokens(
    row: Row, tok: Tokenizer, *, exclude: frozenset[str] = frozenset()
) -> str:
    """The table that `--show_tokens` prints for one row: what every token is and where
    it counts.
    """
    masks = {scope: scope_mask(row, scope, exclude=exclude) for scope in SCOPES}
    side = "positive" if row.side > 0 else "negative"
    lines = [
        f"pair {row.pair} {side} {row.completion}: {len(row.ids)} tokens, "
        f"{row.n_prompt} of the prompt; masked: "
        f"{', '.join(sorted(exclude)) or 'nothing'}",
        f"{'pos':>5} {'id':>7}  {'token':<20} {'role':<10} counts in",
    ]
    for t, text in enumerate(token_strings(tok, row.ids)):
        counts = " ".join(scope for scope in SCOPES if masks[scope][t]) or "masked"
        lines.append(
            f"{t:>5} {row.ids[t]:>7}  {text!r:<20} {ROLES[row.roles[t]]:<10} {counts}"
        )
    return "\n".join(lines)
