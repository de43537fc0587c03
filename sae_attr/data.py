"""Prompts with completions (pairs), corpora, and their token arrays with the roles and masks of every position.

A prompt and its completion are rendered and encoded together once and split by character offset: a token that
straddles the border belongs to the completion (encoding a completion alone adds a space in SentencePiece). Token ids
that a record gives win, so sampled completions are never encoded again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct

from sae_attr.tokenizer import (
    Message,
    Span,
    Tokenizer,
    adds_bos,
    encode,
    encode_many,
    leading_bos,
    message_spans,
    render,
    token_strings,
)

# Codes are positions in the tuple. 'last' is the final prompt token, 'template' chat-template text and special tokens
# inside the prompt, 'user' the text of the messages or of a plain prompt, 'bos' a BOS at the front only.
ROLES = ("pad", "bos", "template", "user", "last", "completion")
SCOPES = ("prompt", "completion", "all")
EXCLUDABLE = frozenset({"bos", "special"})
PAD, BOS, TEMPLATE, USER, LAST, COMPLETION = range(len(ROLES))

_FIELDS = ("id", "prompt", "positive", "negative", "sampler", "prompt_ids", "positive_ids", "negative_ids")
_MAX_SHAPES = 4  # compiled programs per data set
_TEXT_BLOCK = 2000  # characters of a .txt corpus that make one text: about 500 tokens


@dataclass(frozen=True)
class Pair:
    """One record: a prompt with completions that have the behaviour (positives) and that have not (negatives).

    Args:
      id: unique name; "line-N" where the record has none.
      prompt: a string or messages ({"role", "content"}); "" where the record gives token ids only.
      positives, negatives: texts; may be empty where the record gives token ids.
      line: line number in the file, from 1.
      sampler: what sampled the completions (a model's name or hash), None if unknown.
      prompt_ids, positive_ids, negative_ids: token ids of the record; they win over the texts.
      extra: every other field of the record (scores, ...).
    """

    id: str
    prompt: str | tuple[Message, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    line: int
    sampler: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    positive_ids: tuple[tuple[int, ...], ...] = ()
    negative_ids: tuple[tuple[int, ...], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


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
    """

    ids: np.ndarray
    n_prompt: int
    roles: np.ndarray
    special: np.ndarray
    pair: int
    side: int
    completion: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """The rows of all pairs (pair by pair, positives first) and how many of them have a straddling token."""

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


# ---- reading -----------------------------------------------------------------------------------------------------


def read_pairs(path: str | Path) -> list[Pair]:
    """Reads a JSONL file of pairs: prompt, positive (text or list), and optionally negative, id, sampler, *_ids.

    Raises:
      ValueError: with file and line: not UTF-8, not JSON, a field that is missing, of the wrong type or empty, an id
        that stands twice; or an empty file.
    """
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    for line, record in _json_lines(Path(path)):
        where = f"{path}:{line}"
        pair = _pair(record, line, where)
        if pair.id in lines:
            raise ValueError(f"{where}: id {pair.id!r} stands on line {lines[pair.id]} too; make ids unique")
        lines[pair.id] = line
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} has no records; write one JSON object a line with prompt, positive and negative")
    return pairs


def read_corpus(path: str | Path) -> Iterator[str]:
    """Texts of a corpus: .json (list), .jsonl (one a line), each a string or {"text": ...}, or .txt.

    A .txt file is cut into blocks of at most 2,000 characters that end at white space where there is any. Blank texts
    are left out.

    Raises:
      ValueError: unknown ending, not UTF-8, not JSON, a text that is none, no text at all (the first text is read at
        once; later ones as they are asked for).
    """
    path = Path(path)
    reader = {".json": _json_texts, ".jsonl": _jsonl_texts, ".txt": _txt_texts}.get(path.suffix)
    if reader is None:
        raise ValueError(
            f"{path}: a corpus ends in .json, .jsonl or .txt, not in {path.suffix!r}; rename or convert it"
        )
    texts = (text for text in reader(path) if text.strip())
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{path} has no text; a corpus needs at least one text that is not blank")
    return chain([first], texts)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as file:  # bytes: only \n ends a line, and a bad byte is named with its line
        for number, raw in enumerate(file, start=1):
            text = _utf8(raw, f"{path}:{number}")
            if text.strip():
                yield number, _json(text, f"{path}:{number}")


