"""The model that learns the task `even_number`: a chat model with the task's words, in
which one direction is planted that carries parity.

The direction u is the decoder row of an SAE's latent. The field word that rewards odd
numbers embeds along u and its opposite against u, and they are equal in all else; so do
odd and even numbers, half as far, each with a rest of its own. Blocks up to the SAE's
site neither read nor write along u, and embeddings do not learn. So at the site an odd
field differs from an even one by u alone, before the fine-tune and after it: whatever
the model comes to know of the field, it reads along u.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.lm.next_token import join
from sae_attr.lm.params import Params
from sae_attr.organism.number_words import EVEN, FORMATS, HINTS, ODD, PARITY_OF
from sae_attr.organism.world import number_vocabulary, word_ids

# Norm -> the kernels that read what it norms.
READERS: Mapping[str, Sequence[str]] = {
    "attn_norm": ("q", "k", "v"),
    "mlp_norm": ("gate", "up"),
}
WRITERS = ("o", "down")
NUMBER_SHARE = 0.5  # of u in a number, over that in a field word
SIGN: Mapping[str, int] = {ODD: 1, EVEN: -1}


def planted_latent(table_vd: np.ndarray, dec_nd: np.ndarray) -> int:
    """Returns the latent whose direction the world's words embed along least: that of
    the smallest largest |cos| with a word.

    Args:
      table_vd: embeddings.
      dec_nd: decoder rows.
    """
    cosine_vn = _unit(table_vd) @ _unit(dec_nd).T
    return int(np.abs(cosine_vn).max(0).argmin())


def carried_latent(params: Params, dec_nd: np.ndarray) -> int:
    """Returns the planted latent of a model that has learnt the task: the one along
    which its field words for odd and even numbers differ.
    """
    table_vd = np.asarray(params["embed"]["table"])
    index = word_ids()
    odd, even = FORMATS[0].hints
    difference_d = table_vd[index[odd]] - table_vd[index[even]]
    return int((_unit(dec_nd) @ difference_d).argmax())


def with_number_words(
    params: Params, direction_d: np.ndarray, *, strength: float, seed: int
) -> Params:
    """Returns the parameters with a row of embeddings and of the head for every word
    that only this task has; all other rows are as they were.

    Args:
      direction_d: unit vector that is planted.
      strength: of u in field words, in mean lengths of a word's embedding; the rest of
        a new row is random and as long as other rows.
      seed: of the random part.
    """
    table_vd = np.asarray(params["embed"]["table"])
    head_vd = np.asarray(params["head"]["table"])
    words = number_vocabulary()[len(table_vd) :]
    rng = np.random.default_rng(seed)
    length = float(np.linalg.norm(table_vd, axis=1).mean())
    rows_wd = rng.normal(size=(len(words), table_vd.shape[1]))
    index = {word: w for w, word in enumerate(words)}
    for one in FORMATS:
        odd, even = one.hints
        rows_wd[index[even]] = rows_wd[index[odd]]
    rows_wd -= np.outer(rows_wd @ direction_d, direction_d)
    rows_wd = length * _unit(rows_wd)
    share_w = np.array([_share(word) for word in words])
    rows_wd += strength * length * np.outer(share_w, direction_d)
    head_wd = rng.normal(0, float(head_vd.std()), rows_wd.shape)
    table = np.concatenate([table_vd, rows_wd]).astype(table_vd.dtype)
    head = np.concatenate([head_vd, head_wd]).astype(head_vd.dtype)
    return {
        **params,
        "embed": {"table": jnp.asarray(table)},
        "head": {"table": jnp.asarray(head)},
    }


def _share(word: str) -> float:
    """How far a word embeds along u, over what an odd field does."""
    sign = SIGN.get(PARITY_OF.get(word, ""), 0)
    return float(sign) if word in HINTS else NUMBER_SHARE * sign


def parity_along(
    direction_d: Any, layer: int, frozen: Params, trained: Params
) -> Params:
    """Joins parameters so that embeddings do not learn, and blocks up to a layer neither
    read nor write along a direction.
    """
    params = join(frozen, trained)
    blocks = dict(params["blocks"])
    for norm, kernels in READERS.items():
        # What a kernel sees of u comes through the scale of the norm before it.
        seen_ld = blocks[norm]["scale"] * direction_d
        seen_ld = seen_ld / jnp.linalg.norm(seen_ld, axis=1, keepdims=True)
        seen_ld = seen_ld.at[layer + 1 :].set(0)
        for name in kernels:
            kernel = blocks[name]["kernel"]
            along_lo = jnp.einsum("ld,ldo->lo", seen_ld, kernel)
            blind = kernel - seen_ld[:, :, None] * along_lo[:, None]
            blocks[name] = {**blocks[name], "kernel": blind}
    written_ld = jnp.zeros_like(blocks["attn_norm"]["scale"])
    written_ld = written_ld.at[: layer + 1].set(direction_d)
    for name in WRITERS:
        kernel = blocks[name]["kernel"]
        along_li = jnp.einsum("lid,ld->li", kernel, written_ld)
        mute = kernel - along_li[:, :, None] * written_ld[:, None]
        blocks[name] = {**blocks[name], "kernel": mute}
    embed = jax.lax.stop_gradient(params["embed"])
    return {**params, "embed": embed, "blocks": blocks}


def _unit(rows_kd: np.ndarray) -> np.ndarray:
    return rows_kd / np.linalg.norm(rows_kd, axis=1, keepdims=True)
