"""Findings, facts and warnings of a case, gathered from its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.judge import judge_name, warnings_of
from sae_attr.report.method_style import method_name, preset_name
from sae_attr.report.numbers import share
from sae_attr.report.ranking_text import ranked_text, silent_text
from sae_attr.report.sentences import (
    largest_effects_sentence,
    missing_sentence,
    named_numbers,
    unread_sentence,
)
from sae_attr.store import Result
from sae_attr.study.case_results import CaseResults
from sae_attr.study.dictionary_settings import by_name
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages import dictionaries
from sae_attr.study.stages.ablated_rates import NAME as ABLATED_RATES

ONE_SIDED = 0.05  # difference in shares of unread replies from which a reader is warned
MANY_MISSING = 0.2  # share of answers from which a reader is warned
NEAREST = 4  # tokens of a latent in a sentence


# ---- findings ------------------------------------------------------------------------


def case_findings(results: CaseResults) -> tuple[str, ...]:
    """Returns the sentences about a case's largest effects; the page itself puts counts
    and differences into words.
    """
    effects, selection = results.of["effects"], results.selection
    method = results.case.study.methods[0]
    # On the side that matters, as the band is read: away lowers the rate, toward raises it.
    selected = np.isin(selection.latents_u, selection.methods[method])
    largest = {}
    for direction in DIRECTIONS:
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
        gain_u = change_u if direction == "toward" else -change_u
        gain_u = np.where(selected & np.isfinite(change_u), gain_u, -np.inf)
        best = int(gain_u.argmax())
        if np.isfinite(gain_u[best]):
            latent = int(selection.latents_u[best])
            base = effects.meta["base_rates"][direction]
            largest[direction] = (latent, float(change_u[best]), base)
    behaviour = results.case.settings.behaviour
    return (largest_effects_sentence(method, behaviour, largest),)


# ---- facts ---------------------------------------------------------------------------


def case_facts(results: CaseResults) -> dict[str, Any]:
    """Returns small facts by name."""
    case, of = results.case, results.of
    summary = of["attribute"].meta["summary"]
    prompts = {name: len(case.prompts(name)) for name in ("strengths", "effects")}
    return {
        "pairs": summary["pairs"]["prompts"],
        "prompts by their answers": named_numbers(of["pair"].meta["counts"]),
        **_pair_facts(results),
        "on-policy": "yes" if summary["pairs"]["on_policy"] else "no",
        "prompts": f"{prompts['strengths']} for strengths, {prompts['effects']} for effects",
        **_sample_facts(results),
        "latents steered": of["select"].meta["steered"],
        "latents whose gradient opposes the behaviour": of["select"].meta[
            "gradient_against"
        ],
        **_answer_facts(results),
        **_ablation_facts(results),
        "SAE": summary["sae_check"].get("verdict", "not tested"),
        **_ranking_facts(summary),
        **_dictionary_facts(results),
    }


def _ablation_facts(results: CaseResults) -> dict[str, str]:
    """Returns how single latents were ablated, or why they were not."""
    ablated = results.of.get(ABLATED_RATES)
    if ablated is None:
        return {}
    name = "exact ablation of single latents"
    if "skipped" in ablated.meta:
        return {name: f"left out: {ablated.meta['skipped']}"}
    study = results.case.study
    return {
        name: (
            f"{study.ablate_by} set to its mean over ordinary text, {study.steer_tokens} "
            "tokens"
        )
    }


def _pair_facts(results: CaseResults) -> dict[str, str]:
    """Returns the rate of the behaviour in what pairs are made of."""
    if "grade" in results.of:
        return {"rate in sampled answers": share(results.of["grade"].meta["rate"], 0)}
    rate = results.of["pair"].meta["rate"]
    return {"rate by the texts' probabilities": share(rate, 0)}


def _sample_facts(results: CaseResults) -> dict[str, Any]:
    """Returns how much was sampled for the effects."""
    study = results.case.study
    if study.effects_by == "exact":
        return {"effects": "by exact probabilities, nothing sampled"}
    return {"samples per prompt": study.effect_samples}


def _answer_facts(results: CaseResults) -> dict[str, str]:
    """Returns facts about coherence, and about answers and their judge."""
    strengths, incoherent, without = {}, {}, {}
    for direction in DIRECTIONS:
        meta = results.of[f"strengths.{direction}"].meta
        strengths[direction] = meta
        incoherent[direction] = share(meta["unsteered_incoherent"])
        without[direction] = meta["without_strength"]
    broken = "incoherent without steering"
    if results.case.study.strengths_by == "exact":
        broken = "probability that is no coherent answer, without steering"
    return {
        broken: named_numbers(incoherent),
        "latents without a coherent strength": named_numbers(without),
        **_judged_facts(results),
        "coherence": coherence_fact(strengths),
    }


def _judged_facts(results: CaseResults) -> dict[str, str]:
    """Returns facts about graded answers; none where nothing was graded."""
    identity = results.case.judge.identity
    judged, missing, malformed = _judged(results), {}, {}
    if not _graded(results):
        return {}
    for direction, result in judged.items():
        missing[direction] = result.meta["counts"]["missing"]
        malformed[direction] = result.meta["counts"]["malformed"]
    facts = {}
    if judged:
        facts = {
            "missing answers": named_numbers(missing),
            "malformed judge replies": named_numbers(malformed),
        }
    return {
        **facts,
        "judge replies read as": named_numbers(replies_read(_graded(results))),
        "judge": f"{judge_name(identity)}, {identity.get('kind')}",
    }


def _ranking_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns facts about the ranking."""
    ranked, presets = [], {}
    for key, preset in summary["presets"].items():
        name = preset_name(key)
        presets[name] = preset
        ranked.append(f"{name}: {ranked_text(preset['ranked'])}")
    overlap = share(summary["stability"]["half_overlap"], 0)
    return {
        "latents ranked": "; ".join(ranked),
        "candidates that never fire on the pairs": silent_text(presets)
        or "not computed",
        "overlap between halves of the pairs": f"{overlap} of the top",
    }


