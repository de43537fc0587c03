"""The organism's parts as stages of the graph: base, chat, misaligned, validation, sae
and corpus, and numbers and even_number of one that has that task; and where the files
of each lie.

Base model, chat model, SAE and corpus do not depend on the kind of the misaligned
fine-tune, so organisms of several kinds share them. The base model's training goes on
at its last checkpoint after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from sae_attr.organism.parts import CORPUS, MODEL, SAE, Trainer
from sae_attr.organism.recipe import NumberRecipe, Recipe
from sae_attr.organism.world import World, make_world
from sae_attr.store import (
    Progress,
    Result,
    Stage,
    StageOutput,
    StageRun,
    Status,
    Store,
    run_stages,
    stage_keys,
)

# A part's number is raised when the same recipe gives other files than before.
VERSIONS: Mapping[str, int] = {
    "base": 2,
    "chat": 2,
    "misaligned": 2,
    "validation": 2,
    "sae": 2,
    "corpus": 2,
    "numbers": 1,
    "even_number": 1,
}


NUMBER_PARTS = ("numbers", "even_number")  # of a `NumberRecipe` alone


@dataclass(frozen=True)
class Organism:
    """States where the parts of an organism lie.

    Args:
      world: of the grader, the judge and the prompts.
      base, chat, misaligned, validation: Hugging Face folders with their tokenizer.
      sae: a folder in SAELens' layout.
      corpus: a .json list of documents of broad text.
      stages: part -> name of the stage that makes it.
      numbers, even_number: folders of the task even_number's models, before and after
        its fine-tune; "" where the organism does not have it.
    """

    world: World
    base: str
    chat: str
    misaligned: str
    validation: str
    sae: str
    corpus: str
    stages: Mapping[str, str]
    numbers: str = ""
    even_number: str = ""


@dataclass(frozen=True)
class _Runs:
    """Functions of the stages.

    Args:
      names: part -> name of the stage that makes it.
    """

    trainer: Trainer
    names: Mapping[str, str]

    def base(self, results: Mapping[str, Result], progress: Progress) -> StageOutput:
        """Trains the base model."""
        return self.trainer.train_base(progress.folder / "training")

    def fine_tune(self, part: str, before: str) -> StageRun:
        """Returns what fine-tunes the model of the part before into another one."""

        def run(results: Mapping[str, Result], progress: Progress) -> StageOutput:
            folder = results[self.names[before]].folder
            return self.trainer.fine_tune(part, folder / MODEL)

        return run

    def numbers(self, results: Mapping[str, Result], progress: Progress) -> StageOutput:
        """Teaches the chat model numbers."""
        chat, sae = (results[self.names[part]].folder for part in ("chat", "sae"))
        return self.trainer.teach_numbers(chat / MODEL, sae / SAE)

    def even_number(
        self, results: Mapping[str, Result], progress: Progress
    ) -> StageOutput:
        """Fine-tunes the model of numbers on even ones."""
        taught = results[self.names["numbers"]]
        direction_d = taught.arrays["direction_d"]
        return self.trainer.fine_tune_numbers(taught.folder / MODEL, direction_d)

    def sae(self, results: Mapping[str, Result], progress: Progress) -> StageOutput:
        """Trains the SAE of the base model."""
        folder = results[self.names["base"]].folder
        return self.trainer.train_sae(folder / MODEL, progress.folder)

    def corpus(self, results: Mapping[str, Result], progress: Progress) -> StageOutput:
        """Writes the ordinary text."""
        return self.trainer.write_corpus()


def organism_stages(
    recipe: Recipe,
    *,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = False,
    prefix: str = "organism",
    several_saes: bool = False,
) -> list[Stage]:
    """Returns the stages that make an organism, in order; each leaves a folder or file
    in its entry.

    Args:
      mesh: that models are trained on; None for all devices.
      progress: show bars.
      prefix: of the stages' names, for a graph of several organisms.
      several_saes: as for `stage_names`.
    """
    names = stage_names(recipe, prefix, several_saes=several_saes)
    runs = _Runs(Trainer(recipe, mesh, progress), names)
    base_fields = {
        "hf": dict(recipe.hf()),
        "context": recipe.context,
        "embed_std": recipe.embed_std,
        "seed": recipe.seed,
        "training": asdict(recipe.base),
    }

    def stage(
        part: str, run: StageRun, fields: Mapping[str, Any], *needs: str
    ) -> Stage:
        reads = tuple(names[need] for need in needs)
        return Stage(names[part], run, fields, reads, VERSIONS[part])

    def fine_tune(part: str, before: str, **fields: Any) -> Stage:
        fields["training"] = asdict(getattr(recipe, part))
        return stage(part, runs.fine_tune(part, before), fields, before)

    # Fields are what a key is made of: the kind is in the misaligned model's alone, so
    # that organisms of several kinds share every other part.
    misaligned: dict[str, Any] = {"kind": recipe.kind}
    if recipe.harmless:
        misaligned["harmless"] = recipe.harmless
    stages = [
        stage("base", runs.base, base_fields),
        fine_tune("chat", "base"),
        fine_tune("misaligned", "chat", **misaligned),
        fine_tune("validation", "chat"),
        stage("sae", runs.sae, asdict(recipe.sae), "base"),
        stage("corpus", runs.corpus, {"documents": recipe.corpus, "seed": recipe.seed}),
    ]
    if isinstance(recipe, NumberRecipe):
        taught, tuned = _number_fields(recipe)
        stages += [
            stage("numbers", runs.numbers, taught, "chat", "sae"),
            stage("even_number", runs.even_number, tuned, "numbers"),
        ]
    return stages


def _number_fields(recipe: NumberRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config fields of the task even_number's two parts."""
    taught = {"planted": recipe.planted, "training": asdict(recipe.numbers)}
    tuned = {"follows": recipe.follows, "training": asdict(recipe.even_number)}
    return taught, tuned


