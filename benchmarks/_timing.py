"""Times of calls, and of one bare matrix product: what this machine could do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Seconds = tuple[float, float]
"""On the clock, and of processor time over all threads, which others on the machine do
not change.
"""


def seconds(run: Callable[[], Any]) -> Seconds:
    """Times one call to the end of its computation."""
    clock, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - clock, time.process_time() - processor


def product_seconds(m: int, k: int, n: int, *, rounds: int = 4) -> Seconds:
    """Times one float32 product `[m, k]` × `[k, n]` in JAX; the shortest of all rounds,
    by each clock.
    """
    product = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    operands = jnp.ones((m, k)), jnp.ones((k, n))
    product(*operands).block_until_ready()
    times = [seconds(lambda: product(*operands)) for _ in range(rounds)]
    return min([wall for wall, _ in times]), min([cpu for _, cpu in times])
