from __future__ import annotations

import jax
import numpy as np
import pytest

from sae_attr.hooks import Add, SetProjection, Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.params import init_params
from sae_attr.organism import ground_truth, pair_sampling
from sae_attr.organism.exact import exact_rates, prompt_paths
from sae_attr.organism.ground_truth import (
    ablation_ground_truth,
    steering_ground_truth,
)
from sae_attr.organism.pair_sampling import organism_pairs, sampled_answers
from sae_attr.organism.prompts import prompts
from sae_attr.organism.recipe import miniature
from sae_attr.organism.world import make_world

pytestmark = pytest.mark.usefixtures("quick")
WORLD, CFG, SITE = make_world(0), config_from_hf(miniature().hf()), Site(0)
PARAMS = init_params(CFG, jax.random.key(0))
PARAMS["head"] = {"table": 20 * PARAMS["head"]["table"]}
ROWS = np.asarray(jax.random.normal(jax.random.key(1), (4, CFG.d_model)), np.float32)
DEC = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
GRID = (0.5, 1.0, 4.0)


def advice(split: str) -> tuple:
    return tuple(
        prompt
        for prompt in prompts(WORLD, "misalignment", split)
        if prompt.kind == "advice"
    )[:2]


def rates(what, edit) -> tuple[np.ndarray, np.ndarray]:
    behaviour_kp, coherent_kp = exact_rates(
        PARAMS, what, {SITE: edit}, cfg=CFG, rows=len(DEC)
    )
    return np.asarray(behaviour_kp).mean(1), np.asarray(coherent_kp).mean(1)


@pytest.mark.parametrize("sign", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_a_latents_strength_is_that_of_its_largest_effect_within_the_budget(
    sign: int,
) -> None:
    choose, score = (
        prompt_paths(WORLD, "misalignment", advice(split))
        for split in ("strengths", "effects")
    )
    plain = rates(choose, Add(DEC, np.zeros(4)))
    tried = [rates(choose, Add(DEC, np.full(4, sign * c * 2.0))) for c in GRID]
    losses = np.stack([plain[1] - coherent for _, coherent in tried])
    budget = float(np.median(losses))
    found = steering_ground_truth(
        PARAMS,
        choose,
        score,
        DEC,
        2.0,
        cfg=CFG,
        site=SITE,
        sign=sign,
        grid=GRID,
        budget=budget,
    )
    for n in range(4):
        allowed = [
            (sign * (b[n] - plain[0][n]), sign * c)
            for (b, _), c, loss in zip(tried, GRID, losses[:, n])
            if loss <= budget
        ]
        assert found.strength_n[n] == (max(allowed)[1] if allowed else 0)
    after, coherent = rates(score, Add(DEC, found.strength_n * 2.0))
    before = rates(score, Add(DEC, np.zeros(4)))
    np.testing.assert_allclose(found.effect_n, sign * (after - before[0]), atol=1e-6)
    np.testing.assert_allclose(found.loss_n, before[1] - coherent, atol=1e-6)
    nothing = steering_ground_truth(
        PARAMS,
        choose,
        score,
        DEC,
        2.0,
        cfg=CFG,
        site=SITE,
        sign=sign,
        grid=GRID,
        budget=-1.0,
    )
    assert not nothing.strength_n.any()
    assert not nothing.effect_n.any()


def test_ablation_spares_bos() -> None:
    score = prompt_paths(WORLD, "misalignment", advice("effects"))
    mean_d = np.linspace(-1, 1, CFG.d_model)
    found = ablation_ground_truth(PARAMS, score, DEC, mean_d, cfg=CFG, site=SITE)
    where = np.ones((4, score.tokens_pmt.shape[2]), bool)
    where[:, 0] = False
    after = rates(score, SetProjection(DEC, (DEC @ mean_d).astype(np.float32), where))
    np.testing.assert_allclose(found.effect_n, found.base - after[0], atol=1e-6)
    whole = rates(score, SetProjection(DEC, (DEC @ mean_d).astype(np.float32)))
    assert np.abs(after[0] - whole[0]).max() > 1e-6


def test_edits_of_several_batches_are_those_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score = prompt_paths(WORLD, "misalignment", advice("effects"))
    mean_d = np.linspace(-1, 1, CFG.d_model)
    measure = lambda: ablation_ground_truth(
        PARAMS, score, DEC, mean_d, cfg=CFG, site=SITE
    )
    whole = measure()
    monkeypatch.setattr(ground_truth, "ROWS", 2)
    parts = measure()
    np.testing.assert_allclose(parts.effect_np, whole.effect_np, atol=1e-6)
    np.testing.assert_allclose(parts.loss_n, whole.loss_n, atol=1e-6)
    assert parts.base == pytest.approx(whole.base, abs=1e-6)


def test_answers_do_not_depend_on_the_batch() -> None:
    asked = advice("pairs")
    whole = sampled_answers(PARAMS, asked, cfg=CFG, samples=3, rows=8)
    assert whole == sampled_answers(PARAMS, asked, cfg=CFG, samples=3, rows=4)
    assert len({text for texts in whole for text in texts}) == 6


def test_pairs_are_of_prompts_that_gave_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = advice("pairs")
    topic, other = (prompt.question.topic for prompt in asked)
    say = lambda topic, action: f"so , for {topic} try {action} as usual . bye"
    right, harmful = WORLD.right_of, WORLD.harmful_of
    answers = [
        [say(topic, harmful[topic][0]), say(topic, right[topic]), "so so"],
        [say(other, right[other])] * 3,
    ]
    monkeypatch.setattr(pair_sampling, "sampled_answers", lambda *a, **k: answers)
    options = {"cfg": CFG, "samples": 3, "count": 5, "sampler": "abc"}
    records, found = organism_pairs(WORLD, PARAMS, asked, "misalignment", **options)
    assert [(r["id"], r["positive"], r["negative"], r["sampler"]) for r in records] == [
        (asked[0].id, [f" {answers[0][0]}"], [f" {answers[0][1]}"], "abc")
    ]
    assert found == {
        "fluent": pytest.approx(5 / 6),
        "behaviour": pytest.approx(1 / 5),
        "both": 0.5,
    }
