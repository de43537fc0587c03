"""The stage in which a reader says which held-out texts fit a description."""

from __future__ import annotations

from typing import Any

from sae_attr.judge import Item
from sae_attr.passage_draws import KINDS
from sae_attr.report.safe_text import shortened
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.grading import judged
from sae_attr.study.stages.describe import NAME as DESCRIBE
from sae_attr.study.stages.describe import declared_reader, shuffled
from sae_attr.study.stages.texts_to_read import NAME as TEXTS
from sae_attr.study.stages.texts_to_read import NO_READER

NAME = "match"
VERSION = 1
_LONGEST = 1200  # characters of a text in a question


def match(inputs: StageInputs, progress: Progress) -> Computed:
    """Asks of every description and held-out text whether they fit: `meta["verdicts"]` is
    source -> latent -> kind of text -> 1, 0, or None where the reply could not be read.

    One text a question, in an order drawn at random over all latents and kinds.
    """
    case = inputs.case
    if case.reader is None:
        return {}, {"left_out_since": NO_READER}
    descriptions = inputs[DESCRIBE].meta["descriptions"]
    verdicts: dict[str, Any] = {}
    asked = unread = 0
    for source, of_latents in inputs[TEXTS].meta["texts"].items():
        items = []
        for latent, description in descriptions[source].items():
            for kind in KINDS if description else ():
                for number, text in enumerate(of_latents[latent].get(kind, ())):
                    name = f"{latent}/{kind}/{number}"
                    items.append(Item(name, description, _shown(text)))
        items = shuffled(items, case.study.seed)
        grades = judged(case.reader.match[source], items, bar=case.runtime.progress)
        replies = dict(zip([item.id for item in items], grades, strict=True))
        of_source: dict[str, dict[str, list[float | None]]] = {}
        for name in sorted(replies):
            latent, kind, _ = name.split("/")
            kinds = of_source.setdefault(latent, {kind: [] for kind in KINDS})
            kinds[kind].append(replies[name].behaviour)
        asked += len(replies)
        unread += sum(grade.malformed for grade in grades)
        verdicts[source] = of_source
    return {}, {"verdicts": verdicts, "questions": asked, "unread_replies": unread}


def _shown(text: Any) -> str:
    """Returns a passage, or a prompt with its answer, as the reader sees it."""
    if isinstance(text, str):
        return text
    prompt, answer = text
    return f"prompt: {prompt}\nanswer: {shortened(answer, _LONGEST)}"


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the verdicts depend on."""
    return {"reader": declared_reader(case.reader, "match"), "seed": case.study.seed}


STAGE = CaseStage(
    NAME,
    match,
    fields,
    needs=(TEXTS, DESCRIBE),
    version=VERSION,
    applies=lambda study: study.reads,
)
