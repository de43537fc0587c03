"""Versions of the attribution's stages: each is in the keys of all that read it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from sae_attr.attribution.score_registry import SCORES
from sae_attr.parallel import make_mesh
from sae_attr.sae.config import SAEConfig
from sae_attr.store import Store, stage_keys
from sae_attr.study import stage_order
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.attribution_stages import (
    CORPUS_STAGES,
    PAIR_STAGES,
    attribution_stages,
)
from sae_attr.study.setup import Setup

FILES = ("organism.model", "organism.sae")  # stages of others that make the inputs
STAGES = (*CORPUS_STAGES, *PAIR_STAGES)


def keys(tmp_path: Path, **settings: Any) -> dict[str, str]:
    """Keys of a graph whose files are still to be made: nothing is read for them."""
    setup = Setup(
        Settings(lm="lm", sae="sae", pairs="pairs", corpus="corpus", **settings),
        Store(epath.Path(tmp_path / "store")),
        make_mesh("data=1"),
        stated_sae=SAEConfig(16, 16, 9),
    )
    stages = attribution_stages(
        setup, prefix="a.", pairs_stage="a.pair", file_stages=FILES
    )
    others = [
        dataclasses.replace(stages[0], name=name, needs=(), fields={}, version=1)
        for name in (*FILES, "a.pair")
    ]
    return stage_keys([*others, *stages])


def test_a_raised_version_changes_the_keys_of_the_stage_and_of_all_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path)
    for module in STAGES:
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
        changed = {k for k, key in keys(tmp_path).items() if key != before[k]}
        monkeypatch.undo()
        assert {f"a.{module.NAME}", "a.attribute"} <= changed, module.NAME
    monkeypatch.setattr(STAGES[1], "VERSION", 99)  # norm_limits
    changed = {k for k, key in keys(tmp_path).items() if key != before[k]}
    assert {"a.mean_activation", "a.firing", "a.outliers", "a.scores"} <= changed
    assert "a.gradients" not in changed  # masks only choose among them


def test_a_scores_version_changes_what_reads_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path)
    raised = dataclasses.replace(SCORES["both"], version=SCORES["both"].version + 1)
    monkeypatch.setitem(SCORES, "both", raised)
    changed = {k for k, key in keys(tmp_path).items() if key != before[k]}
    assert changed == {
        f"a.{name}"
        for name in ("scores", "rankings", "candidate_codes", "ablation", "attribute")
    }


def test_every_stage_file_has_a_name_a_version_and_a_place_in_the_graph() -> None:
    folder = Path(STAGES[0].__file__ or "").parent
    shared = {"__init__", "context", "evidence"}
    files = {path.stem for path in folder.glob("*.py")} - shared
    attribution = {module.NAME for module in STAGES}
    case_study = {kind.name for kind in (*stage_order.PAIRING, *stage_order.STEERING)}
    assert files == attribution | case_study | {"convergence"}
    assert all(module.VERSION >= 1 for module in STAGES)


def test_settings_of_a_stage_change_its_key_and_no_other_before_it(
    tmp_path: Path,
) -> None:
    before = keys(tmp_path)
    for change, first in (
        ({"bootstrap": 7}, "attribute"),
        ({"ablate": 3}, "ablation"),
        ({"top": 5}, "rankings"),
        ({"firing_tokens": 7}, "firing"),
        ({"loss": "mean"}, "gradients"),
        ({"sae_check_tokens": 7}, "sae_check"),
    ):
        now = keys(tmp_path, **change)
        changed = [name for name in before if now[name] != before[name]]
        assert changed[0] == f"a.{first}"
    assert keys(tmp_path, batch_size=3, remat=True) == before
