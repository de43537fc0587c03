"""Cases of the model organism: its files, prompts, judge and exact rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_attr.organism.build import locate
from sae_attr.organism.exact import DECIDES, STUDIED, exact_rates, prompt_paths
from sae_attr.organism.prompts import prompts
from sae_attr.organism.recipe import Recipe
from sae_attr.study.case import Case, ExactRates, Runtime
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
        exact=_exact(built.world, behaviour),
        file_stages=tuple([built.stages[part] for part in parts]),
    )


def _exact(world: Any, behaviour: str) -> ExactRates:
    """Returns exact rates on the prompts for strengths that decide the behaviour."""
    by_id = {prompt.id: prompt for prompt in prompts(world, behaviour, "strengths")}

    def exact(
        params: Any, split_prompts: Sequence[Prompt], edits: Any, **options: Any
    ) -> Any:
        deciding = []
        for prompt in split_prompts:
            if by_id[prompt.id].kind == DECIDES[behaviour]:
                deciding.append(by_id[prompt.id])
        return exact_rates(
            params, prompt_paths(world, behaviour, deciding), edits, **options
        )

    return exact