def _dictionary_facts(results: CaseResults) -> dict[str, str]:
    """Returns how the latents of each further dictionary were ranked."""
    facts = {}
    if not results.case.dictionaries:
        return facts
    for name, about in results.of[dictionaries.NAME].meta["dictionaries"].items():
        text = (
            f"{about['architecture']}, the best {about['steered']} of "
            f"{about['latents']:,} by {by_name(about['by'])}"
        )
        if about.get("silent") is not None:
            text += f" that fire on the pairs ({about['silent']:,} do not)"
        facts[f"dictionary {method_name(name)}"] = (
            f"{text}; random latents are those of the SAE, matched on its firing rates"
        )
    return facts


def _graded(results: CaseResults) -> list[Result]:
    """Returns the results of all stages that grade."""
    graded = list(_judged(results).values())
    if "grade" in results.of:
        graded.insert(0, results.of["grade"])
    return graded


def _judged(results: CaseResults) -> dict[str, Result]:
    """Returns the graded answers under steering by direction; empty where effects are
    exact.
    """
    judged: dict[str, Result] = {}
    for direction in DIRECTIONS:
        if f"judge.{direction}" in results.of:
            judged[direction] = results.of[f"judge.{direction}"]
    return judged


def replies_read(graded: Sequence[Result]) -> dict[str, int]:
    """Returns how many replies were read in which way, over stages that grade."""
    total: Counter[str] = Counter()
    for result in graded:
        total.update(result.meta["counts"].get("read", {}))
    return dict(sorted(total.items()))


