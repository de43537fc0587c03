"""Compares every score of latents with ground truth, on organisms where every latent
can be tried: the stages of it, for several seeds, kinds of fine-tune, behaviours and
sizes of the SAE.

For each of them: on-policy pairs, the attribution's stages up to the scores (one stage
for each scope of tokens), other studies' selectors, the ground truth of every latent
and of what needs no SAE, and how far they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sae_attr.lm.weights import load_lm
from sae_attr.organism.exact import STUDIED
from sae_attr.organism.pair_sampling import organism_pairs
from sae_attr.store import (
    Computed,
    NothingToCompute,
    Progress,
    Result,
    Stage,
    fingerprint,
    select_stages,
)
from sae_attr.study.attribution_stages import attribution_stages
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.ground_truth_stages import (
    agreement_stage,
    context_of,
    directions_stage,
    ground_truth_stage,
    selectors_stage,
)
from sae_attr.text.rows import SCOPES

VERSION = 1  # of the pairs; raised when their code gives others than before


def evaluation_stages(evaluations: Sequence[Evaluation]) -> list[Stage]:
    """Returns the stages of all evaluations, each behind those of its organism;
    organisms of one seed share what does not depend on their kind.
    """
    stages: dict[str, Stage] = {}
    for evaluation in evaluations:
        for stage in (*evaluation.organism_stages(), *_stages_of(evaluation)):
            stages.setdefault(stage.name, stage)
    return list(stages.values())


def _stages_of(e: Evaluation) -> list[Stage]:
    """The stages of one evaluation, without its organism's."""
    return [
        _pair_stage(e),
        *_attribution_stages(e),
        ground_truth_stage(e),
        directions_stage(e),
        selectors_stage(e),
        agreement_stage(e),
    ]


def _pair_stage(e: Evaluation) -> Stage:
    """On-policy pairs as records in `meta`, and the rates of the samples."""
    s = e.settings

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        cfg, params = load_lm(e.studied, mesh=e.mesh)
        prompts = e.deciding_prompts("pairs", s.pair_prompts)
        records, rates = organism_pairs(
            e.organism.world,
            params,
            prompts,
            e.behaviour,
            cfg=cfg,
            samples=s.samples,
            count=s.pairs,
            sampler=fingerprint(e.studied),
            seed=e.recipe.seed,
        )
        if not records:
            raise NothingToCompute(
                f"{e.model_name}: no prompt of {len(prompts)} gave both sides ({dict(rates)}); "
                "ask more prompts"
            )
        return {}, {"records": records, "rates": dict(rates)}

    fields = {
        "behaviour": e.behaviour,
        "prompts": s.pair_prompts,
        "samples": s.samples,
        "pairs": s.pairs,
    }
    needs = (e.organism.stages[STUDIED[e.behaviour]],)
    return Stage(e.stage_name("pairs"), run, fields, needs, VERSION)


def _attribution_stages(e: Evaluation) -> list[Stage]:
    """The attribution's stages up to the scores: one stage of scores for each scope,
    behind those that have no scope.
    """
    context = context_of(e)
    stages: list[Stage] = []
    for scope in SCOPES:
        settings = replace(e.setup.settings, tokens=scope)
        # The setups share the model's files, so that weights are loaded once.
        scoped = replace(e.setup, settings=settings, shared=e.setup.model_files)
        attribution = attribution_stages(
            scoped,
            prefix=context.prefix,
            pairs_stage=context.pairs_stage,
            file_stages=context.file_stages,
        )
        *before, scores = select_stages(attribution, until=e.stage_name("scores"))
        stages += before if not stages else []
        stages.append(replace(scores, name=e.stage_name(f"scores.{scope}")))
    return stages
