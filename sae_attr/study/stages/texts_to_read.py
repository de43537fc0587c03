"""The stage that gathers what latents are described and tested by, without a reader:
held-out passages, and answers of the steered model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from sae_attr.interpret import place_key
from sae_attr.passage_draws import (
    FITS,
    ORDINARY,
    OTHER,
    Drawing,
    coded_texts,
    drawn_passages,
)
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_prompts,
    declared_sampling,
    steered_scope,
)
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.described_latents import alike_latents, described_latents
from sae_attr.study.grading import unpadded
from sae_attr.study.neutral_prompts import NEUTRAL
from sae_attr.study.sample_sources import declared_engine
from sae_attr.study.selection import Selection
from sae_attr.study.stages.norm_limits import NAME as NORM_LIMITS
from sae_attr.study.stages.norm_limits import limits_of
from sae_attr.study.stages.steer import strengths_of
from sae_attr.study.stages.strengths import norm_of
from sae_attr.study.sweep_conditions import side_of
from sae_attr.text.tokenizer import decode

NAME = "texts_to_read"
# 2: answers may be longer than those for effects.
VERSION = 2
DIRECTION = "toward"  # the latents are added: what more of them says of them
SPLIT_OF = {"answers": "effects", "neutral": NEUTRAL}
NO_READER = "the case has no reader"
_PURPOSE = 23  # of the study's seed that drawing is seeded by

Texts = dict[str, list[Any]]
"""`shown` describes a latent; the kinds of `passage_draws.KINDS` test it."""


def gather(inputs: StageInputs, progress: Progress) -> Computed:
    """Gathers the texts: `meta["texts"]` is source -> latent -> `Texts`; a passage is a
    text, an answer a prompt with its text.
    """
    case, study = inputs.case, inputs.case.study
    if case.reader is None:
        return {}, {"left_out_since": NO_READER}
    selection = Selection.load(inputs["select"].arrays)
    latents = described_latents(case, selection).tolist()
    texts: dict[str, dict[str, Texts]] = {}
    if "passages" in study.described_by:
        texts["passages"] = _passages(inputs, latents)
    samples = tokens = 0
    for source, split in SPLIT_OF.items():
        if source in study.described_by:
            texts[source], counts = _answers(
                inputs, selection, latents, split, progress
            )
            samples += counts["samples"]
            tokens += counts["tokens"]
    return {}, {"texts": texts, "samples": samples, "tokens": tokens}


# ---- passages ------------------------------------------------------------------------


def _passages(inputs: StageInputs, latents: Sequence[int]) -> dict[str, Texts]:
    """Returns passages that test each latent, from text behind that of its top ones;
    what describes it are these, as the stage `interpret` has them.
    """
    case, study, setup = inputs.case, inputs.case.study, inputs.case.setup
    rng = np.random.default_rng([study.seed, _PURPOSE])
    rates_n = np.asarray(inputs["attribute"].arrays["firing_rate"])
    alike = alike_latents(rates_n, latents, rng)
    columns = sorted({*latents, *alike.values()})
    coded = []
    if study.tested and study.test_tokens:
        batches = setup.corpus.batches(study.passage_tokens + study.test_tokens)
        coded = coded_texts(
            setup.params,
            setup.sae,
            islice(batches, _batches_of(case, study.passage_tokens), None),
            np.array(columns),
            cfg=setup.cfg,
            site=setup.read_site,
            mesh=setup.mesh,
            limits=limits_of(inputs[NORM_LIMITS]),
            progress=setup.progress,
        )
    drawing = Drawing(study.tested, strong=study.test_fires == "strong")
    tops = inputs["interpret"].meta["passages"]
    of_latents = {}
    for latent in latents:
        shown = tops.get(str(latent), [])
        texts: Texts = {"shown": shown}
        if latent in alike:
            at, other = columns.index(latent), columns.index(alike[latent])
            shown_places = [
                place_key(passage["ids"], passage["at"]) for passage in shown
            ]
            drawn = drawn_passages(coded, at, other, drawing, rng, known=shown_places)
            for kind, of_kind in drawn.items():
                texts[kind] = [_text(case, ids) for ids in of_kind]
        of_latents[str(latent)] = texts
    return of_latents


def _batches_of(case: Case, tokens: int) -> int:
    """Returns how many batches of the corpus hold its first tokens."""
    return sum(1 for _ in case.setup.corpus.batches(tokens)) if tokens else 0


def _text(case: Case, ids: Sequence[int]) -> str:
    return decode(case.setup.tokenizer, list(ids)).strip()


# ---- answers -------------------------------------------------------------------------


def _answers(
    inputs: StageInputs,
    selection: Selection,
    latents: Sequence[int],
    split: str,
    progress: Progress,
) -> tuple[dict[str, Texts], Mapping[str, int]]:
    """Samples answers to the prompts of a split, as the model is and with each latent
    added; the first half of the prompts describes, the second tests.
    """
    case, study = inputs.case, inputs.case.study
    stored = inputs.results[f"{case.name}.strengths.{DIRECTION}"]
    strengths = strengths_of(case, DIRECTION, stored)
    sides = side_of(selection, DIRECTION, signed=False)
    conditions = {}
    for latent in latents:
        condition = strengths.condition(sides[latent])
        if condition.size > 0:
            conditions[latent] = condition
    sweep = CaseSweep(
        case,
        DIRECTION,
        split,
        (UNSTEERED, *conditions.values()),
        norm_of(inputs["attribute"]),
        1,
        most_prompts=2 * study.described_answers,
        max_new=study.described_tokens,
    )
    tokens_rn, counts = sweep.sample(progress, f"answers to read, {split}")
    prompts = case.prompts_by_id(split)
    answers: dict[Condition, list[list[str]]] = {}
    for row, ids in zip(sweep.plan.rows, unpadded(tokens_rn), strict=True):
        answer = [prompts[row.prompt].text, case.text(ids)]
        answers.setdefault(row.condition, []).append(answer)
    return _by_latent(conditions, answers, study.tested), counts


def _by_latent(
    conditions: Mapping[int, Condition],
    answers: Mapping[Condition, Sequence[list[str]]],
    tested: int,
) -> dict[str, Texts]:
    """Returns the answers of each latent: what describes it (prompt, answer as it is,
    answer with the latent), and what tests it (prompt, answer).
    """
    plain = answers[UNSTEERED]
    half = (len(plain) + 1) // 2
    rest = slice(half, half + tested)
    latents = list(conditions)
    of_latents = {}
    for place, latent in enumerate(latents):
        steered = answers[conditions[latent]]
        shown = []
        for (prompt, before), (_, after) in zip(plain[:half], steered[:half]):
            shown.append([prompt, before, after])
        texts: Texts = {
            "shown": shown,
            FITS: list(steered[rest]),
            ORDINARY: list(plain[rest]),
        }
        if len(latents) > 1:
            other = latents[(place + 1) % len(latents)]
            texts[OTHER] = list(answers[conditions[other]][rest])
        of_latents[str(latent)] = texts
    return of_latents


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the texts depend on."""
    study = case.study
    if case.reader is None:
        return {"reader": None}
    prompts = {}
    for source, split in SPLIT_OF.items():
        if source in study.described_by:
            prompts[source] = declared_prompts(case, split)
    return {
        "described": [study.described, study.described_random],
        "by": study.described_by,
        "answers": [study.described_answers, study.described_tokens],
        "tested": study.tested,
        "tokens": [study.passage_tokens, study.test_tokens],
        "fires": study.test_fires,
        "prompts": prompts,
        "sampling": declared_sampling(case),
        "seed": study.seed,
        **steered_scope(case),
        **declared_engine(case.study),
    }


STAGE = CaseStage(
    NAME,
    gather,
    fields,
    needs=("select", "strengths", "attribute", "interpret", NORM_LIMITS),
    version=VERSION,
    applies=lambda study: study.reads,
)
