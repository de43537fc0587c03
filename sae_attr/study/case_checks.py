"""Checks of a case before anything is computed: files that do not fit each other,
prompts that are too long, a judge that cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath

from sae_attr.judge import ask_one, tells_coherence
from sae_attr.lm.config_files import load_config
from sae_attr.parallel import from_main
from sae_attr.store import Stage, run_stages
from sae_attr.study.case import Case
from sae_attr.study.coherence_fallback import measures_coherence, no_coherence
from sae_attr.study.exact_rates import unsteered_state
from sae_attr.study.further_dictionaries import check_kind, check_place
from sae_attr.study.neutral_prompts import NEUTRAL
from sae_attr.study.prompts import SPLITS
from sae_attr.study.settings import DIRECTIONS, StudySettings
from sae_attr.study.stages import sae_check
from sae_attr.text.rows import COMPLETION, is_special, scope_mask


def check_case(case: Case) -> None:
    """Looks at the files of a real model: configs, SAE, tokenizer, prompts, stop texts.

    Raises:
      ValueError: files that do not fit each other, a prompt that leaves no room for an
        answer or of which no token counts in the attribution, a judge that does not
        report coherence where it is to.
    """
    setup = case.setup
    _ = setup.site, setup.decoder, case.stop_ids
    if case.files.lm_aligned:
        aligned = load_config(case.files.lm_aligned, mesh=case.runtime.mesh)
        setup.model_files.same_architecture(case.files.lm_aligned, aligned)
    next(iter(setup.corpus.texts()))  # it can be read, and has a text
    by_judge = case.study.strengths_by == "samples" and not measures_coherence(case)
    if by_judge and not tells_coherence(case.judge):
        raise ValueError(no_coherence(case))
    for split in case.split_prompts:
        _check_lengths(case, split)
        if measured_by(case.study, split) != "samples":
            case.exact(case, case.prompts(split))
    _check_scopes(case)


def check_dictionaries(case: Case) -> None:
    """Looks at the further dictionaries of any case, as far as its own files exist.

    Raises:
      ValueError: a folder that is no SAE, or one of another model, site or kind.
    """
    for dictionary in case.dictionaries:
        check_kind(dictionary, two_models=bool(case.files.lm_aligned))
        if has_files(case):
            check_place(dictionary, case.setup)


def has_files(case: Case) -> bool:
    """Returns whether the files of a case exist: the organism's are made by the run."""
    if not case.file_stages:
        return True
    return epath.Path(case.files.lm).exists() and epath.Path(case.files.sae).exists()


def try_case(
    case: Case, stages: Sequence[Stage], *, judge: bool, reader: bool = False
) -> None:
    """Runs what is cheap beside sampling and would end the study later: the SAE's
    check, the probabilities of texts without steering, one question to the judge.

    Args:
      stages: of the study; the check is one of them.
      judge: answers are still to be graded.
      reader: latents are still to be described.

    Raises:
      ValueError: the SAE does not fit its site, texts for and against the behaviour
        have no probability, or the judge's reply cannot be read.
    """
    store = case.setup.store
    name = f"{case.name}.{sae_check.NAME}"
    result = run_stages(store, stages, only=[name], agree=from_main)[name]
    sae_check.check_record(case.setup, result)
    for split in SPLITS:
        if measured_by(case.study, split) != "samples":
            for direction in DIRECTIONS[: 1 if split == "pairs" else 2]:
                unsteered_state(case, direction, case.prompts(split))
    if judge:
        ask_one(case.judge)
    if reader and case.reader is not None:
        # Two sources may share a judge: it is asked once.
        asked = case.reader.match if case.study.tested else case.reader.write
        judges = {id(judge): judge for judge in asked.values()}
        for judge_of_texts in judges.values():
            ask_one(judge_of_texts)


def can_score(case: Case, ids: Sequence[int]) -> bool:
    """Returns True if the attribution can score a completion: it has a token, and one
    that counts in every scope.

    A completion's last token has no gradient, so where only the completion's own tokens
    count it needs another one.
    """
    if not len(ids):
        return False
    setup = case.setup
    presets = setup.settings.presets()
    scopes = {preset.tokens for preset in presets}
    if "completion" not in scopes:
        return True
    roles = np.full(len(ids), COMPLETION)
    special = is_special(ids, setup.tokenizer)
    counted = scope_mask((roles, special), "completion", exclude=setup.exclude)
    return bool(counted[:-1].any())


def measured_by(study: StudySettings, split: str) -> str:
    """Returns what is done with the prompts of a split: `samples`, or what stands in
    their place.
    """
    by = {
        "pairs": study.pairs_by,
        "strengths": study.strengths_by,
        "effects": study.effects_by,
    }
    if split == NEUTRAL:
        return "samples"
    # Other splits are probes, of which effects are measured.
    return by.get(split, study.effects_by)


def _check_lengths(case: Case, split: str) -> None:
    """Raises ValueError for a prompt whose longest answer would not fit the model, or
    the attribution's context.
    """
    prompt_ids = case.prompt_ids(split)
    longest = max(prompt_ids, key=lambda name: len(prompt_ids[name]))
    length = len(prompt_ids[longest])
    max_new = case.study.sampling.max_new
    if measured_by(case.study, split) != "samples":
        max_new = 0
    limits = {"the model's": case.setup.cfg.max_len}
    if split == "pairs":
        limits["the attribution's context of"] = case.setup.context
    for whose, limit in limits.items():
        if length + max_new > limit:
            raise ValueError(
                f"prompt {longest!r} has {length} tokens, "
                f"which with sampling.max_new={max_new} "
                f"exceeds {whose} {limit}; shorten it, or lower "
                "--config.sampling.max_new"
            )


def _check_scopes(case: Case) -> None:
    """Raises ValueError for a prompt for pairs of which no token would count in a
    preset's scope.
    """
    setup = case.setup
    scopes = {preset.tokens for preset in setup.settings.presets()}
    if "prompt" not in scopes or "special" not in setup.exclude:
        return
    for name, ids in case.prompt_ids("pairs").items():
        if is_special(ids, setup.tokenizer).all():
            raise ValueError(
                f"prompt {name!r} has special tokens alone, of which none counts in "
                "the attribution; fill it in, or "
                f"exclude less ({setup.flag('exclude')})"
            )
