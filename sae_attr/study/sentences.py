"""What a study found, in sentences; facts, warnings and choices for readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.judge import judge_name, warnings_of
from sae_attr.report.figures.strips import method_name
from sae_attr.report.numbers import signed, span
from sae_attr.report.page import Choice
from sae_attr.report.ranking_text import ranked_text, silent_text
from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.results import CaseResults
from sae_attr.study.settings import DIRECTIONS

ONE_SIDED = 0.05  # difference in shares of unread replies from which a reader is warned
MANY_MISSING = 0.2  # share of answers from which a reader is warned


def points(change: float) -> str:
    """A change of a rate in percentage points."""
    return f"{signed(100 * change, 0)} points"


def changed(effects: Result, direction: str, u: int) -> str:
    """How a latent changed the rate in a direction, with its interval; or why that was
    not measured.
    """
    part = lambda name: float(np.asarray(effects.arrays[f"{direction}.{name}_u"])[u])
    if np.isfinite(part("change")):
        return f"changes by {points(part('change'))} {span(part('low'), part('high'), 0)}".rstrip()
    return f"could not be measured ({100 * part('missing'):.0f} % of its answers are missing)"


def case_sentences(r: CaseResults) -> list[str]:
    """The latents of largest effect among the studied method's; counts and differences
    the page puts into words itself.
    """
    effects, chosen, method = r.of["effects"], r.selection, r.case.study.methods[0]
    own = np.isin(chosen.latents_u, chosen.methods[method])
    parts = []
    for direction, verb in (("away", "against"), ("toward", "along")):
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
        wanted = np.where(
            own & np.isfinite(change_u),
            change_u if direction == "toward" else -change_u,
            -np.inf,
        )
        best, base = int(wanted.argmax()), effects.meta["base_rates"][direction]
        if np.isfinite(wanted[best]):
            said = f"latent {chosen.latents_u[best]} steered {verb} ({points(change_u[best])} from {100 * base:.0f} %)"
            parts.append(said)
    if not parts:
        return [
            f"No latent of {method_name(method)} could be measured: too many of its "
            "answers are missing."
        ]
    return [
        f"Largest effects on {r.case.settings.behaviour} among the latents of "
        f"{method_name(method)}: {' and '.join(parts)}."
    ]


def study_sentences(
    found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The most important sentences over all cases."""
    for r in found:
        first = r.selection.methods[r.case.study.methods[0]][0]
        u = int(np.searchsorted(r.selection.latents_u, first))
        tokens = ", ".join(
            repr(t.strip())
            for t in r.of["interpret"].meta["nearest"][str(int(first))][:4]
        )
        away, toward = (
            changed(r.of["effects"], direction, u) for direction in DIRECTIONS
        )
        yield (
            f"{r.case.settings.title}: latent {first} comes first by attribution "
            f"(nearest tokens {tokens}). Steered against "
            f"it, the rate of {r.case.settings.behaviour} {away}; along it, it "
            f"{toward}."
        )
    for row in shared:
        names = " and ".join(first["study"] for first in row["firsts"])
        yield (
            f"{names} share {len(row['shared'])} of their chosen latents where chance "
            f"gives {row['expected']:.1f} "
            f"(p = {row['overlap_p']:.2g})."
        )


def listed(values: Mapping[str, Any]) -> str:
    """Small numbers by name, as text."""
    shown = lambda v: f"{v:.3g}" if isinstance(v, float) else str(v)
    return ", ".join(
        f"{name.replace('_', ' ')} {shown(value)}" for name, value in values.items()
    )


