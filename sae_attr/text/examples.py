"""Supervised examples: chat or prompt/completion records as token rows with the tokens
that are learnt, and their packing.

A record is rendered and encoded whole, once; which tokens are learnt follows from
characters, so that what a model is trained on is what it will see.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.text import json_lines, sound
from sae_attr.text.chat import (
    Message,
    assistant_end,
    continued,
    message_spans,
    prompt_text,
    render,
)
from sae_attr.text.tokenizer import (
    Span,
    Tokenizer,
    adds_bos,
    check_ids,
    encode,
    token_strings,
)


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens.

    Args:
      ids: int32 [t].
      loss_mask: bool [t], the tokens that the loss counts; the first token, which
        nothing predicts, never is.
      line: line number in its file, from 1.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    line: int


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a file and what had to be done to them.

    Args:
      rows: in the file's order.
      truncated: lines of rows that were longer than the context and cut.
      dropped: lines of rows of which cutting left nothing to learn.
      cut_tokens: tokens that cutting took away.
      unended: assistant turns after which the template writes no special token, so that
        their end is not learnt.
      unlike: lines of rows where an answer stands after another text than the one that
        generation will begin it after.
      unlike_shown: both texts, of the first of them.
    """

    rows: list[Example]
    truncated: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    cut_tokens: int = 0
    unended: int = 0
    unlike: tuple[int, ...] = ()
    unlike_shown: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Plain numbers for a report."""
        return {
            "rows": len(self.rows),
            "tokens": sum(len(row.ids) for row in self.rows),
            "targets": sum(int(row.loss_mask.sum()) for row in self.rows),
            "rows_truncated": len(self.truncated),
            "rows_dropped": len(self.dropped),
            "tokens_cut": self.cut_tokens,
            "turns_without_end_token": self.unended,
            "rows_unlike_generation": len(self.unlike),
        }


def read_examples(
    path: str | Path,
    tok: Tokenizer,
    *,
    context: int,
    truncate: bool = False,
    append_eos: bool | None = None,
    unlike: str = "refuse",
) -> Examples:
    """Reads JSONL records {"messages": [...]} or {"prompt", "completion"}, each a text
    or messages.

    Learnt are, of messages, the contents of the assistant's with the special token that
    ends the turn, from where a generation prompt for them ends (a template may write an
    empty thought between the two); of a text completion, all its tokens (one that
    straddles the border belongs to it) and the EOS after it. A prompt that ends with an
    assistant message is gone on with by a text completion, in the same turn; that
    message's own words are not learnt.

    Args:
      context: the most tokens of a row.
      truncate: cut longer rows at the end instead of refusing them.
      append_eos: an EOS after text completions; None: where the tokenizer has one.
      unlike: "refuse" a row whose last answer stands after another text than generation
        will begin it after, or "warn".

    Raises:
      ValueError: with file and line: not JSON, other fields, no assistant turn, an
        assistant turn that the chat template rewrites or that has no text, nothing to
        learn, a row longer than `context`, a token that the model's embedding lacks; or
        a file without records, an unknown choice.
    """
    if unlike not in UNLIKE:
        raise ValueError(
            f"unlike_generation {unlike!r} is unknown; choose {' or '.join(UNLIKE)}"
        )
    rows: list[Example] = []
    truncated, dropped, cut, unended = [], [], 0, 0
    apart: dict[int, str] = {}
    ends = tok.special_ids | {assistant_end(tok)}
    for line, record in json_lines(Path(path)):
        where = f"{path}:{line}"
        try:
            row, without_end, difference = _example(
                record, line, tok, ends, append_eos, where
            )
            if difference.refused and unlike == "refuse":
                raise ValueError(
                    f"{difference.shown}; set template_options (such as "
                    "enable_thinking=False) or another chat_template, "
                    "write the row as generation begins it, or train all the same with "
                    "unlike_generation=warn"
                )
            if difference.shown:
                apart[line] = difference.shown
            excess = len(row.ids) - context
            if excess > 0 and not truncate:
                raise ValueError(
                    f"the row has {len(row.ids)} tokens but the context is {context}; "
                    "shorten it, raise the context, or "
                    "allow truncation (truncate=True)"
                )
        except ValueError as error:
            raise ValueError(
                str(error) if str(error).startswith(where) else f"{where}: {error}"
            ) from error
        if excess > 0:
            truncated.append(line)
            cut += excess
            row = Example(row.ids[:context], row.loss_mask[:context], line)
        if row.loss_mask.any():
            rows.append(row)
            unended += without_end
        else:
            dropped.append(line)
    if not rows:
        why = (
            f"all {len(dropped)} rows lost their targets at {context} tokens"
            if dropped
            else "it has no records"
        )
        raise ValueError(f"{path} gives nothing to learn: {why}")
    return Examples(
        rows,
        tuple(truncated),
        tuple(dropped),
        cut,
        unended,
        tuple(apart),
        next(iter(apart.values()), ""),
    )


def shown_example(row: Example, tok: Tokenizer) -> str:
    """Returns the table that `--show_tokens` prints: each token, and whether the loss
    counts it.
    """
    lines = [
        f"line {row.line}: {len(row.ids)} tokens, {int(row.loss_mask.sum())} in the loss"
    ]
    texts = token_strings(tok, row.ids)
    lines += [
        f"{t:>5} {row.ids[t]:>7}  {text!r:<20} {'loss' if row.loss_mask[t] else ''}".rstrip()
        for t, text in enumerate(texts)
    ]
    return "\n".join(lines)


# ---- one record ----------------------------------------------------------------------


UNLIKE = ("refuse", "warn")


@dataclass(frozen=True)
class _Difference:
    """What generation begins an answer after, and what stands before it in a row;
    nothing shown where they agree.
    """

    shown: str = ""
    refused: bool = False


def _example(
    record: Any,
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    append_eos: bool | None,
    where: str,
) -> tuple[Example, int, _Difference]:
    """The row, how many assistant turns lack an end token, and how it differs from what
    generation will see.
    """
    content = _content(record, where)
    if isinstance(content, list):
        return _chat_example(content, line, tok, ends, _prefill(record))
    prompt, completion = content
    add_bos = adds_bos(tok)
    ids, offsets = encode(tok, prompt + completion, add_bos=add_bos)
    target = np.array([end > len(prompt) for _, end in offsets], bool)
    if tok.eos_id is not None and append_eos is not False:
        ids, target = [*ids, tok.eos_id], np.append(target, True)
        check_ids(tok, ids)
    elif append_eos:
        raise ValueError(
            f"{tok.path}: EOS is asked for but the tokenizer has none; set "
            "append_eos=False"
        )
    if not target.any():
        raise ValueError("the completion gives no token; fill it in")
    if target[0]:
        raise ValueError(
            "the completion's first token has nothing before it; give a prompt, or a "
            "tokenizer with BOS"
        )
    return Example(np.asarray(ids, np.int32), target, line), 0, _Difference()


def _content(record: Any, where: str) -> list[Message] | tuple[str, str]:
    """A conversation, or the texts of prompt and completion; ValueError for anything
    else.
    """
    found = record if isinstance(record, dict) else {}
    if "messages" in found:
        return _messages(found["messages"], "messages", where)
    if "prompt" not in found or "completion" not in found:
        shown = (
            f"the fields {', '.join(found)}" if found else f"a {type(record).__name__}"
        )
        raise ValueError(
            "a record has 'messages', or 'prompt' and 'completion'; this one is "
            f"{shown}"
        )
    prompt, completion = found["prompt"], found["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return sound(prompt, where), sound(completion, where)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    before = _messages(prompt, "prompt", where)
    if isinstance(completion, str):
        if not completion.strip():
            raise ValueError("the completion has no text; fill it in")
        return continued(before, sound(completion, where))
    if _prefill(found):
        raise ValueError(
            "'prompt' ends with an assistant message, which the completion goes on "
            "with; give 'completion' as a text, or the "
            "whole conversation as 'messages'"
        )
    return [*before, *_messages(completion, "completion", where)]


def _prefill(record: Any) -> Message | None:
    """A prompt's last message where it is the assistant's: given, not learnt, and gone
    on with.
    """
    prompt = None if "messages" in record else record.get("prompt")
    last = prompt[-1] if isinstance(prompt, list) and prompt else {}
    return last if last.get("role") == "assistant" else None


def _messages(value: Any, name: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(
            f"{name!r} is to be a text or a list of messages, not a "
            f"{type(value).__name__}"
        )
    for m in value:
        if not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str):
            raise ValueError(
                f"{name!r}: a message has 'role' and 'content', both text; this one "
                f"has {', '.join(m)}"
            )
        sound(m["role"] + m["content"], where)
    return value


def _chat_example(
    messages: list[Message],
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    prefill: Message | None,
) -> tuple[Example, int, _Difference]:
    """A rendered conversation; learnt are the assistant's contents with what ends them,
    of the last what follows `prefill`.
    """
    if not any(m["role"] == "assistant" for m in messages):
        roles = ", ".join(m["role"] for m in messages) or "none"
        raise ValueError(
            f"no message is the assistant's (roles: {roles}), so there is nothing to "
            "learn; add one"
        )
    text = render(tok, messages, add_generation_prompt=False)
    spans = message_spans(tok, messages, text, add_generation_prompt=False)
    ids, offsets = encode(tok, text, add_bos=False)
    target, unended, difference = np.zeros(len(ids), bool), 0, _Difference()
    for number, (message, span) in enumerate(zip(messages, spans)):
        if message["role"] == "assistant":
            if prefill is not None and number == len(messages) - 1:
                begin, found = _begin_behind(
                    [*messages[:number], prefill], text, span[0], tok
                )
            else:
                begin, found = _begin(messages[:number], text, span[0], tok)
            learnt, ended = _turn(
                text, span, begin, message["content"], ids, offsets, ends, tok
            )
            target[learnt] = True
            unended += not ended
            # An answer that is not the last may stand after another text: templates
            #   leave old thoughts out.
            last = number == max(
                i for i, m in enumerate(messages) if m["role"] == "assistant"
            )
            if found.shown:
                refused = found.refused and last
                difference = _Difference(
                    found.shown if refused else difference.shown or found.shown, refused
                )
    if target[0]:
        raise ValueError(
            "the chat template puts nothing before the assistant's first word; use "
            "another template"
        )
    return Example(np.asarray(ids, np.int32), target, line), unended, difference


def _begin(
    before: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, _Difference]:
    """Where in `text` generation begins an answer whose content is at `start`, and how
    it differs from what it will see.
    """
    try:
        prompt = render(tok, before)
        opened = prompt != render(tok, before, add_generation_prompt=False)
    except (
        ValueError
    ):  # nothing before it, or nothing that the template asks for an answer to
        return start, _Difference()
    if text[:start].startswith(prompt) and (
        opened or not text[len(prompt) : start].strip()
    ):
        return len(prompt) if opened else start, _Difference()
    same_words = prompt.split() == text[:start].split()
    return start, _Difference(
        _unlike(prompt, text[:start]), refused=opened and not same_words
    )


def _begin_behind(
    prompt: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, _Difference]:
    """`_begin` of an answer whose first words the prompt's last message gives."""
    seen = prompt_text(tok, prompt)[0]
    if text.startswith(seen):
        return len(seen), _Difference()
    return start, _Difference(
        _unlike(seen, text[: max(start, len(seen))]), refused=True
    )


