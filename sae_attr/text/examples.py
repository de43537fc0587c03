"""Files of supervised examples: chat or prompt/completion records as token rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_attr.files.text import json_lines
from sae_attr.text.chat import (
    assistant_end,
)
from sae_attr.text.example_records import EncodedRecord, Example, encode_record
from sae_attr.text.tokenizer import (
    Tokenizer,
    token_strings,
)

UNLIKE = ("refuse", "warn")


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a file, and how rows were changed.

    Args:
      rows: in the file's order.
      truncated: lines of rows that were longer than the context and cut.
      dropped: lines of rows that cutting left without a token in the loss.
      cut_tokens: tokens that cutting took away.
      unended: assistant turns after which the template writes no special token, so that
        the model does not learn to end them.
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
        """Returns plain numbers for a report."""
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

    Of messages, the loss counts the assistant's contents with the special token that
    ends the turn, from where a generation prompt for them ends (a template may write an
    empty thought between the two); of a text completion, all its tokens (one that
    straddles the border belongs to it) and the EOS after it. A text completion
    continues a prompt that ends with an assistant message, in the same turn; the loss
    does not count that message's words.

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
    truncated, dropped, cut_tokens, unended = [], [], 0, 0
    differences: dict[int, str] = {}
    ends = tok.special_ids | {assistant_end(tok)}
    for line, record in json_lines(Path(path)):
        where = f"{path}:{line}"
        try:
            encoded = encode_record(record, line, tok, ends, append_eos, where)
            _check_record(
                encoded, context, truncate=truncate, refuse=unlike == "refuse"
            )
        except ValueError as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where}: {error}") from error
        row = encoded.example
        if encoded.difference.shown:
            differences[line] = encoded.difference.shown
        excess = len(row.ids) - context
        if excess > 0:
            truncated.append(line)
            cut_tokens += excess
            row = Example(row.ids[:context], row.loss_mask[:context], line)
        if row.loss_mask.any():
            rows.append(row)
            unended += encoded.unended
        else:
            dropped.append(line)
    if not rows:
        reason = "it has no records"
        if dropped:
            reason = f"all {len(dropped)} rows lost their targets at {context} tokens"
        raise ValueError(f"{path} gives nothing to learn: {reason}")
    return Examples(
        rows,
        truncated=tuple(truncated),
        dropped=tuple(dropped),
        cut_tokens=cut_tokens,
        unended=unended,
        unlike=tuple(differences),
        unlike_shown=next(iter(differences.values()), ""),
    )


def _check_record(
    encoded: EncodedRecord, context: int, *, truncate: bool, refuse: bool
) -> None:
    """Raises ValueError for a row unlike what generation will see, or too long."""
    if encoded.difference.refused and refuse:
        raise ValueError(
            f"{encoded.difference.shown}; set template_options (such as "
            "enable_thinking=False) or another chat_template, write the row as "
            "generation begins it, or train all the same with unlike_generation=warn"
        )
    tokens = len(encoded.example.ids)
    if tokens > context and not truncate:
        raise ValueError(
            f"the row has {tokens} tokens but the context is {context}; shorten it, "
            "raise the context, or allow truncation (truncate=True)"
        )


def shown_example(row: Example, tok: Tokenizer) -> str:
    """Returns the table that `--show_tokens` prints: each token, and whether the loss
    counts it.
    """
    targets = int(row.loss_mask.sum())
    lines = [f"line {row.line}: {len(row.ids)} tokens, {targets} in the loss"]
    for t, text in enumerate(token_strings(tok, row.ids)):
        mark = "loss" if row.loss_mask[t] else ""
        lines.append(f"{t:>5} {row.ids[t]:>7}  {text!r:<20} {mark}".rstrip())
    return "\n".join(lines)
