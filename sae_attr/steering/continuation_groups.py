"""Prompts with texts for and against something, a few at a time; values of all prompts
come back in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.attention import longest_row
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.steering.continuation_layout import ContinuationLayout, Ids, in_parts
from sae_attr.steering.continuations import (
    Unsteered,
    continuation_log_probs,
    read_shared,
    run_unsteered,
)

_TOGETHER = 5  # prompts of one compiled program, whatever their number


@dataclass(frozen=True, eq=False)
class TextGroup:
    """A few prompts that are laid out together.

    Args:
      places: of these prompts among all, `[p]`.
      layout: of the prompts with their texts; it may repeat the last one.
      side_pn: 1 for a text that speaks for, −1 for one against, 0 where there is none.
      length_pn: tokens of every text, 0 where there is none.
    """

    places: np.ndarray
    layout: ContinuationLayout
    side_pn: np.ndarray
    length_pn: np.ndarray


def group_texts(
    prompts: Sequence[Ids],
    present: Sequence[Sequence[Ids]],
    absent: Sequence[Sequence[Ids]],
    *,
    cfg: LMConfig,
) -> list[TextGroup]:
    """Returns prompts with their texts, a few of similar length together.

    Args:
      prompts: token ids.
      present, absent: of every prompt, token ids of the texts for and against.
      cfg: of the model that reads them.

    Raises:
      ValueError: from `continuation_layout.lay_out`.
    """
    texts = []
    for of_prompt, against in zip(present, absent, strict=True):
        texts.append([*of_prompt, *against])
    groups = []
    for part in in_parts(prompts, texts, most=_TOGETHER, longest_row=longest_row(cfg)):
        length_pn = part.layout.text_length_pn[: len(part.places)]
        side_pn = np.zeros(length_pn.shape, int)
        for row, place in enumerate(part.places):
            border = len(present[place])
            side_pn[row, :border] = 1
            side_pn[row, border : len(texts[place])] = -1
        groups.append(TextGroup(part.places, part.layout, side_pn, length_pn))
    return groups


def run_groups(
    params: Params, groups: Sequence[TextGroup], *, cfg: LMConfig, start: int
) -> list[Unsteered]:
    """Runs the model without an edit, as `continuations.run_unsteered`."""
    states = []
    for group in groups:
        states.append(run_unsteered(params, group.layout, cfg=cfg, start=start))
    return states


def group_log_probs(
    params: Params,
    groups: Sequence[TextGroup],
    states: Sequence[Unsteered],
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    tokens: str = "all",
    skip: int = 0,
) -> list[jax.Array]:
    """Returns log p(text | prompt) `[k, p, n]` of every group under every edit.

    Args:
      states: of `run_groups`.
      edits, tokens, skip: as for `continuations.continuation_log_probs`.
    """
    options = {"cfg": cfg, "tokens": tokens, "skip": skip}
    log_probs, shared = [], None
    for group, state in zip(groups, states, strict=True):
        if shared is None:
            shared = read_shared(params, state, edits, **options)
        log_probs_kpn = continuation_log_probs(
            params, group.layout, state, edits, shared, **options
        )
        log_probs.append(log_probs_kpn[:, : len(group.places)])
    return log_probs


def in_order(groups: Sequence[TextGroup], values: Sequence[jax.Array]) -> jax.Array:
    """Returns values of all prompts `[k, p]` in their order, from those of groups."""
    order = np.argsort(np.concatenate([group.places for group in groups]))
    return jnp.concatenate(values, axis=1)[:, order]