def _unlike(prompt: str, before: str) -> str:
    """Shows the text that generation begins an answer after beside that of a row, from
    where they part.
    """
    at = next(
        (i for i, pair in enumerate(zip(prompt, before)) if pair[0] != pair[1]),
        min(len(prompt), len(before)),
    )
    show = lambda whole: f"{'...' if at > 20 else ''}{whole[max(0, at - 20) : at + 60]}"
    return f"generation begins an answer after {show(prompt)!r}, but in the row it stands after {show(before)!r}"


def _turn(
    text: str,
    span: Span,
    begin: int,
    content: str,
    ids: Sequence[int],
    offsets: Sequence[Span],
    ends: Set[int | None],
    tok: Tokenizer,
) -> tuple[slice, bool]:
    """The tokens of one assistant turn, and whether a special token that ends it is
    among them.
    """
    start, end = span
    if not content.strip():
        raise ValueError("an assistant message has no text; fill it in or leave it out")
    if text[start:end].strip() != content.strip():
        raise ValueError(
            f"the chat template of {tok.path} rewrites the assistant message "
            f"{content[:40]!r} to {text[start:end][:40]!r}, "
            "so what is learnt cannot be told; write the message as the template does, "
            "or use another template"
        )
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
    last = next(
        (i for i, (at, _) in enumerate(offsets) if at >= end and i > first), len(ids)
    )
    closing = last
    while (
        closing < len(ids)
        and ids[closing] not in ends
        and not text[slice(*offsets[closing])].strip()
    ):
        closing += 1
    ended = closing < len(ids) and ids[closing] in ends
    return slice(first, closing + 1 if ended else last), ended


