"""The first latents of every method with the passages that activate them most."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_attr.passage_draws import FITS, ORDINARY, OTHER
from sae_attr.report.description_text import reader_sentences
from sae_attr.report.method_style import RANDOM
from sae_attr.report.page import (
    Description,
    LatentReading,
    ReaderTest,
    SourceTest,
    TokenEffect,
)
from sae_attr.study.case_results import CaseResults
from sae_attr.study.description_scores import (
    AGAINST,
    Verdicts,
    balanced_accuracy,
    difference_of_means,
    mean_accuracy,
    right_of,
)
from sae_attr.study.settings import StudySettings
from sae_attr.study.shading import activity_note, shaded
from sae_attr.study.stages import describe, match

FIRST = 6  # latents of every method


def first_latents(results: CaseResults) -> Iterator[LatentReading]:
    """Yields the first latents of every method but the random one, each once."""
    compared = results.selection.compared()
    count = max(FIRST, results.case.study.described)
    seen: set[int] = set()
    for name, latents in compared.items():
        if name == RANDOM:
            continue
        for latent in latents[:count].tolist():
            reading = _reading(results, latent)
            if latent in seen or not (reading.passages or reading.raised):
                continue
            seen.add(latent)
            yield reading
    for latent in compared.get(RANDOM, np.zeros(0, int)).tolist():
        reading = _reading(results, latent)
        if reading.descriptions and latent not in seen:
            yield replace(reading, is_control=True)


def _reading(results: CaseResults, latent: int) -> LatentReading:
    """Returns what was looked up of a latent."""
    interpreted = results.of["interpret"].meta
    passages = interpreted["passages"].get(str(latent), [])
    effects = interpreted["effects"].get(str(latent), {})
    methods = []
    for name, latents in results.selection.compared().items():
        if latent in latents:
            methods.append(name)
    address = ""
    if results.case.latents.is_of_sae(latent):
        address = results.case.setup.sae_files.latent_page(latent)
    return LatentReading(
        results.label(latent),
        tuple(methods),
        tuple(interpreted["nearest"][str(latent)]),
        tuple(map(shaded, passages)),
        activity_note(passages) if passages else _silence(results, latent),
        raised=_effects(effects.get("raised", ())),
        lowered=_effects(effects.get("lowered", ())),
        address=address,
        descriptions=tuple(_descriptions(results, str(latent))),
    )


def _silence(results: CaseResults, latent: int) -> str:
    """Returns that a latent has no passage, where passages were looked for."""
    looked_for = str(latent) in results.of["interpret"].meta["passages"]
    return "Active nowhere in the text that was searched." if looked_for else ""


def _descriptions(results: CaseResults, latent: str) -> Iterator[Description]:
    """Yields what the reader wrote of a latent, with the test of it."""
    if not _is_described(results):
        return
    verdicts = results.of[match.NAME].meta["verdicts"]
    for source, of_source in results.of[describe.NAME].meta["descriptions"].items():
        if latent not in of_source:
            continue
        verdicts_of = verdicts[source].get(latent, {})
        yield Description(
            source,
            of_source[latent] or "",
            balanced_accuracy(verdicts_of, AGAINST[""]),
            fits=right_of(verdicts_of, (FITS,)),
            ordinary=right_of(verdicts_of, (ORDINARY,)),
            other=right_of(verdicts_of, (OTHER,)),
        )


def _is_described(results: CaseResults) -> bool:
    done = results.of.get(match.NAME)
    return done is not None and "verdicts" in done.meta


def reader_test(results: CaseResults) -> ReaderTest | None:
    """Returns how well the reader's descriptions tell texts apart, over latents that
    methods selected and over random ones; None where nobody described.
    """
    if not _is_described(results):
        return None
    of = results.of
    selected: set[int] = set()
    for method, latents in results.selection.compared().items():
        if method != RANDOM:
            selected |= set(latents.tolist())
    tests = []
    for source, verdicts in of[match.NAME].meta["verdicts"].items():
        tests.append(_source_test(results.case.study, source, verdicts, selected))
    unread = 0
    for stage in (describe.NAME, match.NAME):
        unread += of[stage].meta["unread_replies"]
    return ReaderTest(tuple(tests), reader_sentences(tests, unread))


def _source_test(
    study: StudySettings,
    source: str,
    verdicts: Mapping[str, Verdicts],
    selected: Collection[int],
) -> SourceTest:
    """Returns the accuracies of the descriptions by one source."""
    means: dict[str, dict[str, list[float]]] = {}
    for latent, of_latent in verdicts.items():
        group = "selected" if int(latent) in selected else RANDOM
        for name, kinds in AGAINST.items():
            value = balanced_accuracy(of_latent, kinds).value
            if np.isfinite(value):
                means.setdefault(group, {}).setdefault(name, []).append(value)
    first, second = means.get("selected", {}), means.get(RANDOM, {})
    options = {"resamples": study.resamples, "seed": study.seed}
    whole, random = first.get("", []), second.get("", [])
    return SourceTest(
        source,
        len(whole),
        len(random),
        mean_accuracy(whole, **options),
        mean_accuracy(random, **options),
        difference_of_means(whole, random, **options),
        mean_accuracy(first.get(ORDINARY, []), **options),
        mean_accuracy(first.get(OTHER, []), **options),
    )


def _effects(pairs: Sequence[Sequence[Any]]) -> tuple[TokenEffect, ...]:
    return tuple(TokenEffect(token, change) for token, change in pairs)
