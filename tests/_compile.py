"""How programs are compiled in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def quick_compile() -> Iterator[None]:
    """Programs compile in half the time and run somewhat slower: right for models as
    small as those of tests.

    Their last bits differ from those of other programs, so processes that are compared
    bit by bit compile alike.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
