"""The sides to which a case's latents are steered, and the strength of each: what
becomes the conditions of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.store import Arrays
from sae_attr.study.selection import Selection

FIXED_SIGN = {"away": -1, "toward": 1}


class Side(NamedTuple):
    """A latent, and the sign with which it is steered."""

    latent: int
    sign: int


def side_of(selection: Selection, direction: str, *, signed: bool) -> dict[int, Side]:
    """Returns latent -> the side to which a direction steers it.

    Args:
      signed: by the sign of the latent's own gradient: the other way where that says
        that more of it makes the behaviour rarer. Else by the method's fixed sign
        (away −, toward +).
    """
    sides = {}
    for latent, push in selection.push().items():
        flipped = signed and push < 0
        sign = FIXED_SIGN[direction]
        sides[latent] = Side(latent, -sign if flipped else sign)
    return sides


def sides_of(
    selection: Selection, direction: str, *, gradient_signed: bool
) -> tuple[Side, ...]:
    """Returns all sides of a direction: every latent with the fixed sign, then those
    that their gradient flips.
    """
    fixed = side_of(selection, direction, signed=False)
    sides = list(fixed.values())
    if gradient_signed:
        signed = side_of(selection, direction, signed=True)
        # A side with the fixed sign is there already, and is sampled once for both.
        for side in signed.values():
            if side != fixed[side.latent]:
                sides.append(side)
    return tuple(sides)


@dataclass(frozen=True)
class SideStrengths:
    """The strength of every side.

    Args:
      sizes: |c| in units of the site's mean norm; 0 where no strength was coherent
        enough.
      direction, tokens: of the conditions.
    """

    sizes: Mapping[Side, float]
    direction: str
    tokens: str

    def condition(self, side: Side) -> Condition:
        """Returns the condition that steers a side at its strength."""
        return side_condition(side, self.sizes[side], self.direction, self.tokens)

    def conditions(self) -> tuple[Condition, ...]:
        """Returns the unsteered condition, then every side at its strength."""
        return UNSTEERED, *(self.condition(side) for side in self.sizes)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a stage stores, one row a side."""
        return {
            "latents_k": np.array([side.latent for side in self.sizes], np.int64),
            "signs_k": np.array([side.sign for side in self.sizes], np.int64),
            "strengths_k": np.array(list(self.sizes.values()), np.float64),
        }

    @classmethod
    def load(cls, arrays: Arrays, direction: str, tokens: str) -> SideStrengths:
        """Returns the strengths that a stage stored."""
        columns: list[Any] = []
        for name in ("latents_k", "signs_k", "strengths_k"):
            columns.append(np.asarray(arrays[name]).tolist())
        sizes = {}
        for latent, sign, size in zip(*columns, strict=True):
            sizes[Side(latent, sign)] = size
        return cls(sizes, direction, tokens)


def side_condition(side: Side, size: float, direction: str, tokens: str) -> Condition:
    """Returns the condition that steers a side at a strength |c|."""
    return Condition(side.latent, side.sign, float(size), direction, tokens)
