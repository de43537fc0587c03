"""Bytes that a run holds on each device, from shapes and the mesh alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.lm.cache import init_cache
from sae_attr.lm.config import LMConfig
from sae_attr.lm.params import init_params, room_for_copy
from sae_attr.parallel import LM_RULES, Rules, shardings
from sae_attr.sae.config import SAEConfig

ALWAYS = ""  # the phase of what stays for the whole run


@dataclass(frozen=True)
class Held:
    """Something that lies on a device.

    Args:
      what: for readers.
      bytes: on the device that holds most of it.
      phase: while which it lies there; `ALWAYS` for the whole run.
      on_host: it lies in the host's memory, whatever the device.
    """

    what: str
    bytes: int
    phase: str = ALWAYS
    on_host: bool = False


def param_shapes(cfg: LMConfig, dtype: str) -> Any:
    """Returns the tree of parameters as shapes and dtypes; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0), dtype))


def parameter_count(shapes: Any) -> int:
    """Counts the numbers of a tree of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def device_bytes(shapes: Any, rules: Rules, mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes that a tree takes on each device of a mesh.

    Args:
      shapes: leaves with `shape` and `dtype`.
      rules: as for `parallel.shardings`.
    """
    places = shardings(shapes, rules, mesh)
    total = 0
    for leaf, place in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True
    ):
        part = place.shard_shape(leaf.shape)
        total += math.prod(part) * jnp.dtype(leaf.dtype).itemsize
    return total


def weight_bytes(cfg: LMConfig, mesh: jax.sharding.Mesh, dtype: str) -> int:
    """Returns the bytes of a model's weights on each device."""
    return device_bytes(param_shapes(cfg, dtype), LM_RULES, mesh)


def cache_bytes(
    cfg: LMConfig, mesh: jax.sharding.Mesh, dtype: str, *, rows: int, slots: int
) -> int:
    """Returns the bytes of keys and values of a batch on each device; rows are split over
    `data`, heads over `model` where it divides them.
    """
    shapes = jax.eval_shape(
        partial(init_cache, cfg, rows=rows, slots=slots, dtype=dtype)
    )
    total = 0
    for leaf in jax.tree.leaves(shapes.kv):
        total += math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
    heads = mesh.shape["model"]
    split = heads if cfg.n_kv_heads % heads == 0 else 1
    return total // (mesh.shape["data"] * split)


def sampling_memory(
    cfg: LMConfig, mesh: jax.sharding.Mesh, dtype: str, *, rows: int, slots: int
) -> list[Held]:
    """Returns what a batch of completions holds on each device beside the weights.

    Args:
      rows: of the batch.
      slots: tokens that a row may come to hold.
    """
    cache = cache_bytes(cfg, mesh, dtype, rows=rows, slots=slots)
    per_device = max(rows // mesh.shape["data"], 1)
    phase = "completions are sampled"
    blocks = device_bytes(
        {"blocks": param_shapes(cfg, dtype)["blocks"]}, LM_RULES, mesh
    )
    copied = [Held("a copy of the weights by layer", blocks, phase)]
    return [
        *(copied if room_for_copy(blocks, mesh) else []),
        Held("keys and values", cache, phase),
        # Logits, their weights and the sums that a draw compares.
        Held("next-token numbers", 3 * 4 * per_device * cfg.vocab, phase),
    ]


def exact_memory(
    cfg: LMConfig, mesh: jax.sharding.Mesh, dtype: str, *, rows: int, slots: int
) -> list[Held]:
    """Returns what exact probabilities of texts hold on each device beside the weights,
    at most: for a batch of conditions, keys and values and the next-token numbers of
    one prompt's texts.
    """
    cache = cache_bytes(cfg, mesh, dtype, rows=rows, slots=slots)
    per_device = max(rows // mesh.shape["data"], 1)
    phase = "texts are measured"
    return [
        Held("keys and values of conditions", cache, phase),
        Held("their next-token numbers", 2 * 4 * per_device * cfg.vocab, phase),
    ]


def sae_bytes(cfg: SAEConfig, dtype: str = "float32") -> dict[str, int]:
    """Returns the bytes of an SAE's encoder and decoder; biases and thresholds are with
    the encoder.
    """
    size = jnp.dtype(dtype).itemsize
    streams = cfg.streams
    encoder = cfg.n_latents * (cfg.d_in * streams + 2) + cfg.d_in
    decoder = cfg.n_latents * cfg.d_out * streams
    return {"encoder": encoder * size, "decoder": decoder * size}


def backward_bytes(
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    dtype: str,
    *,
    rows: int,
    width: int,
    layers: int,
    remat: bool = False,
) -> int:
    """Returns the bytes that a backward pass keeps of a batch on each device: the matrix
    products of the layers that it runs through, or with `remat` what enters them.

    Args:
      rows, width: of the batch.
      layers: of the backward pass.
    """
    size = jnp.dtype(dtype).itemsize
    heads = cfg.n_heads * cfg.head_dim
    mlp = cfg.d_mlp * max(cfg.n_chosen, 1) * (3 if cfg.gated_mlp else 2)
    products = 2 * heads + 2 * cfg.n_kv_heads * cfg.head_dim + cfg.n_heads * width
    per_token = size * (products + 2 * cfg.d_model + mlp)
    entering = jnp.dtype(cfg.resid_dtype).itemsize * cfg.d_model
    of_layers = layers * entering
    # Recomputed, one layer's products are there at a time.
    of_layers += per_token if remat else layers * per_token
    return rows // mesh.shape["data"] * width * of_layers


def most_held(parts: Sequence[Held]) -> tuple[str, int]:
    """Returns the phase in which most lies on a device, and its bytes, with what always
    does.
    """
    always = sum(part.bytes for part in parts if part.phase == ALWAYS)
    by_phase: dict[str, int] = {}
    for part in parts:
        if part.phase != ALWAYS:
            by_phase[part.phase] = by_phase.get(part.phase, 0) + part.bytes
    if not by_phase:
        return ALWAYS, always
    phase = max(by_phase, key=lambda name: by_phase[name])
    return phase, always + by_phase[phase]
