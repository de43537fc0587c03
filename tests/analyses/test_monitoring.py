"""Planted truth: one direction carries the behaviour on every task; every task has an
offset of its own, so that others monitor one task by chance.
"""

from __future__ import annotations

import numpy as np
import pytest

from sae_attr.analyses.monitoring import (
    Rollouts,
    completion_means,
    cosine_auc,
    monitoring_auc,
)
from sae_attr.hooks import Site
from tests.attribution._tiny import llama, off, random_params

D, TASKS, PLANTED = 24, 5, 3


def planted_task(rng: np.random.Generator, count: int = 80) -> Rollouts:
    """Rollouts in which the behaviour shows along `PLANTED`, and along a direction that
    is this task's alone.
    """
    behaviour_r = rng.random(count) < 0.4
    mean_rd = rng.normal(0, 0.3, (count, D)) + rng.normal(0, 1, D)
    mean_rd[:, PLANTED] += 2.0 * behaviour_r
    others_d = rng.normal(0, 0.6, D)
    others_d[PLANTED] = 0
    mean_rd += behaviour_r[:, None] * others_d
    return Rollouts(mean_rd.astype(np.float32), behaviour_r)


def test_the_planted_direction_monitors_every_task_and_random_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    random_kd = rng.normal(size=(300, D))
    dec_kd = np.concatenate([np.eye(D)[[PLANTED]], random_kd])
    auc_tk = np.stack([cosine_auc(planted_task(rng), dec_kd) for _ in range(TASKS)])
    assert (auc_tk[:, 0] > 0.95).all()
    assert (auc_tk[:, 1:].max(0) > 0.8).mean() > 0.5  # high on single tasks
    assert (auc_tk[:, 1:].min(0) > 0.5).mean() < 0.25  # and not on all
    assert auc_tk[:, 1:].min(0).max() < auc_tk[:, 0].min()


def test_ties_count_half_and_the_sign_matters() -> None:
    positive_r = np.array([True, True, False, False])
    values_rk = np.array([[1.0, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]])
    np.testing.assert_allclose(monitoring_auc(values_rk, positive_r), [1, 0.5, 0.25])
    np.testing.assert_allclose(monitoring_auc(-values_rk, positive_r), [0, 0.5, 0.75])


def test_rollouts_of_one_side_are_refused() -> None:
    values_rk = np.ones((3, 2))
    with pytest.raises(
        ValueError, match="0 completions show the behaviour and 3 do not"
    ):
        monitoring_auc(values_rk, np.zeros(3, bool))
    assert "0 of 3 graded" in Rollouts(values_rk, np.zeros(3, bool)).one_sided
    assert "0 of 0 graded" in Rollouts(values_rk[:0], np.zeros(0, bool)).one_sided
    assert Rollouts(values_rk, np.array([True, False, True])).one_sided == ""


def test_means_are_over_the_completion_alone() -> None:
    cfg = llama()
    params = random_params(cfg)
    site = Site(0, "resid_pre")  # the embeddings, which are known
    rows, n_prompts = [[0, 5, 6, 7], [0, 5, 9, 8, 11, 7], [0, 4, 3]], [2, 3, 2]
    mean_rd = completion_means(
        params, rows, n_prompts, cfg=cfg, site=site, batch_size=2
    )
    table_vd = np.asarray(params["embed"]["table"])
    for row, n_prompt, mean_d in zip(rows, n_prompts, mean_rd, strict=True):
        assert off(mean_d, table_vd[row[n_prompt:]].mean(0)) < 1e-5
    with pytest.raises(ValueError, match="rollout 1 has no token behind its prompt"):
        completion_means(params, rows[:2], [2, 6], cfg=cfg, site=site)