def case_facts(r: CaseResults) -> dict[str, Any]:
    """Small facts by name."""
    case, of = r.case, r.of
    summary = of["attribute"].meta["summary"]
    strengths = {d: of[f"strengths.{d}"].meta for d in DIRECTIONS}
    judged = {d: of[f"judge.{d}"].meta["counts"] for d in DIRECTIONS}
    rate, identity = of["grade"].meta["rate"], case.judge.identity
    return {
        "pairs": summary["pairs"]["prompts"],
        "prompts by what they gave": listed(of["pair"].meta["counts"]),
        "rate in the samples": f"{100 * rate:.0f} %",
        "on-policy": "yes" if summary["pairs"]["on_policy"] else "no",
        "prompts": f"{len(case.prompts('strengths'))} for strengths, {len(case.prompts('effects'))} for effects",
        "samples per prompt": case.study.effect_samples,
        "latents steered": of["select"].meta["steered"],
        "gradient points against the behaviour": of["select"].meta["gradient_against"],
        "unsteered incoherence": listed(
            {d: m["unsteered_incoherent"] for d, m in strengths.items()}
        ),
        "arms without a coherent strength": listed(
            {d: m["without_strength"] for d, m in strengths.items()}
        ),
        "missing answers": listed(
            {d: counts["missing"] for d, counts in judged.items()}
        ),
        "malformed replies": listed(
            {d: counts["malformed"] for d, counts in judged.items()}
        ),
        "replies by how they were read": listed(
            replies_read([of["grade"], *(of[f"judge.{d}"] for d in DIRECTIONS)])
        ),
        "coherence": coherence_fact(strengths),
        "judge": f"{judge_name(identity)}, {identity.get('kind')}",
        "SAE": summary["sae_fitness"].get("verdict", "not tested"),
        "latents ranked": "; ".join(
            f"{name}: {ranked_text(p['ranked'])}"
            for name, p in summary["presets"].items()
        ),
        "candidates that never fire on the pairs": silent_text(summary["presets"])
        or "not looked at",
        "halves of the pairs share": f"{100 * summary['stability']['half_overlap']:.0f} % of the top",
    }


def replies_read(graded: Sequence[Result]) -> dict[str, int]:
    """How many replies were read which way, over stages that grade."""
    total: Counter[str] = Counter()
    for result in graded:
        total.update(result.meta["counts"].get("read", {}))
    return dict(sorted(total.items()))


def coherence_fact(strengths: Mapping[str, Mapping[str, Any]]) -> str:
    """Who told whether answers are coherent, and by which limits."""
    limits = []
    for direction, meta in strengths.items():
        if own := meta.get("own_answers"):
            limits.append(
                f"{direction} at least {own['least_logp']:.2f} nats per token and at "
                f"most {100 * own['most_repetition']:.0f} % "
                f"repetition, from {own['samples']} of the model's own answers"
            )
    return f"by log-probability: {'; '.join(limits)}" if limits else "by the judge"


def case_warnings(r: CaseResults) -> list[str]:
    """What a reader must know."""
    of, case = r.of, r.case
    out = list(of["attribute"].meta["summary"]["warnings"])
    if (
        pairs := of["attribute"].meta["summary"]["pairs"]["prompts"]
    ) < case.settings.pairs:
        out.append(
            f"only {pairs} prompts gave both kinds, of {case.settings.pairs} asked for"
        )
    out += [
        f"method {name} is left out: {why}"
        for name, why in of["select"].meta["skipped"].items()
    ]
    wanted, random = case.study.random, of["select"].meta["methods"].get("random", 0)
    if random < wanted:
        out.append(
            f"only {random} random latents, of {wanted} asked for: the dictionary has "
            "no more that no method chose"
        )
    if random and not np.isfinite(of["attribute"].arrays["firing_rate"]).all():
        out.append(
            "random latents are drawn uniformly: firing rates are not known of the "
            "whole dictionary (dense_limit)"
        )
    for direction in DIRECTIONS:
        out += _missing_warning(of["effects"], of[f"judge.{direction}"], direction)
    read = replies_read([of["grade"], *(of[f"judge.{d}"] for d in DIRECTIONS)])
    if read.get("weighted") and read.get("text"):
        out.append(
            f"scores are of two kinds: {listed(read)} replies; set judge.answers=text "
            "to read all by their text"
        )
    out += one_sided_warning({d: of[f"judge.{d}"] for d in DIRECTIONS})
    out += warnings_of(case.judge)
    return out


