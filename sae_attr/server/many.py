"""Asks many questions at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from sae_attr.server.tally import A, Q, Tally


def ask_many(
    tally: Tally[Q, A], ask: Callable[[Q, threading.Event], A], *, name: str
) -> Iterator[tuple[Q, A]]:
    """Yields (question, answer) as answers arrive, until none is left to ask or the
    server is asked no more; `tally` holds what became of the others.

    Args:
      ask: one question; the event says that nothing is to be sent again.
      name: of the threads.
    """
    concurrency = tally.patience.concurrency
    running = dict[Future[A], Q]()
    halt = threading.Event()
    with ThreadPoolExecutor(concurrency, thread_name_prefix=name) as pool:
        try:
            while True:
                while len(running) < concurrency:
                    if not tally.waiting or tally.ended:
                        break
                    question = tally.next_question()
                    running[pool.submit(ask, question, halt)] = question
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    question = running.pop(future)
                    answer = tally.take(future, question)
                    if answer is not None:
                        yield question, answer
        finally:
            halt.set()  # where the caller asks for no more, nothing is sent again
