"""Training a small language model: tokens a second, by steps per program, beside torch.

Command: python -m benchmarks.training
Measured: tokens a second of AdamW steps (float32, clipped) of a Llama of 4 layers and
width 96 over 512 tokens of vocabulary, 16 rows of 32 tokens a step, with 1, 5 and 20
steps in one program; and, where torch and transformers can be imported, the same model
and optimiser there. All sides run by turns, 3 times, and the shortest time counts;
`cpu` is tokens a second of processor time over all threads, which moves less when other
programs run.
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment makes large buffers cheaper to
touch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks._timing import seconds
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.next_token import TokenBatch, init_state
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.params import init_params
from sae_attr.lm.train_lm import compiled_steps, place_state, place_steps
from sae_attr.parallel import make_mesh

HF: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
ROWS, WIDTH, STEPS, ROUNDS = 16, 32, 20, 3
OPT = Optimizer(lr=1e-3, steps=1000, warmup=10, weight_decay=0.1)


def batch(step: int) -> TokenBatch:
    """Draws random rows `[1, b, t]` of which every token but the first is learnt."""
    tokens_bt = (
        np.random.default_rng(step)
        .integers(0, HF["vocab_size"], (ROWS, WIDTH))
        .astype(np.int32)
    )
    pos_bt = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), tokens_bt.shape)
    rows = TokenBatch(
        tokens_bt, pos_bt, np.zeros_like(tokens_bt), pos_bt[:, 1:], pos_bt[:, 1:] > 0
    )
    return jax.tree.map(lambda x: x[None], rows)


def ours(scan: int) -> Callable[[], None]:
    """Returns a call that makes `STEPS` steps, `scan` in one program."""
    cfg, mesh = config_from_hf(HF), make_mesh("data=1")
    state = place_state(
        init_state(jax.jit(partial(init_params, cfg))(jax.random.key(0)), OPT), mesh
    )
    run = compiled_steps(state, mesh, cfg=cfg, opt=OPT)
    held = {"state": state}

    def steps() -> None:
        for first in range(0, STEPS, scan):
            data = place_steps([batch(first + i) for i in range(scan)], mesh)
            held["state"], metrics = run(held["state"], {}, data)
            jax.device_get(metrics)

    return steps


def torchs() -> Callable[[], None]:
    """Returns the same in torch; ImportError where it is absent."""
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**HF)
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def steps() -> None:
        for step in range(STEPS):
            ids = torch.tensor(batch(step).tokens_bt[0], dtype=torch.long)
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()

    return steps


def main() -> None:
    """Prints a row for each side."""
    sides = {f"{scan} steps a program": ours(scan) for scan in (1, 5, 20)}
    try:
        sides["torch, transformers"] = torchs()
    except ImportError as error:
        print(f"torch left out: {error}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for steps in sides.values():
        steps()  # compiles
    for _ in range(ROUNDS):
        for name, steps in sides.items():
            times[name].append(seconds(steps))
    print(f"{'side':<22} {'tokens/s':>9} {'cpu':>9}")
    for name, found in times.items():
        clock, cpu = (min(column) for column in zip(*found))
        print(
            f"{name:<22} {STEPS * ROWS * WIDTH / clock:>9,.0f} "
            f"{STEPS * ROWS * WIDTH / cpu:>9,.0f}"
        )


if __name__ == "__main__":
    main()