def one_sided_warning(judged: Mapping[str, Result]) -> list[str]:
    """Says so where the judge left replies unread in one direction far more often than
    in the other: the rates of the two models are then not of the same answers.
    """
    shares = {}
    for direction, result in judged.items():
        counts = result.meta["counts"]
        shares[direction] = (int(counts["malformed"]), sum(counts["labels"].values()))
    (unread_a, asked_a), (unread_b, asked_b) = shares.values()
    table = [[unread_a, asked_a - unread_a], [unread_b, asked_b - unread_b]]
    rates = [unread_a / max(asked_a, 1), unread_b / max(asked_b, 1)]
    if (
        abs(rates[0] - rates[1]) < ONE_SIDED
        or float(np.asarray(stats.fisher_exact(table))[1]) > 0.01
    ):
        return []
    told = " and ".join(
        f"{100 * rate:.0f} % steering {d}"
        for d, rate in zip(shares, rates, strict=True)
    )
    return [
        "the judge refused, or gave no readable reply, to one side far more often "
        f"than to the other: {told}"
    ]


def _missing_warning(effects: Result, judged: Result, direction: str) -> list[str]:
    """Says how many answers are missing where they are many, and how many latents were
    not measured for that.
    """
    missing = judged.meta["counts"]["missing"]
    answers = len(judged.arrays["behaviour_r"])
    change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
    unmeasured = int(np.isnan(change_u).sum())
    if missing < MANY_MISSING * answers and not unmeasured:
        return []
    lost = (
        f"; {unmeasured} of {len(change_u)} latents lost most of theirs and were not "
        "measured"
        if unmeasured
        else ""
    )
    return [
        f"steering {direction}, {missing} of {answers} answers are missing "
        f"({100 * missing / answers:.0f} %){lost}"
    ]


def choices(case: Case) -> tuple[Choice, ...]:
    """Where the method is silent, and what was chosen here."""
    s, study = case.settings, case.study
    budget = f"{study.budget.rule}, {100 * study.budget.points:.0f} points, {study.budget.pick}, by {study.strengths_by}"
    signed = "the gradient-signed strip is separate" if study.gradient_signed else ""
    tokens = "prompt is the post's; completion or all are departures"
    return (
        Choice(
            "tokens of the attribution", s.attribution.get("tokens") or "prompt", tokens
        ),
        Choice(
            "loss",
            s.attribution.get("loss", "sum"),
            "sum over the completion's tokens, or mean",
        ),
        Choice(
            "completions per pair and side",
            s.per_side,
            "the first distinct ones in the order of sampling",
        ),
        Choice("steered tokens", study.steer_tokens, "all, prompt or generated"),
        Choice(
            "strengths",
            list(study.grid),
            "grid, in units of the site's mean activation norm",
        ),
        Choice("choice of strength", budget, "on prompts that nothing else uses"),
        Choice(
            "coherence",
            study.coherence_by,
            "auto: the judge if it tells it, else log-probability beside own answers",
        ),
        Choice("sign of steering", "fixed: − away, + toward", signed),
        Choice(
            "random latents",
            study.random,
            "matched on firing rate, same strength search; 5th to 95th percentile",
        ),
        Choice(
            "samples per latent and prompt",
            study.effect_samples,
            "steered and unsteered ones share their random keys",
        ),
        Choice("ends of a completion", list(case.stop_ids), _ends(case)),
        Choice(
            "temperature, top-p",
            [study.sampling.temperature, study.sampling.top_p],
            "of all completions",
        ),
        Choice(
            "excluded answers",
            f"sampled again up to {study.sampling.attempts} times",
            "then missing, never a score",
        ),
        Choice(
            "tests",
            "sign flips over prompts, permutation of methods' labels",
            "Benjamini-Hochberg; bootstrap by prompt",
        ),
    )


def _ends(case: Case) -> str:
    """What says which token ids end a completion."""
    if case.study.sampling.stop_ids is not None:
        return "token ids of the settings"
    sources = [
        f"{name} {', '.join(map(str, ids))}"
        for name, ids in case.attribution.ends.items()
    ]
    return "; ".join(
        [*sources, *(f"settings {text!r}" for text in case.study.sampling.stop)]
    )