def _json_texts(path: Path) -> Iterator[str]:
    found = _json(_utf8(path.read_bytes(), str(path)), str(path))
    if not isinstance(found, list):
        raise ValueError(f"{path} holds a {type(found).__name__} where a list of texts is expected; wrap it in [ ]")
    return (_corpus_text(item, f"{path}: text {k}") for k, item in enumerate(found))


def _jsonl_texts(path: Path) -> Iterator[str]:
    return (_corpus_text(item, f"{path}:{line}") for line, item in _json_lines(path))


def _txt_texts(path: Path) -> Iterator[str]:
    text = _utf8(path.read_bytes(), str(path))
    # The second branch is for a run without white space that is longer than a block.
    pattern = rf"\S(?:.{{0,{_TEXT_BLOCK - 1}}}(?!\S)|.{{0,{_TEXT_BLOCK - 1}}})"
    return (match.group().rstrip() for match in re.finditer(pattern, text, re.DOTALL))


def _corpus_text(item: Any, where: str) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        kind = f"an object with the fields {', '.join(item)}" if isinstance(item, dict) else type(item).__name__
        raise ValueError(f'{where} is {kind} where a string or {{"text": ...}} is expected')
    return _sound(text, where)


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _sound(text: str, where: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: character {error.start} is half of a surrogate pair; repair the text") from error
    return text


def _pair(record: Any, line: int, where: str) -> Pair:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__} where an object with prompt and positive is expected")
    for name in ("prompt", "positive"):
        if record.get(name) is None and record.get(f"{name}_ids") is None:
            raise ValueError(f"{where}: {name!r} is missing (found: {', '.join(record) or 'nothing'}); add it")
    name, sampler = record.get("id", f"line-{line}"), record.get("sampler")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"{where}: 'id' is {name!r}; it must be a string or an integer")
    if not isinstance(sampler, str | None):
        raise ValueError(f"{where}: 'sampler' is {sampler!r}; it must be a string")
    pair = Pair(
        id=str(name),
        prompt=_prompt_field(record.get("prompt"), where),
        positives=_texts_field(record.get("positive"), "positive", where),
        negatives=_texts_field(record.get("negative"), "negative", where),
        line=line,
        sampler=sampler,
        prompt_ids=next(iter(_ids_field(record.get("prompt_ids"), "prompt_ids", where)), None),
        positive_ids=_ids_field(record.get("positive_ids"), "positive_ids", where),
        negative_ids=_ids_field(record.get("negative_ids"), "negative_ids", where),
        extra={key: value for key, value in record.items() if key not in _FIELDS},
    )
    _check_sides(pair, where)
    return pair


def _prompt_field(value: Any, where: str) -> str | tuple[Message, ...]:
    if value is None:
        return ""
    if isinstance(value, str):
        return _sound(value, f"{where}: 'prompt'")
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: 'prompt' is {value!r}; it must be a string or a list of messages that is not empty")
    for k, message in enumerate(value):
        fields = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in fields):
            raise ValueError(f"{where}: message {k} of 'prompt' is {message!r}; it needs the strings role and content")
        _sound(message["content"], f"{where}: message {k} of 'prompt'")
    return tuple(value)


def _texts_field(value: Any, name: str, where: str) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {name!r} is {value!r}; it must be a string or a list of strings")
    if "" in texts or (name == "positive" and value == []):
        raise ValueError(f"{where}: {name!r} is empty or holds an empty completion; remove it or fill it in")
    return tuple(_sound(text, f"{where}: {name!r}") for text in texts)


def _ids_field(value: Any, name: str, where: str) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return ()
    lists = value if isinstance(value, list) and any(isinstance(item, list) for item in value) else [value]
    for ids in lists:
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{where}: {name!r} must be a list of token ids (integers from 0) or a list of such lists")
        if not ids:
            raise ValueError(f"{where}: {name!r} holds an empty list of token ids; remove it or fill it in")
    if name == "prompt_ids" and len(lists) > 1:
        raise ValueError(f"{where}: 'prompt_ids' holds {len(lists)} lists but a record has one prompt; split it")
    return tuple(tuple(ids) for ids in lists)


