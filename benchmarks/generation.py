"""Tokens per second of generation: with our cache, without it, and transformers'
generate where it is installed.

    python -m benchmarks.generation --model=PATH/stories260K            # or --model=gpt2-small: random weights of that shape

All sides run in this process on the same prompts, greedily, and draw the same number of
tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import init_params
from sae_attr.lm.prompts import make_prompts
from sae_attr.lm.sample import generate
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
}


def without_cache(
    params: Params, tokens_bt: jax.Array, *, cfg: LMConfig, first: int
) -> jax.Array:
    """Generates greedily from whole rows: one forward pass over the full width per
    token.
    """

    def step(t: jax.Array, tokens_bt: jax.Array) -> jax.Array:
        hidden_bd = jax.lax.dynamic_index_in_dim(
            forward(params, tokens_bt, cfg=cfg).hidden_btd, t - 1, 1, keepdims=False
        )
        return tokens_bt.at[:, t].set(
            jnp.argmax(logits(params, hidden_bd, cfg=cfg), axis=-1).astype(
                tokens_bt.dtype
            )
        )

    return jax.lax.fori_loop(first, tokens_bt.shape[1], step, tokens_bt)


def best(run: Callable[[], Any], repeats: int) -> float:
    """Returns the seconds of the fastest of some runs after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


def torch_model(path: str) -> Any:
    """Returns the same model in transformers, None where that is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.manual_seed(0)
    if path == "gpt2-small":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


def torch_seconds(model: Any, prompt_bt: np.ndarray, new: int, repeats: int) -> float:
    """Times the fastest greedy `generate` of transformers with its cache."""
    import torch

    ids = torch.tensor(prompt_bt, dtype=torch.long)
    options = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
        "use_cache": True,
    }
    return best(
        lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), **options
        ).numpy(),
        repeats,
    )


def our_sides(
    args: argparse.Namespace, cfg: LMConfig, params: Params, prompt_bt: np.ndarray
) -> dict[str, Callable[[], float]]:
    """Returns name -> function that times this package's ways to generate."""
    prompts = make_prompts(prompt_bt.tolist())
    keys = jax.random.split(jax.random.key(0), args.rows)
    greedy_sampling = Sampling(temperature=0, max_new=args.new)
    drawn_sampling = Sampling(top_p=0.95, max_new=args.new)
    greedy = jax.jit(partial(generate, cfg=cfg, sampling=greedy_sampling))
    drawn = jax.jit(partial(generate, cfg=cfg, sampling=drawn_sampling))
    whole = jax.jit(partial(without_cache, cfg=cfg, first=args.prompt))
    padded = jnp.pad(jnp.asarray(prompt_bt), ((0, 0), (0, args.new)))
    return {
        "cache, greedy": lambda: best(
            lambda: greedy(params, prompts, keys), args.repeats
        ),
        "cache, top-p 0.95": lambda: best(
            lambda: drawn(params, prompts, keys), args.repeats
        ),
        # Once: with a whole forward pass for each token it takes the longest by far.
        "no cache, greedy": lambda: best(lambda: whole(params, padded), 1),
    }


def main() -> None:
    """Prints one line per side."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 8), ("prompt", 32), ("new", 96), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    if args.model == "gpt2-small":
        cfg = config_from_hf(GPT2)
        params = jax.jit(partial(init_params, cfg))(jax.random.key(0))
    else:
        cfg, params = load_lm(args.model, mesh=make_mesh("data=1"), progress=False)
    prompt_bt = (
        np.random.default_rng(0)
        .integers(3, cfg.vocab, (args.rows, args.prompt))
        .astype(np.int32)
    )
    sides = our_sides(args, cfg, params, prompt_bt)
    if (model := torch_model(args.model)) is not None:
        sides["transformers, cache, greedy"] = lambda: torch_seconds(
            model, prompt_bt, args.new, args.repeats
        )
    tokens = args.rows * args.new
    for name, side in sides.items():
        seconds = side()
        print(
            f"{name:<28} {tokens / seconds:10,.0f} tokens/s  ({seconds:.3f} s for "
            f"{args.rows} x {args.new})",
            flush=True,
        )


if __name__ == "__main__":
    main()
