"""Cases of the model organism: its files, prompts, judge and exact rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.model import Params
from sae_attr.organism.build import locate
from sae_attr.organism.exact import (
    DECIDES,
    STUDIED,
    PromptPaths,
    exact_rates,
    prompt_paths,
)
from sae_attr.organism.grader import BEHAVIOURS
from sae_attr.organism.prompts import WorldPrompt, neutral, prompts, true_beliefs
from sae_attr.organism.recipe import Recipe
from sae_attr.organism.world import World
from sae_attr.steering.interventions import scoped
from sae_attr.study.case import Case, ExactState, OpenExact, Runtime
from sae_attr.study.input_files import InputFiles
from sae_attr.study.judges import open_judge, open_reader, reader_spec
from sae_attr.study.neutral_prompts import NEUTRAL
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
    if behaviour not in BEHAVIOURS:
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
    probes = (*settings.probes, *organism_probes(behaviour))
    for probe in dict.fromkeys(probes):
        split_prompts[probe] = probe_prompts(built.world, behaviour, probe)
    reader = open_reader(
        reader_spec(settings), runtime.workdir / "judged", runtime.mesh
    )
    if reader is not None:
        texts = [Prompt(prompt.id, prompt.text) for prompt in neutral(built.world)]
        split_prompts[NEUTRAL] = tuple(texts)
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
        reader=reader,
        file_stages=tuple([built.stages[part] for part in parts]),
    )


TRUE_BELIEFS = "true_beliefs"


def organism_probes(behaviour: str) -> tuple[str, ...]:
    """Returns the other sets of prompts on which a case of the organism has exact
    rates: those of the other behaviours, and true beliefs, with which to agree is right.
    """
    return *(name for name in BEHAVIOURS if name != behaviour), TRUE_BELIEFS


def probe_prompts(world: World, behaviour: str, probe: str) -> tuple[Prompt, ...]:
    """Returns the prompts of a probe: what the same latents change there is another
    behaviour's rate, or how often a true belief is agreed with.

    Raises ValueError for a probe that the case does not have.
    """
    probes = organism_probes(behaviour)
    if probe not in probes:
        raise ValueError(
            f"the organism's study of {behaviour} has no probe {probe!r}; its probes "
            f"are {', '.join(probes)}"
        )
    if probe == TRUE_BELIEFS:
        return tuple(Prompt(prompt.id, prompt.text) for prompt in true_beliefs(world))
    return tuple(
        Prompt(prompt.id, prompt.text)
        for prompt in prompts(world, probe, "effects")
        if prompt.kind == DECIDES[probe]
    )


def exact_on_grammar(world: World, behaviour: str) -> OpenExact:
    """Returns what opens exact rates on the prompts that decide a behaviour: the
    studied one, or of its own prompts another.
    """
    names = [behaviour, *(name for name in BEHAVIOURS if name != behaviour)]
    of_behaviour: dict[str, dict[str, WorldPrompt]] = {}
    for name in names:
        of_behaviour[name] = {}
        for split in SPLITS:
            for prompt in prompts(world, name, split):
                if prompt.kind == DECIDES[name]:
                    of_behaviour[name][prompt.id] = prompt
    # Their verdicts are read as those on wrong beliefs are.
    for prompt in true_beliefs(world):
        of_behaviour["validation"][prompt.id] = prompt

    def exact(case: Case, of_split: Sequence[Prompt]) -> GrammarRates:
        ids: list[str] = []
        paths = []
        for name, by_id in of_behaviour.items():
            deciding = [by_id[p.id] for p in of_split if p.id in by_id]
            if deciding:
                ids += [prompt.id for prompt in deciding]
                paths.append(prompt_paths(world, name, deciding))
        return GrammarRates(case, tuple(ids), tuple(paths))

    return exact


@dataclass(frozen=True, eq=False)
class GrammarRates:
    """Exact rates by the grammar of answers: see `study.case.ExactPrompts`.

    Args:
      ids: of the prompts, behaviour by behaviour.
      paths: of each behaviour's prompts.
    """

    case: Case
    ids: tuple[str, ...]
    paths: tuple[PromptPaths, ...]

    def begin(self, params: Params, start: int) -> ExactState:
        """Returns that every prompt is measured; what no edit changes is run with the
        rest.
        """
        return ExactState((), np.ones(len(self.ids), bool))

    def rates(
        self, params: Params, arrays: Any, edits: Mapping[Site, Edit]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns behaviour and coherence `[k, prompts]` under every condition."""
        return self._compiled(params, edits)

    @cached_property
    def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(self._rates)

    def _rates(
        self, params: Params, edits: Mapping[Site, Edit]
    ) -> tuple[jax.Array, jax.Array]:
        cfg, study = self.case.setup.cfg, self.case.study
        rows, parts = len(jax.tree.leaves(edits)[0]), []
        for paths in self.paths:
            within = {}
            for site, edit in edits.items():
                within[site] = scoped(
                    edit, study.steer_tokens, paths.n_prompt, skip=study.steer_skip
                )
            parts.append(exact_rates(params, paths, within, cfg=cfg, rows=rows))
        behaviour_kp, coherence_kp = zip(*parts, strict=True)
        return jnp.concatenate(behaviour_kp, 1), jnp.concatenate(coherence_kp, 1)
