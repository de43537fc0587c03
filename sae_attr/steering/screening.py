"""Screens latents by held-out pairs: what steering does to log p(C) − log p(C′).

C has the behaviour and C′ has not, after the same prompt, and the prompts are others
than those that ranked. Nothing is sampled and nothing graded: one pass of the layers
above the site per latent and pair, so that thousands of latents can be tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.comparison_records import Direction
from sae_attr.hooks import Add, Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.sites import suffix_start
from sae_attr.steering.continuation_groups import (
    TextGroup,
    group_log_probs,
    group_texts,
    in_order,
    run_groups,
)
from sae_attr.steering.continuation_layout import Ids
from sae_attr.steering.continuations import Unsteered
from sae_attr.steering.contrast import log_odds
from sae_attr.steering.effects import false_discovery, standard_error
from sae_attr.steering.paired import Paired, by_group
from sae_attr.steering.random_band import RANDOM, SteeredDirection, beyond_random_p
from sae_attr.text.rows import TokenRow


@dataclass(frozen=True)
class PairIds:
    """A pair as token ids: its prompt, and the completions of either side."""

    prompt: tuple[int, ...]
    positives: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]


def pairs_of_rows(rows: Sequence[TokenRow]) -> list[PairIds]:
    """Returns encoded completions (`text.encoding.encode_pairs`) as pairs, in order.

    Where a token straddles the border of a completion, the prompt of its pair ends
    before it for all of them.
    """
    of_pair: dict[int, list[TokenRow]] = {}
    for row in rows:
        of_pair.setdefault(row.pair, []).append(row)
    pairs = []
    for members in of_pair.values():
        border = min(row.n_prompt for row in members)
        sides: dict[int, list[tuple[int, ...]]] = {1: [], -1: []}
        for row in members:
            sides[row.side].append(tuple(row.ids[border:].tolist()))
        prompt = tuple(members[0].ids[:border].tolist())
        pairs.append(PairIds(prompt, tuple(sides[1]), tuple(sides[-1])))
    return pairs


def lay_out_pairs(pairs: Sequence[PairIds], *, cfg: LMConfig) -> list[TextGroup]:
    """Lays out pairs for `pair_log_odds`.

    Raises ValueError without a pair, and for one that lacks a prompt, a side, or a token.
    """
    if not pairs:
        raise ValueError(
            "no pair to screen by; give pairs whose prompts did not rank the latents"
        )
    for place, pair in enumerate(pairs):
        if not (pair.positives and pair.negatives):
            raise ValueError(
                f"pair {place} needs a completion on both sides to screen by"
            )
    prompts: list[Ids] = [pair.prompt for pair in pairs]
    positives = [pair.positives for pair in pairs]
    negatives = [pair.negatives for pair in pairs]
    return group_texts(prompts, positives, negatives, cfg=cfg)


def pair_log_odds(
    params: Params,
    groups: Sequence[TextGroup],
    states: Sequence[Unsteered],
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    tokens: str = "all",
    skip: int = 0,
    per_token: bool = False,
) -> jax.Array:
    """Returns log p(C) − log p(C′) of every pair under every edit, `[k, p]` in nats, the
    mean over the completions of a side.

    Args:
      groups, states: of `lay_out_pairs` and `continuation_groups.run_groups`.
      edits, tokens, skip: as for `continuations.continuation_log_probs`.
      per_token: log-probabilities per token of a completion, else their sums.
    """
    log_probs = group_log_probs(
        params, groups, states, edits, cfg=cfg, tokens=tokens, skip=skip
    )
    odds = []
    for group, log_probs_kpn in zip(groups, log_probs, strict=True):
        of_group = log_odds(
            log_probs_kpn, group.side_pn, group.length_pn, per_token=per_token
        )
        odds.append(of_group)
    return in_order(groups, odds)


def screen(
    params: Params,
    pairs: Sequence[PairIds],
    rows_kd: Any,
    strength: float,
    *,
    cfg: LMConfig,
    site: Site,
    tokens: str = "all",
    skip: int = 0,
    per_token: bool = False,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns the change of log p(C) − log p(C′) by steering with each of k directions,
    steered minus unsteered, float64 `[k, pairs]` in nats.

    Args:
      pairs: held out: of prompts that did not rank the directions.
      rows_kd: unit directions, decoder rows for instance.
      strength: signed, in units of the activation: the mean norm at the site times the
        strength in mean norms.
      tokens, skip: which positions are steered, as for `interventions.scope`.
      per_token: as for `pair_log_odds`.
      batch_size: directions at a time; it changes speed and memory alone.

    Raises:
      ValueError: strength 0, no pair, or a pair without a completion on both sides.
    """
    check_strength(strength)
    groups = lay_out_pairs(pairs, cfg=cfg)
    start, _ = suffix_start(site, cfg)
    states = run_groups(params, groups, cfg=cfg, start=start)
    options: dict[str, Any] = {"tokens": tokens, "skip": skip, "per_token": per_token}
    # Unsteered is a condition of the same program, so that it is rounded alike.
    rows_kd = np.concatenate([np.zeros_like(rows_kd[:1]), rows_kd])
    count = len(rows_kd)
    size = min(batch_size, count)
    odds = []
    for start in range(0, count, size):
        # The last batch repeats directions: one compiled shape.
        part = np.arange(start, start + size) % count
        edit = Add(jnp.asarray(rows_kd[part]), jnp.full(len(part), strength))
        of_part = pair_log_odds(
            params, groups, states, {site: edit}, cfg=cfg, **options
        )
        odds.append(np.asarray(of_part, np.float64))
    odds_kp = np.concatenate(odds)[:count]
    return odds_kp[1:] - odds_kp[0]


