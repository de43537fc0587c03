"""Stage `rankings`: the best latents of every preset."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from sae_attr.attribution.presets import preset_ranking
from sae_attr.attribution.ranking import Ranking
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.setup import Setup
from sae_attr.study.stages import scores
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.study.stages.evidence import NEEDS, evidence_of

NAME = "rankings"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: per preset, by number, `latents_k` and `scores_n`; the options
    in `meta`.
    """
    setup, s = c.setup, c.setup.settings

    def run(inputs: Inputs, progress: Progress) -> Computed:
        evidence = evidence_of(setup, inputs)
        scores_by_key = inputs[scores.NAME].arrays
        arrays, options = {}, []
        for i, preset in enumerate(s.presets()):
            ranking = preset_ranking(evidence, preset, scores_by_key, s.top)
            arrays[f"{i}.latents_k"] = ranking.latents_k
            arrays[f"{i}.scores_n"] = ranking.scores_n
            options.append(dict(ranking.options))
        return arrays, {"options": options}

    fields = {"top": s.top, "presets": [asdict(preset) for preset in s.presets()]}
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(*NEEDS, scores.NAME),
        files=("sae",),
        pairs=True,
    )


def rankings_of(setup: Setup, result: Result) -> dict[str, Ranking]:
    """Returns preset -> ranking, the primary one first."""
    out = {}
    for i, preset in enumerate(setup.settings.presets()):
        scores_n, latents_k = (
            np.asarray(result.arrays[f"{i}.{name}"])
            for name in ("scores_n", "latents_k")
        )
        options = result.meta["options"][i]
        out[preset.name] = Ranking(preset.name, scores_n, latents_k, options)
    return out
