"""HTTP: one request is one request, and a reply ends, in time and in size,
whatever the server sends.
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Of one reply; log-probabilities of thousands of tokens take a few MB.
MOST_BYTES = 32 * 2**20


class Endless(Exception):
    """A reply that is not whole in time, or larger than any chat completion."""


def bounded_client(timeout: float) -> Any:
    """Returns an HTTP client of the openai library that follows no redirect and gives
    up a reply that does not end.

    A redirect would be a request that no budget counts, and would carry the key to
    another address. A reply may have `MOST_BYTES` and take `timeout` seconds.
    """
    client: Any = importlib.import_module("openai").DefaultHttpxClient
    # The HTTP library of openai's own client: openai 3 has another one than openai 2.
    library = client.__mro__[1].__module__.partition(".")[0]
    httpx: Any = importlib.import_module(library)

    class Bounded(httpx.SyncByteStream):
        """A reply's body, as long as it is within its bounds."""

        # A deadline for the whole: the client's limit starts anew with every read.
        def __init__(self, stream: Any) -> None:
            self.stream, self.end = stream, time.monotonic() + timeout

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self.stream:
                size += len(chunk)
                if size > MOST_BYTES:
                    raise Endless(
                        f"the server's reply has more than {MOST_BYTES:,} bytes"
                    )
                if time.monotonic() > self.end:
                    raise Endless(
                        f"the server's reply was not whole after {timeout:g} s"
                    )
                yield chunk

        def close(self) -> None:
            self.stream.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream)

    return client(
        timeout=timeout, follow_redirects=False, event_hooks={"response": [bound]}
    )


def within(seconds: float, call: Callable[[], T]) -> T:
    """Returns what `call` returns, or raises what it raises, if it ends within so many
    seconds.

    It runs in a thread of its own: timeouts of a connection are per read, so a server
    that drips its headers would hold a request for ever. What does not end is left to
    itself.

    Raises:
      Endless: it did not end in time.
    """
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    # A daemon: Python waits for other threads at its end, and this one may never end.
    threading.Thread(target=run, name="one request", daemon=True).start()
    try:
        value, error = done.get(timeout=seconds)
    except queue.Empty:
        raise Endless(f"the server's reply was not whole after {seconds:g} s") from None
    if error is not None:
        raise error
    return value
