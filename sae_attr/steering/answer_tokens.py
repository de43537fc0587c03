"""Completions that another engine sampled, as token ids of the study's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_attr.text.tokenizer import Tokenizer, check_ids, decode, encode

STOP, LENGTH = "stop", "length"
FINISHES = (STOP, LENGTH)
_HALF = "\ufffd"  # what an engine writes for a character that was cut
_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Answer:
    """Holds what an engine returned for one row.

    Args:
      text: of the completion; read where there are no ids.
      ids: token ids, with or without the stop token that ended it; None where the
        engine states none.
      finish: `stop` where a stop token or text ended it, `length` where it was cut.
    """

    text: str
    ids: Sequence[int] | None
    finish: str


def answer_ids(
    answer: Answer,
    prompt_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    stop_ids: Sequence[int],
    max_new: int,
) -> tuple[tuple[int, ...], bool]:
    """Returns a completion as this project samples one: token ids without the stop token,
    and whether a stop token ended it.

    What follows a stop token, which an engine may not know, is cut off; so is what
    exceeds `max_new`, since a text may be more tokens than were sampled.

    Raises:
      ValueError: a reason to end that is none of `FINISHES`; ids that the tokenizer
        lacks; a text that its tokens do not write again.
    """
    if answer.finish not in FINISHES:
        raise ValueError(
            f"it ended with {answer.finish[:_SHOWN]!r}, which is neither {STOP} nor {LENGTH}; "
            "such an answer is no sample"
        )
    stopped = answer.finish == STOP
    if answer.ids is None:
        ids = _ids_of_text(answer.text, stopped, prompt_ids, tokenizer)
    else:
        ids = list(answer.ids)
        check_ids(tokenizer, ids)
    for place, token in enumerate(ids):
        if token in stop_ids:
            ids, stopped = ids[:place], True
            break
    # A stop token counts among the new ones.
    if len(ids) > max_new - stopped:
        ids, stopped = ids[:max_new], False
    return tuple(ids), stopped


def _ids_of_text(
    text: str, stopped: bool, prompt_ids: Sequence[int], tokenizer: Tokenizer
) -> list[int]:
    """Returns the tokens that write a text behind a prompt."""
    if not stopped:
        text = text.rstrip(_HALF)
    if not text:
        return []
    before = decode(tokenizer, prompt_ids)
    whole = before + text
    ids, _ = encode(tokenizer, text, add_bos=False)
    if decode(tokenizer, [*prompt_ids, *ids]) == whole:
        return ids
    # SentencePiece puts a space in front of a text that is encoded alone.
    both, _ = encode(tokenizer, whole, add_bos=False)
    border = len(prompt_ids)
    if both[:border] == list(prompt_ids) and decode(tokenizer, both) == whole:
        return both[border:]
    # Servers of chats strip the space that such a tokenizer writes between two words.
    if decode(tokenizer, ids) == text:
        return ids
    raise ValueError(
        f"its text {text[:_SHOWN]!r} is not what its tokens write "
        f"({decode(tokenizer, ids)[:_SHOWN]!r}); let the engine return token ids"
    )
