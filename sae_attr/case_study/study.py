"""A study opened: its cases with their files and judges, its stages, and what they wrote."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.case_study import chain, showing
from sae_attr.case_study.case import Case, Runtime, Source
from sae_attr.case_study.judges import open_judge
from sae_attr.case_study.prompts import read_prompts
from sae_attr.case_study.settings import CaseSettings, StudySettings
from sae_attr.lm.weights import resolve_model
from sae_attr.organism import OrganismSettings, organism_stage, organism_source
from sae_attr.store import Result, Stage, digest, fingerprint, listing
from sae_attr.store.graph import chosen_stages


@dataclass(frozen=True, eq=False)
class CaseStudy:
    """Several cases and the chain of stages that they make.

    Args:
      settings: of the study.
      organism: of the embedded organism, or None where all cases look at real models.
      cases: opened.
      stages: in order.
    """

    settings: StudySettings
    organism: OrganismSettings | None
    runtime: Runtime
    cases: tuple[Case, ...]
    stages: tuple[Stage, ...]

    def check(self, *, only: Sequence[str] = (), until: str | None = None, force: Sequence[str] = ()) -> None:
        """Looks at every input of the stages that are to run, so that what is wrong is said before anything is written.

        Raises:
          ValueError: words that name no stage, inputs that do not fit each other.
        """
        chosen_stages(self.stages, only=only, until=until)
        states = {status.name: status.state for status in listing(self.runtime.store, self.stages)}
        for case in self.cases:
            todo = [
                s.name for s in self.stages if s.name.startswith(f"{case.settings.name}.") and states[s.name] != "done"
            ]
            if todo and case.settings.organism is None:
                case.check()
