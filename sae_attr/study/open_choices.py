"""The points that the method leaves open, with a study's values."""

from __future__ import annotations

from collections.abc import Iterator

from sae_attr.report.page import Choice
from sae_attr.study.case import Case
from sae_attr.study.dictionary_settings import by_name


def choices(case: Case) -> tuple[Choice, ...]:
    """Returns every point that the method leaves open, with its value here."""
    study = case.study
    by = (study.pairs_by, study.strengths_by, study.effects_by)
    sampling = _sampling_choices(case) if "samples" in by else ()
    return (*_attribution_choices(case), *_steering_choices(case), *sampling)


def _attribution_choices(case: Case) -> tuple[Choice, ...]:
    s = case.settings
    return (
        Choice(
            "tokens of the attribution",
            s.attribution.get("tokens") or "prompt",
            "prompt is the post's; completion or all are departures",
        ),
        Choice(
            "loss",
            s.attribution.get("loss", "sum"),
            "sum over the completion's tokens, or mean",
        ),
        Choice("completions per pair and side", s.per_side, _pair_order(case)),
    )


def _pair_order(case: Case) -> str:
    if case.study.pairs_by == "continuations":
        return "the likeliest of the texts for and against the behaviour"
    return "the first distinct ones in the order of sampling"


def _steering_choices(case: Case) -> tuple[Choice, ...]:
    study = case.study
    budget = (
        f"{study.budget.rule}, {100 * study.budget.points:.0f} points, "
        f"{study.budget.pick}, by {study.strengths_by}"
    )
    signs = "the gradient-signed strip is separate" if study.gradient_signed else ""
    return (
        Choice(
            "steered tokens",
            study.steer_tokens,
            f"all, prompt or generated; the first {study.steer_skip} are spared",
        ),
        Choice(
            "strengths",
            list(study.grid),
            "grid, in units of the site's mean activation norm",
        ),
        Choice("choice of strength", budget, "on prompts that nothing else uses"),
        _coherence_choice(case),
        Choice(
            "single latents are ablated by",
            study.ablate_by,
            "their projection or activation, set to its mean; none",
        ),
        Choice(
            "corners of the plane",
            [study.plane.cause, study.plane.lever],
            "least cause and lever, in standard deviations over the dictionary",
        ),
        Choice("sign of steering", "fixed: − away, + toward", signs),
        Choice(
            "random latents",
            study.random,
            "matched on firing rate, same strength search; 5th to 95th percentile",
        ),
        *_dictionary_choices(case),
        _effects_choice(case),
        Choice(
            "tests",
            "sign flips over prompts, permutation of methods' labels",
            "Benjamini-Hochberg; bootstrap by prompt",
        ),
    )


def _dictionary_choices(case: Case) -> Iterator[Choice]:
    """Yields what ranks the latents of each further dictionary."""
    for dictionary in case.dictionaries:
        yield Choice(
            f"dictionary {dictionary.name}",
            by_name(dictionary.by),
            "beside random latents of the SAE, not matched on its own firing rates",
        )


def _sampling_choices(case: Case) -> tuple[Choice, ...]:
    study = case.study
    return (
        Choice(
            "sampled by",
            sampled_by(case),
            "the model here, a server where nothing is steered, or exported files",
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
    )


def sampled_by(case: Case) -> str:
    """Returns which engines sample."""
    server = case.settings.server
    served = [name for name in (server.model, server.model_aligned) if name]
    alone = "the model here"
    if served:
        alone = f"{', '.join(served)} of a server"
    steered = "the model here"
    if case.study.sweeps_by == "export":
        steered = "another engine, from exported files"
    return f"without steering: {alone}; sweeps that steer: {steered}"


def _coherence_choice(case: Case) -> Choice:
    study = case.study
    if study.strengths_by == "samples":
        return Choice(
            "coherence",
            study.coherence_by,
            "auto: by the judge if it grades coherence, else by log-probability, "
            "compared with unsteered answers",
        )
    if case.settings.organism is not None:
        return Choice("coherence", "exact", "probability of a grammatical answer")
    meaning = "summed probability of the texts"
    if case.settings.continuations.measure == "log_odds":
        meaning = "geometric mean of the probabilities of the texts' tokens"
    return Choice("coherence", "exact", meaning)


def _effects_choice(case: Case) -> Choice:
    study = case.study
    if study.effects_by == "samples":
        return Choice(
            "samples per latent and prompt",
            study.effect_samples,
            "steered and unsteered ones share their random keys",
        )
    if case.settings.organism is not None:
        return Choice("effects", "exact", "next-word probabilities by the grammar")
    contrast = case.settings.continuations
    texts = "of the texts of each prompt's record"
    if contrast.present and contrast.absent:
        present = ", ".join(map(repr, contrast.present))
        absent = ", ".join(map(repr, contrast.absent))
        texts = f"of the texts {present} against {absent}, or of a prompt's record"
    return Choice("effects", f"exact, {contrast.measure}", texts)


def _ends(case: Case) -> str:
    """Returns where the token ids that end a completion come from."""
    sampling = case.study.sampling
    if sampling.stop_ids is not None:
        return "token ids of the settings"
    sources = []
    for name, ids in case.setup.ends.items():
        sources.append(f"{name} {', '.join(map(str, ids))}")
    sources += [f"settings {text!r}" for text in sampling.stop]
    return "; ".join(sources)
