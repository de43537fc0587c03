"""Text to token ids and back.

Text is encoded without the tokenizer's own special tokens, and one function (`encode`)
decides whether BOS is put in front, so that template and tokenizer never both add it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers

Span = tuple[int, int]


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer: made by `load_tokenizer`, used through the functions of this
    module and of `chat`.

    Args:
      path: the folder, for messages.
      backend: the `tokenizers` object, with truncation, padding and offset trimming
        switched off.
      tokens: the named special tokens that exist (bos_token, eos_token, pad_token,
        unk_token) as text.
      bos_id, eos_id, pad_id: their ids, None where there is none (0 is a valid id).
      special_ids: ids of bos, eos, pad and of every added token that is flagged
        special.
      vocab_size: largest id + 1; the embedding of the model may have more rows.
      add_bos_token: what tokenizer_config.json says, None where it is silent.
      chat_template: Jinja source, None for a tokenizer without one.
      template_options: what the template reads beside the messages; set by
        `chat.with_options`.
      embedding_rows: rows of the model's embedding where the model is known; ids beyond
        them are refused where they occur.
    """

    path: str
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)
    tokens: Mapping[str, str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    special_ids: frozenset[int] = field(repr=False)
    vocab_size: int
    add_bos_token: bool | None = None
    chat_template: str | None = field(default=None, repr=False)
    template_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    embedding_rows: int | None = None


def adds_bos(tok: Tokenizer) -> bool:
    """Returns True where the tokenizer by itself puts BOS in front: by add_bos_token,
    else by its post-processor.
    """
    if tok.bos_id is None:
        return False
    if tok.add_bos_token is not None:
        return tok.add_bos_token
    return post_processor_first(tok.backend) == tok.bos_id


def encode(tok: Tokenizer, text: str, *, add_bos: bool) -> tuple[list[int], list[Span]]:
    """Encodes a text that may hold special tokens in writing, with at most one BOS in
    front.

    A BOS that the text itself begins with (a chat template wrote it) counts; a repeated
    one is dropped.

    Returns:
      ids, and for every id the (start, end) characters of `text` that it covers; an
      added BOS covers (0, 0).

    Raises:
      ValueError: `add_bos` with a tokenizer that has no BOS, a token that the model's
        embedding lacks.
    """
    with library_errors(tok.path):
        encoding = tok.backend.encode(text, add_special_tokens=False)
    ids, offsets = list(encoding.ids), list(encoding.offsets)
    check_ids(tok, ids)
    written = leading_bos(tok, ids)
    if written:
        return ids[written - 1 :], offsets[written - 1 :]
    return ([_bos(tok), *ids], [(0, 0), *offsets]) if add_bos else (ids, offsets)


def encode_many(
    tok: Tokenizer, texts: Sequence[str], *, add_bos: bool, first: int = 0
) -> list[list[int]]:
    """Encodes many texts at once, ids only; uses the library's threads.

    Args:
      first: number of the first of these texts, for messages.
    """
    with library_errors(tok.path):
        encodings = tok.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [list(encoding.ids) for encoding in encodings]
    for number, ids in enumerate(rows):
        try:
            check_ids(tok, ids)
        except ValueError as error:
            raise ValueError(
                f"text {first + number} ({texts[number][:40]!r}): {error}"
            ) from None
    front = [_bos(tok)] if add_bos else []
    written = [leading_bos(tok, ids) for ids in rows]
    return [
        ids[w - 1 :] if w else front + ids for ids, w in zip(rows, written, strict=True)
    ]


def check_ids(tok: Tokenizer, ids: Sequence[int]) -> None:
    """Raises ValueError for the first id that is negative or beyond the model's
    embedding, or the vocabulary without a model.

    A gather would clamp such an id to the last row without a word.
    """
    rows = tok.vocab_size if tok.embedding_rows is None else tok.embedding_rows
    if not ids or 0 <= min(ids) <= max(ids) < rows:
        return
    at = next(t for t, token in enumerate(ids) if not 0 <= token < rows)
    named = f"token id {ids[at]}"
    # The library takes 32 bits.
    piece = None
    if 0 <= ids[at] < tok.vocab_size:
        piece = tok.backend.id_to_token(ids[at])
    if piece is not None:
        named += f" ({piece!r})"
    if tok.embedding_rows is None:
        raise ValueError(
            f"{named} is beyond the tokenizer's vocabulary of {rows} (position {at}); "
            "take the tokenizer of the model "
            "that the ids belong to"
        )
    raise ValueError(
        f"{named} is beyond the model's embedding of {rows} rows (position {at}); "
        "leave that token out, or take ids and "
        "tokenizer of this model"
    )


def leading_bos(tok: Tokenizer, ids: Sequence[int]) -> int:
    """Counts the BOS tokens that `ids` begins with; 0 for a tokenizer without BOS."""
    if tok.bos_id is None:
        return 0
    return next((i for i, token in enumerate(ids) if token != tok.bos_id), len(ids))


def decode(tok: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of `ids`, special tokens written out."""
    with library_errors(tok.path):
        return tok.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def token_strings(tok: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
    """Returns every token's own text, for showing: leading spaces kept, half characters in the
    vocabulary's spelling.
    """
    return [_token_string(tok, int(i)) for i in ids]


def _bos(tok: Tokenizer) -> int:
    if tok.bos_id is None:
        raise ValueError(
            f"{tok.path}: BOS is asked for but the tokenizer has none; set "
            "prepend_bos=False or name a bos_token in "
            "tokenizer_config.json"
        )
    check_ids(tok, [tok.bos_id])
    return tok.bos_id


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Raises what the library raises as a ValueError of one line; its Rust code panics on faults of a file,
    past every `except Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{where}: the tokenizers library cannot read it, or a text with it: {reason}"
        ) from None


def post_processor_first(backend: tokenizers.Tokenizer) -> int | None:
    """Returns the id that the post-processor puts in front of a text, if any."""
    with_special = backend.encode("a", add_special_tokens=True)
    if with_special.ids and backend.id_to_token(with_special.ids[0]) is None:
        raise ValueError(
            f"tokenizer.json: its post-processor puts id {with_special.ids[0]} in "
            "front, which is no token"
        )
    return with_special.ids[0] if with_special.special_tokens_mask[:1] == [1] else None


def _token_string(tok: Tokenizer, token: int) -> str:
    piece = tok.backend.id_to_token(token)
    if piece is None:
        return f"<id {token}>"
    if token in tok.special_ids:
        return piece
    if "▁" in piece:  # SentencePiece's space; its decoder would strip a leading one
        return piece.replace("▁", " ")
    text = tok.backend.decode([token], skip_special_tokens=False)
    return piece if not text or "\ufffd" in text else text
