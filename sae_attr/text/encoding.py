"""Pairs and prompts as token rows.

A prompt and its completion are rendered and encoded together once and split by
character offset: a token that straddles the border belongs to the completion (encoding
a completion alone adds a space in SentencePiece). Token ids in a record take precedence,
so sampled completions are never encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_attr.text.chat import Message, prompt_text
from sae_attr.text.pairs import Pair, Prompt
from sae_attr.text.rows import (
    ASSISTANT,
    BOS,
    COMPLETION,
    LAST,
    SPECIAL,
    SYSTEM,
    TEMPLATE,
    USER,
    TokenRow,
    is_special,
)
from sae_attr.text.tokenizer import (
    Span,
    Tokenizer,
    adds_bos,
    check_ids,
    encode,
    leading_bos,
)

# Roles of messages under the names that chat templates give them; others are the
# user's: tools answer in their place.
_SPEAKERS = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "assistant": ASSISTANT,
    "model": ASSISTANT,
}


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """The rows of all pairs (pair by pair, positives first) and how many of them have a
    straddling token.
    """

    rows: list[TokenRow]
    straddling: int


def encode_pairs(
    pairs: Sequence[Pair],
    tok: Tokenizer,
    *,
    context: int,
    path: str | Path,
    prepend_bos: bool | None = None,
) -> EncodedPairs:
    """Encodes all completions of all pairs as token rows.

    Args:
      pairs: as read from `path`, which is used in messages.
      tok: the model's tokenizer.
      context: the most tokens that a row may have.
      prepend_bos: True puts BOS in front unless it is there; False adds none (one that
        a template writes stays); None leaves it to the chat template for messages (as
        transformers' apply_chat_template does) and to the tokenizer for plain prompts.
        Token ids of a record are unchanged unless True.

    Raises:
      ValueError: with file and line: a row longer than `context`, no prompt token, a
        completion without tokens, ids of a record beyond the vocabulary or with two BOS
        in front, messages that the chat template refuses.
    """
    rows: list[TokenRow] = []
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
    return EncodedPairs(rows=rows, straddling=straddling)


def encode_prompt(
    prompt: Prompt | Pair, tok: Tokenizer, *, prepend_bos: bool | None = None
) -> list[int]:
    """Encodes a prompt alone, to be completed; BOS as in `encode_pairs`, and a last
    assistant message is continued.

    Raises ValueError, with the prompt's id, for a prompt without tokens, ids that the
    model's embedding (or the vocabulary) lacks, messages that the chat template
    refuses.
    """
    try:
        if prompt.prompt_ids is not None:
            ids = list(_prompt_of_ids(prompt, tok, prepend_bos is True).ids)
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


def encode_continuation(
    prompt: Prompt, text: str, tok: Tokenizer, *, prepend_bos: bool | None = None
) -> list[int]:
    """Encodes a text that follows a prompt: the tokens behind those of `encode_prompt`.

    Both are encoded together, as in `encode_pairs`; a text behind token ids of a record
    is encoded alone.

    Raises ValueError, with the prompt's id and the text, where the text gives no token,
    or its beginning and the prompt's end are one token, so that the prompt as it is
    completed is not followed by the text.
    """
    before = encode_prompt(prompt, tok, prepend_bos=prepend_bos)
    if prompt.prompt_ids is not None:
        ids, _ = encode(tok, text, add_bos=False)
    else:
        rendered = _text_prompt(prompt.prompt, tok, prepend_bos)
        together, _ = encode(tok, rendered.text + text, add_bos=rendered.add_bos)
        if together[: len(before)] != before:
            raise ValueError(
                f"prompt {prompt.id!r}: the beginning of the text {text!r} and the end "
                "of the prompt are one token, so that the text never follows the "
                "prompt; move the space between them to the text"
            )
        ids = together[len(before) :]
    if not ids:
        raise ValueError(
            f"prompt {prompt.id!r}: the text {text!r} gives no token after it; fill it "
            "in, or leave it out"
        )
    return ids


@dataclass(frozen=True, eq=False)
class _RenderedPrompt:
    """A prompt as text with the role of every character, or as token ids with their
    roles.
    """

    text: str
    char_roles: np.ndarray
    add_bos: bool
    ids: tuple[int, ...] = ()
    roles: np.ndarray | None = None


def _render_prompt(
    pair: Pair, tok: Tokenizer, prepend_bos: bool | None
) -> _RenderedPrompt:
    if pair.prompt_ids is not None:
        return _prompt_of_ids(pair, tok, prepend_bos is True)
    prompt = _text_prompt(pair.prompt, tok, prepend_bos)
    if not pair.positive_ids:
        return prompt
    ids, offsets = encode(tok, prompt.text, add_bos=prompt.add_bos)
    return _RenderedPrompt(
        prompt.text,
        prompt.char_roles,
        False,
        tuple(ids),
        _prompt_roles(ids, offsets, prompt.char_roles, tok),
    )


def _text_prompt(
    prompt: str | tuple[Message, ...], tok: Tokenizer, prepend_bos: bool | None
) -> _RenderedPrompt:
    if isinstance(prompt, str):
        return _RenderedPrompt(
            prompt,
            np.full(len(prompt), USER, np.int8),
            adds_bos(tok) if prepend_bos is None else prepend_bos,
        )
    text, spans = prompt_text(tok, prompt)
    char_roles = np.full(len(text), TEMPLATE, np.int8)
    for message, (start, end) in zip(prompt, spans, strict=True):
        char_roles[start:end] = _SPEAKERS.get(str(message.get("role")), USER)
    return _RenderedPrompt(text, char_roles, prepend_bos is True)


def _prompt_of_ids(
    pair: Prompt | Pair, tok: Tokenizer, prepend_bos: bool
) -> _RenderedPrompt:
    """Returns a prompt whose record has token ids. Their roles come from the record's text where
    that encodes to the same ids.
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
    offsets, char_roles = [(0, 1)] * len(ids), np.full(1, USER, np.int8)
    # A template that refuses the messages is no hindrance: the ids are known.
    with suppress(ValueError):
        prompt = _text_prompt(pair.prompt, tok, leading_bos(tok, ids) > 0)
        text_ids, text_offsets = encode(tok, prompt.text, add_bos=prompt.add_bos)
        if text_ids == ids:
            offsets, char_roles = text_offsets, prompt.char_roles
    return _RenderedPrompt(
        "",
        char_roles,
        False,
        tuple(ids),
        _prompt_roles(ids, offsets, char_roles, tok),
    )


_Key = tuple[int, int, int]  # pair, side, completion


def _row(
    prompt: _RenderedPrompt, completion: str | Sequence[int], tok: Tokenizer, key: _Key
) -> tuple[TokenRow, bool]:
    straddles = False
    if isinstance(completion, str):
        # Encoded together, since tokens at the border depend on both sides. One that
        # straddles it belongs to the completion.
        ids, offsets = encode(tok, prompt.text + completion, add_bos=prompt.add_bos)
        border = len(prompt.text)
        n_prompt = 0
        while n_prompt < len(ids) and offsets[n_prompt][1] <= border:
            n_prompt += 1
        straddles = n_prompt < len(ids) and offsets[n_prompt][0] < border
        prompt_roles = _prompt_roles(
            ids[:n_prompt], offsets[:n_prompt], prompt.char_roles, tok
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
    return TokenRow(
        np.asarray(ids, np.int32), n_prompt, roles, is_special(ids, tok), pair, side, k
    ), straddles


def _prompt_roles(
    ids: Sequence[int], offsets: Sequence[Span], char_roles: np.ndarray, tok: Tokenizer
) -> np.ndarray:
    """Roles of a prompt, int8 [t]: a token is a message's if any character of it is,
    and special tokens never are.
    """
    roles = np.full(len(ids), TEMPLATE, np.int8)
    for t, (start, end) in enumerate(offsets):
        spoken = char_roles[start:end]
        spoken = spoken[spoken != TEMPLATE]
        if ids[t] in tok.special_ids:
            roles[t] = SPECIAL
        elif len(spoken):
            roles[t] = spoken[0]
    roles[-1:] = LAST
    roles[: leading_bos(tok, ids[:1])] = BOS  # after LAST: a prompt of BOS alone is BOS
    return roles


def _check_row(row: TokenRow, context: int) -> None:
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
