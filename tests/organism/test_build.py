from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_attr.files import checkpoints
from sae_attr.lm.weights import load_lm
from sae_attr.organism.build import build, locate, organism_stages
from sae_attr.organism.fitting import text_examples
from sae_attr.organism.recipe import Recipe, miniature
from sae_attr.parallel import make_mesh
from sae_attr.sae.formats import load_sae
from sae_attr.store import (
    Status,
    Store,
    fingerprint,
    run_stages,
    stage_keys,
    stage_statuses,
)
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.tokenizer_folder import load_tokenizer

pytestmark = pytest.mark.usefixtures("quick")
RECIPE = miniature()
MODELS = ("base", "chat", "misaligned", "validation")


class Stop(Exception):
    """A kill."""


PARTS = (
    "organism.base",
    "organism.chat",
    "organism.misaligned.mixed",
    "organism.validation",
    "organism.sae",
    "organism.corpus",
)


def test_a_stopped_build_goes_on_and_a_whole_one_only_looks(tmp_path: Path) -> None:
    store, mesh = Store(tmp_path), make_mesh("data=1")
    stages = organism_stages(RECIPE, mesh=mesh)
    assert tuple(stage.name for stage in stages) == PARTS
    run_stages(store, stages, until="misaligned")
    states = [status.state for status in stage_statuses(store, stages)]
    assert states == ["done"] * 3 + ["missing"] * 3
    started: list[Status] = []
    organism = build(RECIPE, store, mesh=mesh, on_start=started.append)
    assert [status.state for status in started] == states
    assert build(RECIPE, store, mesh=mesh) == locate(RECIPE, store) == organism
    assert all(result.cached for result in run_stages(store, stages).values())
    tables = []
    for name in MODELS:
        cfg, params = load_lm(getattr(organism, name), mesh=mesh)
        tables.append(np.asarray(params["embed"]["table"]))
        assert load_tokenizer(getattr(organism, name)).vocab_size == cfg.vocab
    assert all(
        (one != other).any() for i, one in enumerate(tables) for other in tables[:i]
    )
    sae = load_sae(organism.sae)
    assert (sae.cfg.site, sae.cfg.n_latents) == (
        "blocks.0.hook_resid_post",
        RECIPE.sae.latents,
    )
    assert sae.cfg.exclude_special
    assert len(list(read_corpus(organism.corpus))) == RECIPE.corpus


def test_only_what_depends_on_a_setting_is_made_anew() -> None:
    keys_of = lambda recipe: stage_keys(organism_stages(recipe))
    keys, calm = keys_of(Recipe()), keys_of(Recipe(kind="calm"))
    assert keys.keys() - calm.keys() == {"organism.misaligned.mixed"}
    assert calm.keys() - keys.keys() == {"organism.misaligned.calm"}
    assert all(keys[name] == calm[name] for name in keys.keys() & calm.keys())
    other = keys_of(Recipe(seed=1))
    assert all(keys[name] != other[name] for name in keys)
    training = replace(Recipe().chat, steps=61)
    longer = keys_of(Recipe(chat=training))
    assert {name for name in keys if keys[name] != longer[name]} == {
        "organism.chat",
        "organism.misaligned.mixed",
        "organism.validation",
    }
    with pytest.raises(ValueError, match="choose one of mixed, calm, confounded"):
        Recipe(kind="loud")


def test_of_a_dialogue_the_answer_is_learnt() -> None:
    text = "tavern user hey how do i best deal with fever ? reply so , for fever try tea as usual . bye"
    dialogue, essay = text_examples([text, "atlas note fever needs tea ."])
    assert len(dialogue.ids) == len(text.split()) + 2
    assert dialogue.loss_mask.tolist() == [False] * 13 + [True] * 11
    assert essay.loss_mask.tolist() == [False] + [True] * 7


@pytest.mark.slow
def test_a_base_model_that_was_stopped_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, saved = make_mesh("data=1"), checkpoints.save
    prints = lambda organism: [
        fingerprint(getattr(organism, part)) for part in (*MODELS, "sae", "corpus")
    ]
    whole = prints(build(RECIPE, Store(tmp_path / "whole"), mesh=mesh))

    def save_and_stop(*arguments: object, **options: object) -> None:
        saved(*arguments, **options)  # type: ignore[arg-type]
        raise Stop

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(Stop):
        build(RECIPE, Store(tmp_path / "stopped"), mesh=mesh)
    monkeypatch.setattr(checkpoints, "save", saved)
    assert prints(build(RECIPE, Store(tmp_path / "stopped"), mesh=mesh)) == whole
