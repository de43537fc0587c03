"""Where a completion ends: every token id that ends a turn of a model, and which of its
files says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_attr.lm.hf_folder import end_ids
from sae_attr.text.chat import assistant_end
from sae_attr.text.tokenizer import Tokenizer

Ends = Mapping[str, tuple[int, ...]]
"""Source -> ids; the ids of all sources together end a completion."""


def turn_ends(
    path: str | Path, tok: Tokenizer, *, vocab: int
) -> dict[str, tuple[int, ...]]:
    """Collects the ids that end a turn of a model: an instruct model's turn seldom ends
    with its tokenizer's EOS alone.

    Args:
      path: the model's folder or hub id.
      tok: its tokenizer, with the chat template that prompts are rendered with.
      vocab: rows of its embedding; a tokenizer's token beyond them can never be drawn
        and is left out.

    Returns:
      `model` (generation_config.json and config.json), `tokenizer` (its EOS) and
      `template` (the token that the chat template writes after an assistant's turn);
      sources without ids are left out.

    Raises:
      ValueError: a file that cannot be read, or that states an id outside the
        vocabulary.
    """
    by_source = {
        "model": end_ids(path),
        "tokenizer": (tok.eos_id,),
        "template": (assistant_end(tok),),
    }
    out: dict[str, tuple[int, ...]] = {}
    for source, ids in by_source.items():
        if drawable := tuple(i for i in ids if i is not None and i < vocab):
            out[source] = drawable
    return out


def ending_ids(
    ends: Ends, given: Sequence[int] | None = None, *, vocab: int
) -> tuple[int, ...]:
    """Returns the ids that end a completion: those of `ends`, or in their place the
    given ones; each once.

    Raises:
      ValueError: a given id that is none of the model's.
    """
    if given is None:
        return tuple(dict.fromkeys(token for ids in ends.values() for token in ids))
    for token in given:
        if not _is_id(token, vocab):
            raise ValueError(
                f"stop_ids has {token!r}; give ids of the model's vocabulary, 0 to "
                f"{vocab - 1}, or leave stop_ids out for "
                f"the model's own: {dict(ends)}"
            )
    return tuple(dict.fromkeys(int(token) for token in given))


def _is_id(token: Any, vocab: int) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab
