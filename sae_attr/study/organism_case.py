"""Cases of the model organism: its files, prompts, judge and exact rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Edit
from sae_attr.lm.model import Params
from sae_attr.organism.build import locate
from sae_attr.organism.exact import (
    DECIDES,
    STUDIED,
    PromptPaths,
    exact_rates,
    prompt_paths,
)
from sae_attr.organism.prompts import prompts
from sae_attr.organism.recipe import Recipe
from sae_attr.organism.world import World
from sae_attr.steering.interventions import scoped
from sae_attr.study.case import Case, ExactState, OpenExact, Runtime
from sae_attr.study.input_files import InputFiles
from sae_attr.study.judges import open_judge
from sae_attr.study.prompts import SPLITS
from sae_attr.study.settings import CaseSettings, StudySettings
from sae_attr.text.pairs import Prompt


def organism_case(
    settings: CaseSettings, study: StudySettings, recipe: Recipe, runtime: Runtime
) -> Case:
    """Returns a case of the organism: misalignment studies the misaligned model,
    validation the validating one.

    Raises:
      ValueError: a behaviour that the organism does not have.
    """
    built, behaviour = locate(recipe, runtime.store), str(settings.organism)
    if behaviour not in STUDIED:
        raise ValueError(
            f"the organism has no behaviour {behaviour!r}; choose misalignment or "
            "validation"
        )
    studied = STUDIED[behaviour]
    split_prompts = {}
    for split in SPLITS:
        of_split = []
        for prompt in prompts(built.world, behaviour, split):
            of_split.append(Prompt(prompt.id, prompt.text))
        split_prompts[split] = tuple(of_split)
    parts = (studied, "chat", "sae", "corpus")
    judge = {"kind": "organism", "behaviour": behaviour, "world": recipe.seed}
    return Case(
        settings,
        study,
        InputFiles(
            lm=getattr(built, studied),
            lm_aligned=built.chat,
            sae=built.sae,
            corpus=built.corpus,
        ),
        split_prompts,
        open_judge(judge, runtime.workdir / "judged", runtime.mesh),
        runtime,
        exact=exact_on_grammar(built.world, behaviour),
        file_stages=tuple([built.stages[part] for part in parts]),
    )


def exact_on_grammar(world: World, behaviour: str) -> OpenExact:
    """Returns what opens exact rates on the prompts that decide the behaviour."""
    by_id = {}
    for split in SPLITS:
        for prompt in prompts(world, behaviour, split):
            by_id[prompt.id] = prompt

    def exact(case: Case, of_split: Sequence[Prompt]) -> GrammarRates:
        deciding = []
        for prompt in of_split:
            if by_id[prompt.id].kind == DECIDES[behaviour]:
                deciding.append(by_id[prompt.id])
        ids = tuple(prompt.id for prompt in deciding)
        return GrammarRates(case, ids, prompt_paths(world, behaviour, deciding))

    return exact


@dataclass(frozen=True, eq=False)
class GrammarRates:
    """Exact rates by the grammar of answers: see `study.case.ExactPrompts`."""

    case: Case
    ids: tuple[str, ...]
    paths: PromptPaths

    def begin(self, params: Params) -> ExactState:
        """Returns that every prompt is measured; what no edit changes is run with the
        rest.
        """
        return ExactState((), np.ones(len(self.ids), bool))

    def rates(
        self, params: Params, arrays: Any, edit: Edit
    ) -> tuple[jax.Array, jax.Array]:
        """Returns behaviour and coherence `[k, prompts]` under every edit; pure."""
        setup, study = self.case.setup, self.case.study
        edit = scoped(
            edit, study.steer_tokens, self.paths.n_prompt, skip=study.steer_skip
        )
        edits, rows = {setup.site: edit}, len(jax.tree.leaves(edit)[0])
        return exact_rates(params, self.paths, edits, cfg=setup.cfg, rows=rows)
