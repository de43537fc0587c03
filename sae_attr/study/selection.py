"""Which latents are steered: the best of every method, random ones beside them, and the
sign of each one's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from sae_attr.attribution.ranking import random_matched, rank
from sae_attr.store import Arrays
from sae_attr.study.samples import UNSTEERED, Arms
from sae_attr.study.score_table import SCORES, key_of

OTHERS = "other_studies"  # latents that another case's studied method chose: steered here too, so that both can be compared
SIGN = {"away": -1.0, "toward": 1.0}


@dataclass(frozen=True, eq=False)
class Selection:
    """What is steered.

    Args:
      methods: method -> its latents, best first; "random" is among them.
      latents_u: all of them, each once, ascending.
      push_u: −Δg·d of each; above 0: more of the latent makes the behaviour likelier.
    """

    methods: dict[str, np.ndarray]
    latents_u: np.ndarray
    push_u: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """As a stage stores them."""
        chosen = {f"method.{name}": latents for name, latents in self.methods.items()}
        return {"latents_u": self.latents_u, "push_u": self.push_u, **chosen}

    @classmethod
    def load(cls, arrays: Arrays) -> Selection:
        """From a stored stage."""
        methods = {
            k.removeprefix("method."): np.asarray(v)
            for k, v in arrays.items()
            if k.startswith("method.")
        }
        return cls(
            methods, np.asarray(arrays["latents_u"]), np.asarray(arrays["push_u"])
        )

    def compared(self) -> dict[str, np.ndarray]:
        """The methods that are compared, random latents among them."""
        return {
            name: latents for name, latents in self.methods.items() if name != OTHERS
        }


def select(
    rankings: Mapping[str, Sequence[int]],
    scores: Mapping[str, np.ndarray],
    *,
    scope: str,
    methods: Sequence[str],
    top: int,
    random: int,
    key: jax.Array,
    others: Sequence[int] = (),
    why: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Selection, dict[str, str]]:
    """The best `top` latents of every method and `random` others of like firing rate;
    and why a method is left out.

    Args:
      rankings: the presets' best latents; `delta_attribution` and `recommended` are
        taken from there.
      scores: name -> score of every latent, of an attribution run.
      scope: of the primary preset's tokens.
      others: latents that another study of the same dictionary chose.
      why: score -> why the attribution left it out.

    Raises:
      ValueError: the first method, which is the one that is studied, has no scores.
    """
    chosen: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for name in methods:
        values = scores.get(key_of(name, scope)) if name in SCORES else None
        if name in rankings:
            chosen[name] = np.asarray(rankings[name][:top], int)
        elif values is not None and np.isfinite(values).all():
            chosen[name] = rank(name, values, top).latents_k
        else:
            reason = why.get(
                key_of(name, scope) if name in SCORES else name, "it has no score here"
            )
            count = 0 if values is None else int(np.isfinite(values).sum())
            if count:
                reason = f"it is known of {count:,} latents alone, which are other methods' candidates: {reason}"
            skipped[name] = reason
    if methods[0] in skipped:
        raise ValueError(
            f"method {methods[0]!r} is to be studied, but {skipped[methods[0]]}"
        )
    used = np.unique(np.concatenate(list(chosen.values())))
    if random:
        chosen["random"] = _random(
            scores["firing_rate"], chosen[methods[0]], used, random, key
        )
    if len(others):
        chosen[OTHERS] = np.asarray(others, int)
    latents_u = np.unique(np.concatenate(list(chosen.values())))
    return Selection(
        chosen, latents_u, np.asarray(scores[key_of("gradient", scope)])[latents_u]
    ), skipped


def _random(
    rates_n: np.ndarray, like: np.ndarray, used: np.ndarray, count: int, key: jax.Array
) -> np.ndarray:
    """Latents that no method chose; a dictionary that is too small for that gives
    fewer.

    Rates that are known of candidates alone are as good as unknown: they would draw
      among other methods' candidates.
    """
    rates_n = rates_n if np.isfinite(rates_n).all() else np.full(len(rates_n), np.nan)
    return random_matched("random", rates_n, like, count, key, avoid=used).latents_k


def arms_of(selection: Selection, direction: str, *, gradient_signed: bool) -> Arms:
    """One arm of strength ±1 per latent in the direction's fixed sign (away −, toward
    +), then those that the gradient flips.

    The gradient-signed strip steers a latent the other way where its gradient says that
    more of it makes the behaviour rarer.
    """
    fixed = np.full(len(selection.latents_u), SIGN[direction])
    if not gradient_signed:
        return Arms(selection.latents_u, fixed)
    flipped = selection.push_u < 0
    latents = np.concatenate([selection.latents_u, selection.latents_u[flipped]])
    return Arms(latents, np.concatenate([fixed, -fixed[flipped]]))


def with_unsteered(arms: Arms) -> Arms:
    """The model as it is, then the arms."""
    return Arms(
        np.concatenate([[UNSTEERED], arms.latents_k]),
        np.concatenate([[0.0], arms.strengths_k]),
    )


def scaled(arms: Arms, strengths_k: np.ndarray) -> Arms:
    """Arms of sign ±1 with their strengths."""
    return Arms(arms.latents_k, arms.strengths_k * strengths_k)


def arms_by_sign(
    selection: Selection, arms: Arms, direction: str, *, signed: bool
) -> np.ndarray:
    """Place among the arms of `arms_of` of every latent of `latents_u`, with the fixed
    sign or with that of its gradient.

    Args:
      arms: with or without the unsteered model in front, and with any strengths; only
        their order is used.
    """
    steered = arms.latents_k[arms.latents_k != UNSTEERED]
    n = len(selection.latents_u)
    flipped = np.flatnonzero(selection.push_u < 0)
    if not signed or len(steered) == n:
        return np.arange(n)
    place = np.arange(n)
    place[flipped] = n + np.arange(len(flipped))
    return place


def about(selection: Selection, skipped: Mapping[str, str]) -> dict[str, Any]:
    """Counts for the record."""
    return {
        "methods": {name: len(latents) for name, latents in selection.methods.items()},
        "steered": len(selection.latents_u),
        "gradient_against": int((selection.push_u < 0).sum()),
        "skipped": dict(skipped),
    }