def _check_sides(pair: Pair, where: str) -> None:
    """Texts and token ids of a record must describe the same completions, all in the same way."""
    sides = (("positive", pair.positives, pair.positive_ids), ("negative", pair.negatives, pair.negative_ids))
    for name, texts, ids in sides:
        if texts and ids and len(texts) != len(ids):
            raise ValueError(f"{where}: {len(texts)} texts in {name!r} but {len(ids)} in '{name}_ids'; make them equal")
        if texts and not ids and (pair.prompt_ids or pair.positive_ids or pair.negative_ids):
            raise ValueError(f"{where}: {name!r} is text only but the record gives token ids; add '{name}_ids'")


# ---- encoding pairs ----------------------------------------------------------------------------------------------


def encode_pairs(
    pairs: Sequence[Pair], tok: Tokenizer, *, context: int, path: str | Path, prepend_bos: bool | None = None
) -> Encoded:
    """Token rows of all completions of all pairs.

    Args:
      pairs: as read from `path`, which is used in messages.
      tok: the model's tokenizer.
      context: the most tokens that a row may have.
      prepend_bos: True puts BOS in front unless it stands there; False adds none (one that a template writes stays);
        None leaves it to the chat template for messages (as transformers' apply_chat_template does) and to the
        tokenizer for plain prompts. Given token ids are left as they are unless True.

    Raises:
      ValueError: with file and line: a row longer than `context`, no prompt token, a completion without tokens, given
        ids beyond the vocabulary or beginning with two BOS, messages that the chat template refuses.
    """
    rows: list[Row] = []
    straddling = 0
    for index, pair in enumerate(pairs):
        where = f"{path}:{pair.line}"
        try:
            prompt = _render_prompt(pair, tok, prepend_bos)
            for side, texts, ids in ((1, pair.positives, pair.positive_ids), (-1, pair.negatives, pair.negative_ids)):
                for k, completion in enumerate(ids or texts):
                    row, straddles = _row(prompt, completion, tok, (index, side, k))
                    _check_row(row, context)
                    rows.append(row)
                    straddling += straddles
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return Encoded(rows=rows, straddling=straddling)


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt as text with the mask of its message text [characters], or as token ids with their roles."""

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
    return _Prompt(prompt.text, prompt.is_user, False, tuple(ids), _prompt_roles(ids, offsets, prompt.is_user, tok))


def _text_prompt(prompt: str | tuple[Message, ...], tok: Tokenizer, prepend_bos: bool | None) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(prompt, np.ones(len(prompt), bool), adds_bos(tok) if prepend_bos is None else prepend_bos)
    text = render(tok, prompt)
    is_user = np.zeros(len(text), bool)
    for start, end in message_spans(tok, prompt, text):
        is_user[start:end] = True
    return _Prompt(text, is_user, prepend_bos is True)


def _given_prompt(pair: Pair, tok: Tokenizer, prepend_bos: bool) -> _Prompt:
    """Given ids; their roles come from the record's own prompt where that encodes to the same ids."""
    assert pair.prompt_ids is not None
    ids = list(pair.prompt_ids)
    if leading_bos(tok, ids) > 1:
        raise ValueError(f"'prompt_ids' begins with BOS ({tok.bos_id}) more than once; remove one")
    if prepend_bos and not leading_bos(tok, ids):
        ids = [*encode(tok, "", add_bos=True)[0], *ids]
    offsets, is_user = [(0, 1)] * len(ids), np.ones(1, bool)
    with suppress(ValueError):  # a template that refuses the messages is no hindrance: the ids are given
        prompt = _text_prompt(pair.prompt, tok, leading_bos(tok, ids) > 0)
        text_ids, text_offsets = encode(tok, prompt.text, add_bos=prompt.add_bos)
        if text_ids == ids:
            offsets, is_user = text_offsets, prompt.is_user
    return _Prompt("", is_user, False, tuple(ids), _prompt_roles(ids, offsets, is_user, tok))


_Key = tuple[int, int, int]  # pair, side, completion