def check_strength(strength: float) -> None:
    """Raises ValueError for a strength that steers nothing or is no number."""
    if not np.isfinite(strength) or strength == 0:
        raise ValueError(
            f"the strength of screening is {strength}, which steers nothing; give mean "
            "norms above 0, such as 0.2"
        )


# ---- what the changes say ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScreenedLatents:
    """Holds what a screen found in one direction; arrays over its latents, float64.

    Args:
      latents_k: their numbers.
      change_k: mean over pairs of the change of log p(C) − log p(C′), nats.
      se_k: standard error over prompts, or groups of them; NaN with fewer than two.
      p_k: one-sided, against random latents (`random_band.beyond_random_p`).
      q_k: false discovery rate over the latents that are not random ones; NaN of those.
    """

    latents_k: np.ndarray
    change_k: np.ndarray
    se_k: np.ndarray
    p_k: np.ndarray
    q_k: np.ndarray


def screened_latents(
    direction: Direction,
    latents_k: np.ndarray,
    change_kp: np.ndarray,
    *,
    random: Sequence[int],
    group_p: np.ndarray | None = None,
) -> ScreenedLatents:
    """Returns the mean change of every latent with its uncertainty.

    Args:
      direction: whose side matters: `away` looks for falls, `toward` for rises.
      latents_k: each once.
      change_kp: of `screen`.
      random: those of the latents that were drawn at random; without any, no latent has
        a p-value.
      group_p: number of every pair's group, as for `paired.paired`.
    """
    ones_kp = np.ones_like(change_kp)
    pairs = Paired(change_kp, ones_kp, np.zeros_like(change_kp), ones_kp, 1)
    if group_p is not None:
        pairs = by_group(pairs, group_p)
    study = SteeredDirection(direction, latents_k, pairs, {RANDOM: list(random)})
    change_k = study.change()
    p_k = np.full(len(latents_k), np.nan)
    if len(random):
        p_k = beyond_random_p(study)
    tested_k = ~np.isin(latents_k, np.asarray(random, int))
    q_k = false_discovery(np.where(tested_k, p_k, np.nan))
    return ScreenedLatents(
        latents_k, change_k, standard_error(pairs, change_k), p_k, q_k
    )