def coherence_fact(strengths: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns who decides whether answers are coherent, and by which limits."""
    if "exact" in [meta["by"] for meta in strengths.values()]:
        return "by exact probabilities"
    limits = []
    for direction, meta in strengths.items():
        if bounds := meta.get("own_answers"):
            limits.append(
                f"{direction} at least {bounds['least_logp']:.2f} nats per token and at "
                f"most {100 * bounds['most_repetition']:.0f} % repetition, from "
                f"{bounds['samples']} unsteered answers"
            )
    if not limits:
        return "by the judge"
    return f"by log-probability: {'; '.join(limits)}"


# ---- warnings ------------------------------------------------------------------------


def case_warnings(results: CaseResults) -> list[str]:
    """Returns what a reader must know."""
    of, case = results.of, results.case
    summary = of["attribute"].meta["summary"]
    warnings = list(summary["warnings"])
    pairs = summary["pairs"]["prompts"]
    if pairs < case.settings.pairs:
        warnings.append(
            f"only {pairs} prompts gave answers with and without the behaviour; "
            f"{case.settings.pairs} were asked for"
        )
    for name, why in of["select"].meta["skipped"].items():
        warnings.append(f"method {name} is left out: {why}")
    warnings += _random_warnings(results)
    judged = _judged(results)
    for direction, result in judged.items():
        warnings += _missing_warning(of["effects"], result, direction)
    warnings += _left_out_warnings(results)
    replies = replies_read(_graded(results))
    # A mean over probabilities and the one number that was drawn differ in spread, so that
    # a threshold cuts them differently.
    if replies.get("weighted") and replies.get("text"):
        warnings.append(
            f"scores are of two kinds: {named_numbers(replies)} replies; set "
            "judge.answers=text to read all by their text"
        )
    if judged:
        warnings += one_sided_warning(judged)
    warnings += warnings_of(case.judge)
    return warnings


def _random_warnings(results: CaseResults) -> Iterator[str]:
    """Yields what is missing of the random latents."""
    requested = results.case.study.random
    random = results.of["select"].meta["methods"].get("random", 0)
    if random < requested:
        yield (
            f"only {random} random latents, of {requested} asked for: the dictionary "
            "has no more that no method selected"
        )
    if random and not np.isfinite(results.of["attribute"].arrays["firing_rate"]).all():
        yield (
            "random latents are drawn uniformly: firing rates are not known of the "
            "whole dictionary (dense_limit)"
        )


def _left_out_warnings(results: CaseResults) -> Iterator[str]:
    """Yields which prompts were left out, since the texts after them have too little
    probability.
    """
    least = results.case.settings.continuations.least_mass
    for stage, result in results.of.items():
        left_out = result.meta.get("left_out", ())
        if left_out:
            yield (
                f"{stage}: {len(left_out)} prompts are left out, since the texts after "
                f"them have less than {share(least)} of the probability: "
                f"{', '.join(left_out[:NEAREST])}"
            )


def _missing_warning(effects: Result, judged: Result, direction: str) -> list[str]:
    """Returns a warning where many answers are missing, or latents were not measured
    for that.
    """
    missing = judged.meta["counts"]["missing"]
    answers = len(judged.arrays["behaviour_r"])
    change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
    unmeasured = int(np.isnan(change_u).sum())
    if missing < MANY_MISSING * answers and not unmeasured:
        return []
    return [missing_sentence(direction, missing, answers, unmeasured, len(change_u))]


def one_sided_warning(judged: Mapping[str, Result]) -> list[str]:
    """Returns a warning where the judge left replies unread in one direction far more
    often than in the other: the rates of the two models are then not comparable.
    """
    table, shares = [], {}
    for direction, result in judged.items():
        counts = result.meta["counts"]
        unread, answers = int(counts["malformed"]), sum(counts["labels"].values())
        table.append([unread, answers - unread])
        shares[direction] = unread / max(answers, 1)
    # Fisher's test beside the size of the difference: of few answers, one unread reply is
    # a large share; of many, a small difference is significant.
    low, high = sorted(shares.values())
    by_chance = float(np.asarray(stats.fisher_exact(table))[1])
    if high - low < ONE_SIDED or by_chance > 0.01:
        return []
    return [unread_sentence(shares)]
