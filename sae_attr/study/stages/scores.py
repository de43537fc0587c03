"""Stage `scores`: every score of every latent, in one pass over the dictionary."""

from __future__ import annotations

from sae_attr.attribution.all_scores import score_everything
from sae_attr.attribution.score_registry import score_versions
from sae_attr.store import Computed, Progress, Stage
from sae_attr.study.setup import Draw
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.study.stages.evidence import NEEDS, evidence_of

NAME = "scores"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: arrays `[n]` as `DictionaryScores` has them; its other fields in
    `meta`.
    """
    setup, s = c.setup, c.setup.settings
    scopes = list(dict.fromkeys(preset.tokens for preset in s.presets()))

    def run(inputs: Inputs, progress: Progress) -> Computed:
        evidence = evidence_of(setup, inputs)
        scores = score_everything(evidence, scopes, setup.key(Draw.HALVES))
        meta = {
            **scores.bound,
            "skipped": scores.skipped,
            "by_limit": scores.by_limit,
        }
        return scores.arrays, meta

    fields = {
        "masks": c.mask_fields(),
        "dense_limit": s.dense_limit,
        "seed": s.seed,
        "scopes": scopes,
        "scores": score_versions(),
    }
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=NEEDS,
        files=("sae",),
        pairs=True,
    )
