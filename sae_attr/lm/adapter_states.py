"""The hidden states of LoRA adapters: what each reads off every token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Site
from sae_attr.lm.block import Norm
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.lm.train_data import all_batches, example_dataset
from sae_attr.parallel import to_host
from sae_attr.text.example_records import Example

# The site at which a matrix's input arises; q, k and v read the normed residual stream.
_INPUT = {"o": "attn_z", "gate": "mlp_in", "up": "mlp_in", "down": "mlp_hidden"}
_INPUT |= dict.fromkeys("qkv", "resid_pre")


def adapter_states(
    params: Params,
    tokens_bt: jax.Array,
    *,
    cfg: LMConfig,
    layers: tuple[int, ...],
    pos_bt: jax.Array | None = None,
    valid_bt: jax.Array | None = None,
    segment_bt: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns x A, the projection that every adapter reads off its input, for every token;
    of rank 1 a scalar per token.

    B alone says what an adapter writes, so these are all that a token decides (what
    studies of rank-1 organisms read).

    Args:
      params: with the adapter kept apart in `params["lora"]`.
      layers: adapted ones.

    Returns:
      name of the matrix -> float32 `[layers, b, t, r]`.
    """
    lora = params["lora"]
    keep = tuple({Site(layer, _INPUT[name]): None for name in lora for layer in layers})
    acts = forward(
        params,
        tokens_bt,
        cfg=cfg,
        pos_bt=pos_bt,
        valid_bt=valid_bt,
        segment_bt=segment_bt,
        keep=keep,
    ).acts

    def state(name: str, layer: int) -> jax.Array:
        x_bti = acts[Site(layer, _INPUT[name])]
        if name in "qkv" and cfg.pre_norm:
            norm = jax.tree.map(lambda w: w[layer], params["blocks"]["attn_norm"])
            x_bti = Norm(cfg, params["embed"]["table"].dtype).apply(
                {"params": norm}, x_bti
            )
        return jnp.einsum(
            "bti,ir->btr",
            x_bti,
            lora[name]["a"][layer],
            precision=jax.lax.Precision.HIGHEST,
        )

    states = {}
    for name in lora:
        state_lbtr = jnp.stack([state(name, layer) for layer in layers])
        states[name] = state_lbtr.astype(jnp.float32)
    return states


def example_states(
    params: Params,
    examples: Sequence[Example],
    *,
    cfg: LMConfig,
    layers: tuple[int, ...],
    context: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Returns `adapter_states` of every token of some examples, one after the other.

    Returns:
      name of the matrix -> `[layers, tokens, r]`; of each token `ids`, `loss_mask`,
      `line` of the data file and `pos` in its example; `layers`.
    """
    states = jax.jit(partial(adapter_states, cfg=cfg, layers=layers))
    dataset = example_dataset(examples, context=context, packed=False)
    parts: dict[str, list[np.ndarray]] = {}
    for batch in all_batches(dataset, batch_size):
        valid_bt = batch.segment_bt >= 0
        for name, x_lbtr in states(params, batch.tokens_bt).items():
            parts.setdefault(name, []).append(to_host(x_lbtr)[:, valid_bt])
    arrays = {name: np.concatenate(x, axis=1) for name, x in parts.items()}
    lengths = [len(example.ids) for example in examples]
    return {
        **arrays,
        "ids": np.concatenate([example.ids for example in examples]),
        "loss_mask": np.concatenate([example.loss_mask for example in examples]),
        "line": np.repeat([example.line for example in examples], lengths),
        "pos": np.concatenate([np.arange(length) for length in lengths]),
        "layers": np.array(layers),
    }
