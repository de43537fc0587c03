"""Versions of the attribution's stages: part of every key, also of the stages of other
packages that run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# A stage's number is raised when its code gives other numbers than before. `candidates`
# is no stage of its own: it is what `outcome.compute` makes of the stored stages on
# every run, and what a stage of another package keeps of it.
VERSIONS: dict[str, int] = {
    "norm-limits": 5,
    "outliers": 5,
    "sae-check": 7,
    "mean": 5,
    "gradients": 5,
    "firing": 5,
    "scores": 5,
    "codes": 5,
    "ablation": 5,
    "candidates": 8,
}

# What each stage runs or reads without having its key among its own inputs.
_CALLS: Mapping[str, tuple[str, ...]] = {
    "outliers": ("norm-limits",),
    "mean": ("norm-limits",),
    "firing": ("norm-limits",),
    "gradients": ("outliers",),
    "scores": ("outliers",),
    "codes": ("outliers",),
    "ablation": ("outliers",),
}

ALL = tuple(VERSIONS)


def called_by(stage: str) -> dict[str, int]:
    """Returns the versions of all that a stage runs, directly or not, beside its own."""
    return versions_of(_CALLS.get(stage, ()))


def versions_of(stages: Iterable[str]) -> dict[str, int]:
    """Returns the versions of some stages and of all that they run, by name.

    Raises:
      KeyError: a name that is no stage of the attribution.
    """
    out: dict[str, int] = {}
    for stage in stages:
        out[stage] = VERSIONS[stage]
        out |= called_by(stage)
    return dict(sorted(out.items()))
