"""The stage in which a reader describes latents by their texts, blind to which latent
they are of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.judge import Item
from sae_attr.report.reading_text import marked
from sae_attr.report.safe_text import one_line, shortened
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.grading import judged
from sae_attr.study.judges import Reader
from sae_attr.study.shading import shaded
from sae_attr.study.stages.texts_to_read import NAME as TEXTS
from sae_attr.study.stages.texts_to_read import NO_READER

NAME = "describe"
VERSION = 1
_LONGEST = 600  # characters of a prompt or answer in a question
_PURPOSE = 29  # of the study's seed that the order of questions is drawn by


def describe(inputs: StageInputs, progress: Progress) -> Computed:
    """Asks for a description of every latent by each source: `meta["descriptions"]` is
    source -> latent -> text, None where the reply could not be read.

    A question holds texts alone, and questions come in an order drawn at random: nothing
    tells a latent's number, its rank, or whether a method selected it.
    """
    case = inputs.case
    if case.reader is None:
        return {}, {"left_out_since": NO_READER}
    descriptions: dict[str, dict[str, str | None]] = {}
    unread = 0
    for source, of_latents in inputs[TEXTS].meta["texts"].items():
        items = []
        for latent, texts in of_latents.items():
            if texts["shown"]:
                material = material_of(source, texts["shown"])
                items.append(Item(latent, "", material))
        items = shuffled(items, case.study.seed)
        grades = judged(case.reader.write[source], items, bar=case.runtime.progress)
        of_source: dict[str, str | None] = {}
        for item, grade in zip(items, grades, strict=True):
            of_source[item.id] = grade.details.get("text")
            unread += grade.malformed
        # In the order of the latents, not of the questions.
        described = [latent for latent in of_latents if latent in of_source]
        descriptions[source] = {latent: of_source[latent] for latent in described}
    return {}, {"descriptions": descriptions, "unread_replies": unread}


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """Returns questions in an order drawn at random."""
    order = np.random.default_rng([seed, _PURPOSE]).permutation(len(items))
    return [items[i] for i in order.tolist()]


def material_of(source: str, shown: Sequence[Any]) -> str:
    """Returns what the reader sees of a latent.

    Args:
      source: passages, answers or neutral.
      shown: passages of the stage `interpret`; or (prompt, answer as it is, answer with
        the latent added).
    """
    if source == "passages":
        return "\n".join(f"- {one_line(marked(shaded(passage)))}" for passage in shown)
    return "\n\n".join("\n".join(_three_lines(answer)) for answer in shown)


def _three_lines(answer: Sequence[str]) -> Iterator[str]:
    names = ("prompt", "answer as it is", "answer with the feature stronger")
    for name, text in zip(names, answer, strict=True):
        yield f"{name}: {shortened(text, _LONGEST)}"


def declared_reader(reader: Reader | None, part: str) -> Mapping[str, Any]:
    """Returns the identities of the judges that a reader asks, by source."""
    if reader is None:
        return {}
    judges = reader.write if part == "write" else reader.match
    return {source: dict(judge.identity) for source, judge in judges.items()}


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the descriptions depend on."""
    return {"reader": declared_reader(case.reader, "write"), "seed": case.study.seed}


STAGE = CaseStage(
    NAME,
    describe,
    fields,
    needs=(TEXTS,),
    version=VERSION,
    applies=lambda study: study.reads,
)
