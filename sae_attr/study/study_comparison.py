"""Two finished case studies of one dictionary compared: each one's first latent looked
up in the other (docs/mitigation.md, Two studies of one dictionary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from sae_attr.comparison_records import Convergence
from sae_attr.steering.study_agreement import FirstBy, RankedStudy, convergence
from sae_attr.study.case import Case
from sae_attr.study.finished_study import FinishedStudy
from sae_attr.study.settings import at_least
from sae_attr.study.stages.convergence import NEEDS, ranked_study


@dataclass(frozen=True)
class ComparisonSettings:
    """Sets how studies are compared.

    Args:
      first_by: a study's first latent is the first of its ranking by `score`, or the
        selected one of the largest effect `toward`.
      strata: bins of firing rate, with which chance draws: selections prefer latents
        that fire often, so that two of them meet more often than latents drawn from the
        whole dictionary do. 1: from the whole dictionary.
    """

    first_by: FirstBy = "score"
    strata: int = 10

    def __post_init__(self) -> None:
        if self.first_by not in ("score", "toward"):
            raise ValueError(
                f"first_by {self.first_by!r} is unknown; choose score or toward"
            )
        at_least(self, 1, "strata")


@dataclass(frozen=True, eq=False)
class _Compared:
    """One case of one study."""

    finished: FinishedStudy
    case: Case

    def ranked(self, title: str) -> RankedStudy:
        """Returns what convergence compares of the study."""
        results = {}
        for need in NEEDS:
            name = f"{self.case.name}.{need}"
            results[name] = self.finished.result(self.case, need)
        return replace(ranked_study(self.case, results), title=title)

    def rates(self) -> np.ndarray:
        """Returns the firing rate of every latent; NaN where it was not measured."""
        attribution = self.finished.result(self.case, "attribute")
        return np.asarray(attribution.arrays["firing_rate"], np.float64)


def compare_studies(
    studies: Sequence[FinishedStudy], settings: ComparisonSettings
) -> list[Convergence]:
    """Compares every two cases of all studies.

    Raises:
      ValueError: fewer than two cases, a study that is not finished, two dictionaries.
    """
    compared = []
    for finished in studies:
        compared += [_Compared(finished, case) for case in finished.cases()]
    if len(compared) < 2:
        raise ValueError(
            "there is one case, and nothing to compare it with; give a second study"
        )
    _check_dictionary(compared)
    titles = _titles(compared)
    records = []
    pairs = list(zip(compared, titles, strict=True))
    for (one, title), (other, other_title) in combinations(pairs, 2):
        rates_n = _mean_rates(one.rates(), other.rates())
        record = convergence(
            one.ranked(title),
            other.ranked(other_title),
            population=len(rates_n),
            strata_n=rate_strata(rates_n, settings.strata),
            first_by=settings.first_by,
        )
        records.append(record)
    return records


def _titles(compared: Sequence[_Compared]) -> list[str]:
    """Returns a name of every case, with its study's folder where there are several."""
    folders = {str(c.finished.workdir) for c in compared}
    titles = []
    for c in compared:
        title = c.case.settings.title
        if len(folders) > 1:
            title = f"{c.finished.workdir}: {title}"
        titles.append(title)
    return titles


def _check_dictionary(compared: Sequence[_Compared]) -> None:
    """Raises ValueError for SAEs that differ: a latent's number means the same only
    within one dictionary.
    """
    first = compared[0]
    for c in compared[1:]:
        if c.case.setup.sae_key != first.case.setup.sae_key:
            raise ValueError(
                f"case {first.case.name} of {first.finished.workdir} and case "
                f"{c.case.name} of {c.finished.workdir} have different SAEs "
                f"({first.case.files.sae}, {c.case.files.sae}), in which a latent's "
                "number does not mean the same; give studies of one SAE"
            )


def _mean_rates(one_n: np.ndarray, other_n: np.ndarray) -> np.ndarray:
    if len(one_n) != len(other_n):
        raise ValueError(
            f"the studies have {len(one_n)} and {len(other_n)} latents; give studies of "
            "one SAE"
        )
    return (one_n + other_n) / 2


def rate_strata(rates_n: np.ndarray, strata: int) -> np.ndarray | None:
    """Returns the bin of every latent's firing rate, of equal size but for latents that
    never fire, which are a bin of their own; None where rates are not known of all, or
    there is one bin.
    """
    if strata == 1 or not np.isfinite(rates_n).all():
        return None
    alive_n = rates_n > 0
    place_n = np.zeros(len(rates_n), np.int64)
    order = np.argsort(rates_n[alive_n], kind="stable")
    place_n[np.flatnonzero(alive_n)[order]] = np.arange(alive_n.sum())
    bins_n = place_n * strata // max(int(alive_n.sum()), 1)
    return np.where(alive_n, 1 + bins_n, 0)


def first_rows(records: Sequence[Convergence]) -> list[dict[str, Any]]:
    """Returns a row per study and other study: its first latent, looked up there."""
    rows = []
    for record in records:
        for first in record.firsts:
            rows.append(
                {
                    "study": first.study,
                    "latent": first.latent,
                    "other": first.other,
                    "rank there": first.rank_in_other,
                    "of": first.population,
                    "chance": first.rank_p,
                    "toward": 100 * first.change,
                    "from": 100 * first.base_rate,
                    "toward there": 100 * first.other_change,
                    "from there": 100 * first.other_base_rate,
                }
            )
    return rows
