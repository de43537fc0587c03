"""Which tensors of a file fill each leaf of the parameter tree."""

from __future__ import annotations

import jax

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_layouts import source_of
from sae_attr.lm.params import init_params


def leaf_shapes(cfg: LMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape of every leaf of the parameter tree."""
    tree = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def places(cfg: LMConfig, leaf: str) -> list[tuple[tuple[int, ...], str]]:
    """Returns what fills a leaf: its first indices (none, a layer, or a layer and an expert)
    and a tensor's name.
    """
    source = source_of(cfg, leaf)
    if not leaf.startswith("blocks/"):
        return [((), source.name)]
    experts = range(cfg.n_experts if source.per_expert else 1)
    at = lambda i, j: (i, j) if source.per_expert else (i,)
    layers = cfg.layers_of(leaf)
    return [
        (at(k, j), source.name.format(i, j))
        for k, i in enumerate(layers)
        for j in experts
    ]


def names(cfg: LMConfig, leaf: str) -> list[str]:
    """Returns the tensors that fill a leaf, in order."""
    return list(dict.fromkeys(name for _, name in places(cfg, leaf)))
