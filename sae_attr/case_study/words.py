"""What a study found, in sentences; facts, warnings and choices for readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.case_study.case import Case
from sae_attr.case_study.results import CaseResults
from sae_attr.case_study.settings import DIRECTIONS
from sae_attr.page import Choice


def points(change: float) -> str:
    """A change of a rate in percentage points."""
    return f"{100 * change:+.0f} points" if np.isfinite(change) else "an unknown change"


def case_sentences(r: CaseResults) -> list[str]:
    """The headline of a case: counts outside the random band, and the latent of largest effect in either direction."""
    effects, chosen = r.of["effects"], r.selection
    method = r.case.study.methods[0]
    out = []
    for direction in DIRECTIONS:
        counts = {row["method"]: row for row in effects.meta["counts"] if row["direction"] == direction}
        own, base = counts[method], effects.meta["base_rates"][direction]
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"])[
            np.isin(chosen.latents_u, chosen.methods[method])
        ]
        latents = chosen.latents_u[np.isin(chosen.latents_u, chosen.methods[method])]
        sign = 1 if direction == "toward" else -1
        best = int(np.nanargmax(sign * change_u)) if np.isfinite(change_u).any() else 0
        verb = "along" if direction == "toward" else "against"
        out.append(
            f"Steering {verb} them, {own['outside']} of {own['measured']} latents of {method} moved "
            f"{r.case.settings.behaviour} further than the random band (chance: {own['expected']:.1f}); mean "
            f"{points(own['mean'])} from a base rate of {100 * base:.0f} %. The largest effect is latent "
            f"{latents[best]}'s: {points(change_u[best])}."
        )
    return out


def study_sentences(found: Sequence[CaseResults], shared: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The most important sentences over all cases."""
    for r in found:
        first = r.selection.methods[r.case.study.methods[0]][0]
        u = int(np.searchsorted(r.selection.latents_u, first))
        change = {d: float(r.of["effects"].arrays[f"{d}.change_u"][u]) for d in DIRECTIONS}
        tokens = ", ".join(repr(t.strip()) for t in r.of["interpret"].meta["nearest"][str(int(first))][:4])
        away, toward = points(change["away"]), points(change["toward"])
        yield (
            f"{r.case.settings.title}: latent {first} comes first by attribution (nearest tokens {tokens}). Steered against "
            f"it, the rate of {r.case.settings.behaviour} changes by {away}; along it, by {toward}."
        )
    for row in shared:
        names = " and ".join(first["study"] for first in row["firsts"])
        yield (
            f"{names} share {len(row['shared'])} of their chosen latents where chance gives {row['expected']:.1f} "
            f"(p = {row['overlap_p']:.2g})."
        )


def case_facts(r: CaseResults) -> dict[str, Any]:
    """Small facts by name."""
    case, of = r.case, r.of
    pairs = of["attribute"].meta["summary"]["pairs"]
    strengths = {d: of[f"strengths.{d}"].meta for d in DIRECTIONS}
    return {
        "pairs": pairs["prompts"],
        "prompts by what they gave": of["pair"].meta["counts"],
        f"rate of {case.settings.behaviour} in the samples": round(of["grade"].meta["rate"], 4),
        "on-policy": pairs["on_policy"],
        "prompts for strengths, effects": [len(case.prompts("strengths")), len(case.prompts("effects"))],
        "samples per prompt": case.study.effect_samples,
        "latents steered": of["select"].meta["steered"],
        "whose gradient points against the behaviour": of["select"].meta["gradient_against"],
        "unsteered incoherence": {d: round(m["unsteered_incoherent"], 4) for d, m in strengths.items()},
        "arms without a coherent strength": {d: m["without_strength"] for d, m in strengths.items()},
        "missing answers": {d: of[f"judge.{d}"].meta["counts"]["missing"] for d in DIRECTIONS},
        "malformed replies": {d: of[f"judge.{d}"].meta["counts"]["malformed"] for d in DIRECTIONS},
        "judge": dict(case.judge.identity),
        "SAE": of["attribute"].meta["summary"]["sae_fitness"].get("verdict", "not tested"),
        "halves of the pairs share": of["attribute"].meta["summary"]["stability"]["half_overlap"],
    }


def case_warnings(r: CaseResults) -> list[str]:
    """What a reader must know."""
    of, case = r.of, r.case
    out = list(of["attribute"].meta["summary"]["warnings"])
    if (pairs := of["attribute"].meta["summary"]["pairs"]["prompts"]) < case.settings.pairs:
        out.append(f"only {pairs} prompts gave both kinds, of {case.settings.pairs} asked for")
    out += [f"method {name} is left out: {why}" for name, why in of["select"].meta["skipped"].items()]
    wanted, random = case.study.random, of["select"].meta["methods"].get("random", 0)
    if random < wanted:
        out.append(
            f"only {random} random latents, of {wanted} asked for: the dictionary has no more that no method chose"
        )
    for direction in DIRECTIONS:
        smallest = of["effects"].meta["detectable"][direction]
        if np.isfinite(smallest):
            out.append(
                f"{direction}: changes below {100 * smallest:.0f} points are not detectable with so many prompts"
            )
    return out


def choices(case: Case) -> tuple[Choice, ...]:
    """Where the method is silent, and what was chosen here."""
    s, study = case.settings, case.study
    budget = (
        f"{study.budget.rule}, {100 * study.budget.points:.0f} points, {study.budget.pick}, by {study.strengths_by}"
    )
    signed = "the gradient-signed strip is separate" if study.gradient_signed else ""
    tokens = "prompt is the post's; completion or all are departures"
    return (
        Choice("tokens of the attribution", s.attribution.get("tokens") or "prompt", tokens),
        Choice("loss", s.attribution.get("loss", "sum"), "sum over the completion's tokens, or mean"),
        Choice("completions per pair and side", s.per_side, "the first distinct ones in the order of sampling"),
        Choice("steered tokens", study.steer_tokens, "all, prompt or generated"),
        Choice("strengths", list(study.grid), "grid, in units of the site's mean activation norm"),
        Choice("choice of strength", budget, "on prompts that nothing else uses"),
        Choice("sign of steering", "fixed: − away, + toward", signed),
        Choice("random latents", study.random, "matched on firing rate, same strength search; 5th to 95th percentile"),
        Choice(
            "samples per latent and prompt", study.effect_samples, "steered and unsteered ones share their random keys"
        ),
        Choice("temperature, top-p", [study.sampling.temperature, study.sampling.top_p], "of all completions"),
        Choice(
            "excluded answers", f"sampled again up to {study.sampling.attempts} times", "then missing, never a score"
        ),
        Choice(
            "tests",
            "sign flips over prompts, permutation of methods' labels",
            "Benjamini-Hochberg; bootstrap by prompt",
        ),
    )
