"""The time of one bare matrix product: what this machine could do at most."""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp


def product_seconds(m: int, k: int, n: int, *, rounds: int = 4) -> tuple[float, float]:
    """Times one float32 product `[m, k]` × `[k, n]` in JAX.

    Returns:
      The shortest seconds of all rounds: on the clock, and of all cores' time, which
      others on the machine do not change.
    """
    product = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    operands = jnp.ones((m, k)), jnp.ones((k, n))
    product(*operands).block_until_ready()
    times, of_cores = [], []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        product(*operands).block_until_ready()
        times.append(time.perf_counter() - clock)
        of_cores.append(time.process_time() - processor)
    return min(times), min(of_cores)