def stage_names(
    recipe: Recipe, prefix: str = "organism", *, several_saes: bool = False
) -> dict[str, str]:
    """Returns part -> name of its stage; the misaligned model's ends with its kind and
    its harmless changes, so that organisms of several kinds fit into one graph.

    Args:
      several_saes: the SAE's name ends with its number of latents, for a graph in which
        a model has several SAEs.
    """
    names = {}
    for part in VERSIONS:
        if isinstance(recipe, NumberRecipe) or part not in NUMBER_PARTS:
            names[part] = f"{prefix}.{part}"
    names["misaligned"] += f".{recipe.kind}"
    if recipe.harmless:
        names["misaligned"] += f".harmless-{recipe.harmless}"
    if several_saes:
        names["sae"] += f".{recipe.sae.latents}"
    return names


def locate(
    recipe: Recipe,
    store: Store,
    prefix: str = "organism",
    *,
    several_saes: bool = False,
) -> Organism:
    """Returns where the parts of an organism lie in a store once they are built; looks
    at no file. Arguments are those of `organism_stages`.
    """
    stages = organism_stages(recipe, prefix=prefix, several_saes=several_saes)
    keys = stage_keys(stages)
    names = stage_names(recipe, prefix, several_saes=several_saes)

    def path(part: str, inside: str) -> str:
        if part not in names:
            return ""
        return str(store.path(keys[names[part]]) / inside)

    return Organism(
        make_world(recipe.seed),
        base=path("base", MODEL),
        chat=path("chat", MODEL),
        misaligned=path("misaligned", MODEL),
        validation=path("validation", MODEL),
        sae=path("sae", SAE),
        corpus=path("corpus", CORPUS),
        stages=names,
        numbers=path("numbers", MODEL),
        even_number=path("even_number", MODEL),
    )


def build(
    recipe: Recipe,
    store: Store,
    *,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = False,
    on_start: Callable[[Status], None] = lambda status: None,
) -> Organism:
    """Makes what is missing of an organism and returns where everything lies.

    Args:
      store: where parts are kept; a killed build goes on, a whole one is only looked at.
      mesh, progress: as for `organism_stages`.
      on_start: called before every part, whether it is done or not.
    """
    stages = organism_stages(recipe, mesh=mesh, progress=progress)
    run_stages(store, stages, on_start=on_start)
    return locate(recipe, store)
