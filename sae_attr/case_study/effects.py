"""What steering changed: effects per latent, the headline per method, and what the studies share."""

from __future__ import annotations

from typing import Any

from sae_attr.case_study.case import Case


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    return {"effects": {"resamples": case.study.resamples}, "interpret": {}}


def effects(case: Case, *read: Any) -> Any:
    return {}, {}


def interpret(case: Case, *read: Any) -> Any:
    return {}, {}
