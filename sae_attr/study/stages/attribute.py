"""The stage that attributes the behaviour to latents: Δ-attribution with all baselines
and exact ablation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_attr.store import Computed, Progress, write_atomic
from sae_attr.study import versions
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.outcome import Outcome, compute
from sae_attr.text.pairing import jsonl

VERSION = 1


def attribute(inputs: StageInputs, progress: Progress) -> Computed:
    """Attributes; arrays are the scores of every latent."""
    case = inputs.case
    write_atomic(case.pairs_file, jsonl(inputs["pair"].meta["records"]))
    outcome = compute(case.setup)
    return outcome.scores, outcome_meta(outcome, f"{case.runtime.workdir}/")


def outcome_meta(outcome: Outcome, folder: str) -> dict[str, Any]:
    """Returns what a stage keeps of an attribution run beside the scores.

    Args:
      folder: paths are kept from here on, wherever it lies.
    """
    columns = {}
    for preset, arrays in outcome.columns.items():
        columns[preset] = {name: list(x.tolist()) for name, x in arrays.items()}
    return {
        "columns": columns,
        "ablation": outcome.ablation,
        "summary": _plain(outcome.summary, folder),
    }


def _plain(value: Any, folder: str) -> Any:
    """Nested mappings, sets and dataclass fields as JSON can hold them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, folder) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v, folder) for v in value]
    if isinstance(value, str):
        return value.removeprefix(folder)
    return value.tolist() if hasattr(value, "tolist") else value


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the scores depend on."""
    return {"top": case.study.top, "attribution": dict(case.settings.attribution)}


STAGE = CaseStage(
    "attribute",
    attribute,
    fields,
    needs=("pair",),
    version=VERSION,
    calls=versions.ALL,
)
