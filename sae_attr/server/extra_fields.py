"""Fields that users add to every request, checked against those that a request states."""

from __future__ import annotations

from collections.abc import Collection, Iterable

TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
# With one of these a reply is not one completion any more.
_OF_THE_REPLY = ("n", "best_of", "echo", "stream")


def check_extra(
    extra: Iterable[str], stated: Collection[str], *, setting: str, instead: str
) -> None:
    """Raises ValueError for extra fields that would replace what a request states, or
    that make a reply another thing than one completion.

    Args:
      extra: names of the fields that are added.
      stated: names of those that the request states itself.
      setting: that holds the extra fields.
      instead: where those of `stated` are set.
    """
    names = sorted({*extra} & {*stated, *TOKEN_FIELDS, *_OF_THE_REPLY})
    if names:
        raise ValueError(
            f"{setting} holds {', '.join(names)}, which each request states itself; "
            f"leave {'it' if len(names) == 1 else 'them'} out and use {instead}"
        )
