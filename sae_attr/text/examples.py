"""Files of supervised examples: chat or prompt/completion records as token rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_attr.files.text import json_lines
from sae_attr.text.chat import (
    assistant_end,
)
from sae_attr.text.example_records import Example, record_example
from sae_attr.text.tokenizer import (
    Tokenizer,
    token_strings,
)


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
            row, without_end, difference = record_example(
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


UNLIKE = ("refuse", "warn")
