"""What process 0 alone is answered, passed on to all processes of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sae_attr.parallel import is_main, text_from_main

# Seconds between two messages to the processes that wait: a collective that none joins
# for many minutes would be ended.
EVERY = 20.0


def relayed(
    values: Callable[[], Iterable[Any]],
    *,
    record: Callable[[Exception], Any],
    error: Callable[[Any], Exception],
) -> Iterator[Any]:
    """Yields on every process the values that process 0 iterates over, as they arrive;
    raises on every process what it raises there.

    Args:
      values: called on process 0 alone; gives plain values of JSON.
      record: an exception -> plain values of JSON.
      error: the inverse of `record`.
    """
    messages = _sent(values, record) if is_main() else _received(error)
    for message in messages:
        yield from message["values"]


def _sent(
    values: Callable[[], Iterable[Any]], record: Callable[[Exception], Any]
) -> Iterator[dict[str, Any]]:
    unsent: list[Any] = []
    began = time.monotonic()
    try:
        for value in values():
            unsent.append(value)
            if time.monotonic() - began > EVERY:
                yield _send({"values": unsent, "more": True})
                unsent, began = [], time.monotonic()
    except Exception as error:
        yield _send({"values": unsent, "error": record(error)})
        raise
    yield _send({"values": unsent, "more": False})


def _send(message: dict[str, Any]) -> dict[str, Any]:
    text_from_main(json.dumps(message))
    return message


def _received(error: Callable[[Any], Exception]) -> Iterator[dict[str, Any]]:
    more = True
    while more:
        message = json.loads(text_from_main(""))
        yield message
        if "error" in message:
            raise error(message["error"])
        more = message["more"]