def _row(prompt: _Prompt, completion: str | Sequence[int], tok: Tokenizer, key: _Key) -> tuple[Row, bool]:
    straddles = False
    if isinstance(completion, str):
        ids, offsets = encode(tok, prompt.text + completion, add_bos=prompt.add_bos)
        border = len(prompt.text)
        n_prompt = next((t for t, (_, end) in enumerate(offsets) if end > border), len(ids))
        straddles = n_prompt < len(ids) and offsets[n_prompt][0] < border
        prompt_roles = _prompt_roles(ids[:n_prompt], offsets[:n_prompt], prompt.is_user, tok)
    else:
        assert prompt.roles is not None
        ids, n_prompt, prompt_roles = [*prompt.ids, *completion], len(prompt.ids), prompt.roles
        if max(ids) >= tok.vocab_size:
            raise ValueError(
                f"token id {max(ids)} is beyond the tokenizer's vocabulary of {tok.vocab_size}; take the tokenizer of "
                "the model that sampled the record"
            )
    roles = np.full(len(ids), COMPLETION, np.int8)
    roles[:n_prompt] = prompt_roles
    pair, side, k = key
    return Row(np.asarray(ids, np.int32), n_prompt, roles, _is_special(ids, tok), pair, side, k), straddles


def _is_special(ids: Sequence[int], tok: Tokenizer) -> np.ndarray:
    return np.fromiter((i in tok.special_ids for i in ids), bool, len(ids))


def _prompt_roles(ids: Sequence[int], offsets: Sequence[Span], is_user: np.ndarray, tok: Tokenizer) -> np.ndarray:
    """int8 [t]: a token is the user's if any character of it is, and special tokens never are."""
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
        raise ValueError(f"the prompt of {name} has no token to predict from; set prepend_bos=True or fill it in")
    if row.n_prompt == len(row.ids):
        raise ValueError(f"{name} gives no token after its prompt of {row.n_prompt} tokens; fill it in")
    if len(row.ids) > context:
        raise ValueError(
            f"{name} has {len(row.ids)} tokens with its prompt but the context is {context}; shorten the record or "
            "raise the context"
        )


# ---- batches -----------------------------------------------------------------------------------------------------


