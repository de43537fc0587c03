"""Directions of several fine-tunes that are projected out of one of them, at every layer
at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.analyses.direction_record import DirectionRecord
from sae_attr.analyses.mitigation import projections, sparing_outliers
from sae_attr.hooks import Edit, Site
from sae_attr.steering.specificity import gaussian_directions

RANDOM = "random"
OWN, OTHER = "own", "other"


@dataclass(frozen=True)
class Removal:
    """A direction that is projected out at every layer.

    Args:
      kind: of direction, or random; "" for none.
      tune: fine-tune that it was measured in; "" for random ones.
      draw: number of the random draw.
    """

    kind: str = ""
    tune: str = ""
    draw: int = 0

    def relation(self, tune: str) -> str:
        """Returns what it is to a fine-tune: own | other | random, or "" for none."""
        if self.kind in ("", RANDOM):
            return self.kind
        return OWN if self.tune == tune else OTHER


def removals(
    records: Mapping[str, DirectionRecord], kinds: Sequence[str], draws: int
) -> list[Removal]:
    """Returns the conditions of every row of the transfer matrix, the model as it is
    first.

    Args:
      records: fine-tune -> its directions; kinds that one lacks are left out.
      draws: random directions.
    """
    conditions = [Removal()]
    for kind in kinds:
        for tune, record in records.items():
            if kind in record.directions:
                conditions.append(Removal(kind, tune))
    return conditions + [Removal(RANDOM, draw=draw) for draw in range(draws)]


def removal_edits(
    conditions: Sequence[Removal],
    records: Mapping[str, DirectionRecord],
    tune: str,
    sites: Sequence[Site],
    *,
    to: str = "zero",
    seed: int = 0,
) -> dict[Site, Edit]:
    """Returns the edits of every condition, one a row, for one of the fine-tunes.

    Args:
      tune: that is edited; its own means and limits count.
      sites: of the records, in order.
      to: as of `mitigation.projections`.
      seed: of random directions, another at every layer.

    Raises:
      ValueError: a fine-tune of other shapes than the one that is edited.
    """
    edited = records[tune]
    for name, record in records.items():
        if record.mean_sd.shape != edited.mean_sd.shape:
            raise ValueError(
                f"{name} has {_shape(record)}, {tune} {_shape(edited)}: directions fit "
                "models of one shape alone; compare fine-tunes of one model"
            )
    draws = sum(condition.kind == RANDOM for condition in conditions)
    rows, means = {}, {}
    for place, site in enumerate(sites):
        means[site] = edited.mean_sd[place]
        width = len(means[site])
        drawn_rd = gaussian_directions(draws, width, 1 + site.layer + 1000 * seed)
        at_site = []
        for condition in conditions:
            if condition.kind == RANDOM:
                at_site.append(drawn_rd[condition.draw])
            elif condition.kind:
                directions = records[condition.tune].directions
                at_site.append(directions[condition.kind][place])
            else:
                at_site.append(np.zeros(width))
        rows[site] = np.stack(at_site)
    edits = projections(rows, to, means=means)
    return sparing_outliers(edits, edited.limits(sites))


def _shape(record: DirectionRecord) -> str:
    layers, width = record.mean_sd.shape
    return f"{layers} layers of {width} numbers"
