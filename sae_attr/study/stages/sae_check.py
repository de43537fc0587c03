"""Stage `sae_check`: the check of the SAE at its site, before anything else."""

from __future__ import annotations

from typing import Any

from sae_attr.sae_check import (
    SAECheck,
    SAEMeasurement,
    check_table,
    judge_sae,
    measure_sae,
    read_stated_metrics,
)
from sae_attr.sae_check import check_record as record_of
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.setup import Setup
from sae_attr.study.stages.context import Context, Inputs

NAME = "sae_check"
VERSION = 1  # raised when the stage gives other numbers than before


def stage(c: Context) -> Stage:
    """Makes the stage: `meta["measured"]`, or `meta["skipped"]` with a reason.

    A run ends with a ValueError where the SAE fails and `trust_sae` is not set. What was
    measured is stored all the same, so that a run which trusts the SAE only loads it.
    """
    setup = c.setup

    def run(inputs: Inputs, progress: Progress) -> Computed:
        if why := _skipped(setup):
            return {}, {"skipped": why}
        return {}, {"measured": _measure(setup).to_dict()}

    def accept(result: Result) -> None:
        check_record(setup, result)

    fields = {
        **c.text_fields(),
        "tokens": setup.settings.sae_check_tokens,
        "masks": c.mask_fields(),
    }
    files = ("lm", "corpus", "sae")
    return c.stage(
        NAME, run, version=VERSION, fields=fields, files=files, accept=accept
    )


def _skipped(setup: Setup) -> str:
    if not setup.settings.sae_check_tokens:
        return "sae_check_tokens=0"
    return setup.sae_cfg.no_token_codes or ""


def _measure(setup: Setup) -> SAEMeasurement:
    return measure_sae(
        setup.params,
        setup.sae,
        setup.corpus.unmasked(setup.settings.sae_check_tokens),
        cfg=setup.cfg,
        site=setup.site,
        read=setup.read_site,
        mesh=setup.mesh,
        stated_l0=read_stated_metrics(setup.settings.sae, setup.sae_cfg).l0,
        masks=setup.tested_masks,
    )


def _judged(setup: Setup, measured: Any) -> SAECheck:
    return judge_sae(
        SAEMeasurement.from_dict(measured),
        read_stated_metrics(setup.settings.sae, setup.sae_cfg),
        counts_special=not setup.exclude,
    )


def _require_fit(setup: Setup, check: SAECheck) -> None:
    if not check.passes and not setup.settings.trust_sae:
        raise ValueError(
            f"the SAE {setup.settings.sae} {check.verdict}\n{check_table(check)}\n"
            "correct how it is loaded (site, sae_options, exclude), or go on all the "
            f"same with {setup.flag('trust_sae')}=True"
        )


def check_of(setup: Setup, result: Result) -> SAECheck:
    """Judges what the stage measured; the verdict is never stored."""
    return _judged(setup, result.meta["measured"])


def check_record(setup: Setup, result: Result) -> dict[str, Any]:
    """Returns the check as result.json has it; only a reason where it was skipped.

    Raises:
      ValueError: the SAE fails it, and `trust_sae` is not set.
    """
    if "skipped" in result.meta:
        return {"skipped": result.meta["skipped"]}
    check = check_of(setup, result)
    _require_fit(setup, check)
    return {"trusted": setup.settings.trust_sae, **record_of(check)}
