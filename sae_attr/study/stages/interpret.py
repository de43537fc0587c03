"""The stage that looks up what latents stand for: nearest tokens, tokens whose logits
they change, and top passages of the corpus.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.interpret import Passage, top_passages
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.described_latents import described_latents
from sae_attr.study.latent_tokens import effects_on_tokens, nearest_of
from sae_attr.study.selection import Selection
from sae_attr.study.setup import Setup
from sae_attr.study.stages.norm_limits import NAME as NORM_LIMITS
from sae_attr.study.stages.norm_limits import limits_of
from sae_attr.text.chat import in_template, template_ids
from sae_attr.text.tokenizer import token_strings

# 2: tokens that count nowhere begin no passage. 3: codes of all tokens, and which
# passages are the row's first token or the template's. 4: effects on the logits. 5: ids
# of the tokens.
VERSION = 5


def interpret(inputs: StageInputs, progress: Progress) -> Computed:
    """Looks up the nearest tokens of every steered latent, and of the best ones of every
    method the tokens whose logits they change and the top passages.
    """
    case, setup, study = inputs.case, inputs.case.setup, inputs.case.study
    selection = Selection.load(inputs["select"].arrays)
    nearest = nearest_of(setup, case.latents, selection.latents_u)
    best = best_of_methods(selection, study.interpreted)
    if case.reader is not None:
        best = np.union1d(best, described_latents(case, selection))
    limits = limits_of(inputs[NORM_LIMITS])
    effects = {}
    if study.logit_tokens and len(best):
        effects = effects_on_tokens(
            setup, case.latents, best, count=study.logit_tokens, limits=limits
        )
    tokens = {"nearest": nearest, "effects": effects}
    # Of further dictionaries decoder rows are known to belong here, not what they read.
    best = case.latents.of_sae(best)
    if not (study.passages and study.passage_tokens and len(best)):
        return {}, {**tokens, "passages": {}}
    lists = top_passages(
        setup.params,
        setup.sae,
        setup.corpus.batches(study.passage_tokens),
        best,
        cfg=setup.cfg,
        site=setup.read_site,
        mesh=setup.mesh,
        count=study.passages,
        limits=limits,
        progress=setup.progress,
    )
    passages, written = {}, template_ids(setup.tokenizer)
    for latent, of_latent in zip(best.tolist(), lists, strict=True):
        records = [_record(setup, passage, written) for passage in of_latent]
        passages[str(latent)] = records
    return {}, {**tokens, "passages": passages}


def best_of_methods(selection: Selection, count: int) -> np.ndarray:
    """Returns the best `count` latents of every method but the random one, each once."""
    best = []
    for name, latents in selection.compared().items():
        if name != "random":
            best.append(latents[:count])
    return np.unique(np.concatenate(best))


def _record(setup: Setup, passage: Passage, written: frozenset[int]) -> dict[str, Any]:
    before = passage.ids[: passage.at + 1]
    special = frozenset(setup.tokenizer.special_ids)
    return {
        "code": passage.code,
        "at": passage.at,
        "ids": list(passage.ids),
        "tokens": token_strings(setup.tokenizer, passage.ids),
        "codes": list(passage.codes),
        "first": passage.first,
        "template": in_template(before, written, special),
    }


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the passages depend on."""
    study = case.study
    described = {}
    if case.reader is not None:
        described = {"described": [study.described, study.described_random]}
    return {
        **described,
        "passages": study.passages,
        "tokens": study.passage_tokens,
        "best": study.interpreted,
        "logit_tokens": study.logit_tokens,
    }


STAGE = CaseStage(
    "interpret",
    interpret,
    fields,
    needs=("select", NORM_LIMITS),
    version=VERSION,
)