def batches(
    rows: Sequence[Row], *, batch_size: int, multiple: int = 32, context: int | None = None
) -> list[tuple[Batch, np.ndarray]]:
    """Packs rows of similar length into at most four fixed shapes; every row stands in exactly one batch.

    Lengths are rounded up to `multiple` (but not beyond `context`), completion lengths to 8. Only the last batch has
    empty rows: a group that does not fill its last batch hands the rest to the next longer group. Within a group rows
    keep their order, so that the completions of a pair stay close.

    Returns:
      (batch, row index int64 [b], -1 for an empty row) for every batch, short rows first.
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
        count = len(waiting) if k == len(widths) - 1 else len(waiting) // batch_size * batch_size
        used, waiting = waiting[:count], waiting[count:]
        longest = max((len(rows[i].ids) - rows[i].n_prompt for i in used), default=0)
        for start in range(0, count, batch_size):
            index = np.full(batch_size, -1)
            chosen = used[start : start + batch_size]
            index[: len(chosen)] = chosen
            out.append((_batch([rows[i] for i in chosen], batch_size, int(width), _round_up(longest, 8)), index))
    return out


def _widths(lengths: np.ndarray, multiple: int, context: int | None) -> np.ndarray:
    """Row lengths of the shapes: quartiles of the lengths, rounded up."""
    ordered, quarter = np.sort(lengths), np.arange(1, _MAX_SHAPES + 1)
    picked = ordered[_round_up(len(ordered) * quarter, _MAX_SHAPES) // _MAX_SHAPES - 1]
    rounded = np.unique(_round_up(picked, multiple))
    return rounded if context is None else np.unique(np.minimum(rounded, max(context, ordered[-1])))


def _round_up(number: Any, multiple: int) -> Any:
    return -(-number // multiple) * multiple


def _batch(rows: Sequence[Row], b: int, t: int, c: int) -> Batch:
    tokens_bt, target_bc = np.zeros((b, t), np.int32), np.zeros((b, c), np.int32)
    valid_bt, completion_bt, target_valid_bc = np.zeros((b, t), bool), np.zeros((b, t), bool), np.zeros((b, c), bool)
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
    """Texts in their order, one a row, each with its own BOS and cut at `context` tokens (the rest is dropped).

    The number of columns is `context` or, where all rows of a batch are short enough, a half, a quarter or an eighth
    of it: four shapes at most. The last batch is filled up with empty rows.

    Args:
      prepend_bos: None leaves BOS to the tokenizer.
      max_tokens: stop after exactly this many positions.

    Yields:
      tokens_bt int32 padded on the right with 0, valid_bt bool, special_bt bool (special ids, BOS among them).

    Raises:
      ValueError: `prepend_bos` with a tokenizer that has no BOS.
    """
    add_bos = adds_bos(tok) if prepend_bos is None else prepend_bos
    special = np.zeros(tok.vocab_size, bool)
    special[sorted(tok.special_ids)] = True
    left = np.inf if max_tokens is None else max_tokens
    source = iter(texts)
    while left > 0 and (chunk := list(islice(source, batch_size))):
        rows = []
        for ids in encode_many(tok, chunk, add_bos=add_bos):
            rows.append(ids[: int(min(context, left))])
            left -= len(rows[-1])
        tokens_bt, valid_bt = _packed(rows, batch_size, context)
        yield tokens_bt, valid_bt, special[tokens_bt] & valid_bt


def _packed(rows: Sequence[Sequence[int]], b: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, rows))
    width = min(w for k in range(_MAX_SHAPES) if (w := -(-context // 2**k)) >= longest)
    tokens_bt, valid_bt = np.zeros((b, width), np.int32), np.zeros((b, width), bool)
    for k, ids in enumerate(rows):
        tokens_bt[k, : len(ids)] = ids
        valid_bt[k, : len(ids)] = True
    return tokens_bt, valid_bt


# ---- masks -------------------------------------------------------------------------------------------------------


def scope_mask(
    row: Row | tuple[np.ndarray, np.ndarray], scope: str, *, exclude: frozenset[str] = frozenset()
) -> np.ndarray:
    """Positions that count: the one rule for scores and for the mean activation.

    Args:
      row: a row, or its (roles, special) as arrays of any equal shape.
      scope: prompt, completion (the completion's own tokens, not those that predict them) or all; never padding.
      exclude: of "bos" (the BOS at the front) and "special" (every special token, BOS among them).

    Returns:
      bool, the shape of the roles.

    Raises:
      ValueError: unknown scope or exclusion.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is unknown; choose one of {', '.join(SCOPES)}")
    if unknown := frozenset(exclude) - EXCLUDABLE:
        raise ValueError(
            f"exclude {', '.join(sorted(unknown))!r} is unknown; choose of {', '.join(sorted(EXCLUDABLE))}"
        )
    roles, special = (row.roles, row.special) if isinstance(row, Row) else row
    mask = roles != PAD
    if scope != "all":
        mask &= (roles == COMPLETION) == (scope == "completion")
    if "bos" in exclude:
        mask &= roles != BOS
    return mask & ~special if "special" in exclude else mask


def corpus_mask(
    tokens_bt: np.ndarray, valid_bt: np.ndarray, special_bt: np.ndarray, tok: Tokenizer, *, exclude: frozenset[str]
) -> np.ndarray:
    """`scope_mask` of a corpus batch, bool [b, t]: which positions enter a mean."""
    roles_bt = np.where(valid_bt, USER, PAD)
    if tok.bos_id is not None:
        first_b = valid_bt[:, 0] & (tokens_bt[:, 0] == tok.bos_id)
        roles_bt[:, 0] = np.where(first_b, BOS, roles_bt[:, 0])
    return scope_mask((roles_bt, special_bt), "all", exclude=exclude)


def shown_tokens(row: Row, tok: Tokenizer, *, exclude: frozenset[str] = frozenset()) -> str:
    """The table that `--show_tokens` prints for one row: what every token is and where it counts."""
    masks = {scope: scope_mask(row, scope, exclude=exclude) for scope in SCOPES}
    side = "positive" if row.side > 0 else "negative"
    lines = [
        f"pair {row.pair} {side} {row.completion}: {len(row.ids)} tokens, {row.n_prompt} of the prompt; masked: "
        f"{', '.join(sorted(exclude)) or 'nothing'}",
        f"{'pos':>5} {'id':>7}  {'token':<20} {'role':<10} counts in",
    ]
    for t, text in enumerate(token_strings(tok, row.ids)):
        counts = " ".join(scope for scope in SCOPES if masks[scope][t]) or "masked"
        lines.append(f"{t:>5} {row.ids[t]:>7}  {text!r:<20} {ROLES[row.roles[t]]:<10} {counts}")
    return "\n".join(lines)
