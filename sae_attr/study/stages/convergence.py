"""The stage of several cases with one dictionary: whether they point at the same
latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations

import numpy as np

from sae_attr.attribution.ranking import rank
from sae_attr.steering.study_agreement import RankedStudy, convergence
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.case import Case
from sae_attr.study.selection import Selection, method_scores

VERSION = 1
NEEDS = ("attribute", "select", "effects")  # of every case


def convergence_stages(cases: Sequence[Case], version: int = VERSION) -> list[Stage]:
    """Returns the stage, where there are cases to compare."""
    # A latent's number means the same only within one dictionary.
    dictionaries = {case.files.sae for case in cases}
    if len(cases) < 2 or len(dictionaries) > 1:
        return []
    needs = [f"{case.name}.{need}" for case in cases for need in NEEDS]
    run = partial(converge, cases)
    return [Stage("convergence", run, {}, tuple(needs), version)]


def converge(
    cases: Sequence[Case], results: Mapping[str, Result], progress: Progress
) -> Computed:
    """Compares every two cases."""
    studies = [ranked_study(case, results) for case in cases]
    scores = results[f"{cases[0].name}.attribute"].arrays
    population = len(next(iter(scores.values())))
    rows = []
    for one, other in combinations(studies, 2):
        rows.append(asdict(convergence(one, other, population=population)))
    return {}, {"convergence": rows}


def ranked_study(case: Case, results: Mapping[str, Result]) -> RankedStudy:
    """Returns what convergence needs of a case."""
    attribution, selected, effects = [results[f"{case.name}.{need}"] for need in NEEDS]
    selection = Selection.load(selected.arrays)
    scores_n = method_scores(attribution, "delta_attribution")
    return RankedStudy(
        title=case.settings.title,
        ranked_n=rank("primary", scores_n, len(scores_n)).latents_k,
        selected=len(selection.methods[case.study.methods[0]]),
        latents_k=selection.latents_u,
        change_k=np.asarray(effects.arrays["toward.change_u"]),
        low_k=np.asarray(effects.arrays["toward.low_u"]),
        high_k=np.asarray(effects.arrays["toward.high_u"]),
        base_rate=effects.meta["base_rates"]["toward"],
    )