# ---- packing -------------------------------------------------------------------------


def pack(lengths: Sequence[int], context: int, *, seed: int = 0) -> list[list[int]]:
    """Rows joined to packs of at most `context` tokens: best fit, in an order drawn by
    `seed`.

    Every row stands in exactly one pack, whole. A drawn order rather than the longest
    first keeps packs of mixed kinds.

    Raises:
      ValueError: a row longer than the context.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), in order
    for index in order:
        length = int(lengths[index])
        if length > context:
            raise ValueError(
                f"row {index} has {length} tokens and cannot be packed into {context}"
            )
        at = bisect_left(room, (length, -1))
        left, number = room.pop(at) if at < len(room) else (context, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(int(index))
        if left > length:
            insort(room, (left - length, number))
    return packs


def packed_arrays(
    rows: Sequence[Example], packs: Sequence[Sequence[int]], *, width: int, targets: int
) -> dict[str, np.ndarray]:
    """Token arrays of packs, one a row: tokens_bt, pos_bt, segment_bt (-1 on padding),
    target_bc, target_valid_bc.

    Args:
      rows: all examples.
      packs: which examples stand in each row; an empty pack is a row of padding.
      width: columns t.
      targets: columns c, at least the targets of any pack.
    """
    b = len(packs)
    out = {name: np.zeros((b, width), np.int32) for name in ("tokens_bt", "pos_bt")}
    out["segment_bt"] = np.full((b, width), -1, np.int32)
    out["target_bc"], out["target_valid_bc"] = (
        np.zeros((b, targets), np.int32),
        np.zeros((b, targets), bool),
    )
    for k, members in enumerate(packs):
        at, learnt = 0, []
        for segment, index in enumerate(members):
            row, stop = rows[index], at + len(rows[index].ids)
            out["tokens_bt"][k, at:stop] = row.ids
            out["pos_bt"][k, at:stop] = np.arange(stop - at)
            out["segment_bt"][k, at:stop] = segment
            learnt.append(at + np.flatnonzero(row.loss_mask))
            at = stop
        places = np.concatenate(learnt) if learnt else np.zeros(0, int)
        out["target_bc"][k, : len(places)], out["target_valid_bc"][k, : len(places)] = (
            places,
            True,
        )
    return out
