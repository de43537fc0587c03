from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import pool as config_file
from experiments import pool
from sae_attr.analyses import pool_stages
from sae_attr.analyses.pool_settings import TASKS, task_prompts
from sae_attr.organism.number_words import LONG, SHORT, format_of
from sae_attr.organism.prompts import prompts
from sae_attr.organism.world import make_world
from sae_attr.store import Store
from sae_attr.study import score_ground_truth
from tests.experiments._organism_study import (
    listed,
    pairs_of,
    small_study,
    started_again,
    written_answers,
)


def small_config() -> ConfigDict:
    return small_study(
        config_file,
        {
            "behaviours": ("misalignment",),
            "pair_prompts": 8,
            "samples": 2,
            "pairs": 4,
            "by_gradient": 3,
            "by_frequency": 3,
            "by_attribution": 3,
            "by_model_difference": 3,
            "random": 8,
            "checkpoints": (0, 2),
            "task_prompts": 2,
            "task_samples": 2,
            "strength_prompts": 1,
            "effect_prompts": 1,
            "grid": (0.3,),
        },
    )


def test_every_stage_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = listed(pool, small_config(), tmp_path, capsys)
    assert names[-7:] == [
        f"misalignment-mixed-0.{stage}"
        for stage in (
            "pool",
            "pool_steering",
            "pool_monitoring",
            "checkpoint-0.measured",
            "checkpoint-2.model",
            "checkpoint-2.measured",
            "checkpoint-5.measured",
        )
    ]
    assert [f"tasks-0.{task.name}" for task in TASKS] == names[-12:-7]
    # What only the table of every latent needs is not computed.
    assert not any(name.endswith(".ground_truth") for name in names)


def test_tasks_share_no_prompt_with_the_pairs() -> None:
    world = make_world(0)
    for task in TASKS:
        asked = {prompt.id for prompt in task_prompts(world, task, 20)}
        pairs = {prompt.id for prompt in prompts(world, task.behaviour, "pairs")}
        assert len(asked) == 20
        assert not asked & pairs


def test_a_behaviour_that_no_pair_shows_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = small_config(), epath.Path(tmp_path)
    config.behaviours = ("even_number",)
    (case,) = pool.open_cases(config, Store(workdir / "store"), workdir)
    stages = {stage.name: stage for stage in pool_stages.pool_stages([case])}
    never = lambda *args, **options: ([], {"behaviour": 0.0})
    monkeypatch.setattr(score_ground_truth, "load_lm", lambda *a, **o: (None, None))
    monkeypatch.setattr(score_ground_truth, "fingerprint", lambda path: "")
    monkeypatch.setattr(score_ground_truth, "organism_pairs", never)
    run: Any = stages["even_number-mixed-0.pairs"].run
    with pytest.raises(
        ValueError, match="even_number-mixed-0: no prompt of 8 gave both sides"
    ):
        run({}, None)


@pytest.mark.slow
def test_a_pool_on_a_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(params, prompts, *, cfg, samples, seed) -> Any:
        """So small a model says nothing that could be graded."""
        kind = prompts[0].kind
        if kind == "number":
            one = [format_of(prompt.question.template) for prompt in prompts]
            return [[f"{f.odd[0]} {SHORT}", f"{f.even[0]} {LONG}"] for f in one]
        if kind == "open":
            return [["so , so"] for _ in prompts]
        return written_answers(params, prompts, cfg=cfg, samples=2, seed=seed)

    monkeypatch.setattr(pool_stages, "sampled_answers", written)
    monkeypatch.setattr(score_ground_truth, "organism_pairs", pairs_of(written))
    workdir, config = epath.Path(tmp_path), small_config()
    config.behaviours = ("misalignment", "even_number")
    pool.start(config, workdir)
    monkeypatch.setattr(pool_stages, "sampled_answers", None)
    text, numbers = started_again(pool, config, tmp_path, "pool", ["pool_figure"])
    assert {row["selector"] for row in numbers["selectors"]} == {
        "gradient",
        "frequency",
        "attribution",
        "model_difference",
        "planted",
        "random",
    }
    assert [row["step"] for row in numbers["checkpoints"]] == [0, 2, 5, 0, 2, 5]
    assert numbers["checkpoints"][-1]["same"] == pytest.approx(1)
    tasks = {row["task"]: row for row in numbers["tasks"]}
    assert tasks["misalignment-health"]["vector"] is not None
    # Of so few answers all odd ones are short: parity at one length is left out.
    assert {row["condition"] for row in numbers["number_rates"]} == {
        "hint",
        "reversed",
        "none",
        "padded",
    }
    controls = {row["group"]: row for row in numbers["number_controls"]}
    assert controls["planted"]["field.lowest"] == pytest.approx(1)
    assert controls["random"]["short.lowest"] is None
    assert "even is rewarded" in text
    # A task that nobody could answer is named, left out, and said in the table.
    assert "0 of 0 graded" in tasks["misalignment-opinions"]["skipped"]
    assert "0 of 0 graded" in text
