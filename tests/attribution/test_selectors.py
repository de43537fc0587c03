"""Other studies' selectors, and the directions that need no SAE, by their definitions."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.activations import MeanActivation
from sae_attr.attribution import output_scores as output_scores_module
from sae_attr.attribution.directions import DIRECTIONS, plain_directions
from sae_attr.attribution.evidence import Evidence
from sae_attr.attribution.latent_statistics import CodeStatistics, largest_codes
from sae_attr.attribution.output_scores import output_scores
from sae_attr.attribution.selectors import SELECTORS, selector_scores
from sae_attr.attribution.token_table import (
    side_weights,
    table_from_arrays,
    token_weights,
)
from sae_attr.files.row_source import RowSource
from sae_attr.hooks import Add, Site
from sae_attr.lm.model import forward, logits, unembedding
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig
from tests.attribution._tiny import VOCAB, llama, ragged_rows, random_params

pytestmark = pytest.mark.usefixtures("quick")
D, N = 16, 6
RNG = np.random.default_rng(0)
DEC = RNG.standard_normal((N, D)).astype(np.float32)
UNIT = DEC / np.linalg.norm(DEC, axis=1, keepdims=True)
ENC, BIAS = RNG.standard_normal((D, N)).astype(np.float32), np.linspace(-2, 2, N)
SAE_ = SAE(
    jnp.asarray(ENC),
    jnp.asarray(BIAS, jnp.float32),
    jnp.asarray(UNIT),
    jnp.zeros(D),
    cfg=SAEConfig(D, D, N),
)
ROWS = ragged_rows(3)
ACTS = [RNG.standard_normal((len(row.ids), D)).astype(np.float32) for row in ROWS]
GRADS = [RNG.standard_normal((len(row.ids), D)).astype(np.float32) for row in ROWS]
ALIGNED = RNG.standard_normal((sum(map(len, ACTS)), D)).astype(np.float32)
EVIDENCE = Evidence(
    table=table_from_arrays(ROWS, ACTS, GRADS),
    mean=MeanActivation(np.zeros(D), norm=1.0, tokens=9),
    codes=CodeStatistics(np.zeros(N), np.zeros(N), np.zeros(D), tokens=9),
    decoder=RowSource(UNIT),
    sae_cfg=SAE_.cfg,
    load_sae=lambda latents: SAE_,
    aligned_kd=ALIGNED,
    no_second_model="",
)


def codes(acts: np.ndarray) -> np.ndarray:
    return np.maximum(acts @ ENC + BIAS, 0)


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], np.ndarray]:
    computed, skipped = selector_scores(EVIDENCE, ("all",))
    assert skipped == {}
    assert {name for name, _ in computed} == set(SELECTORS)
    return computed


def test_selectors_are_their_definitions(
    scores: dict[tuple[str, str], np.ndarray],
) -> None:
    grad_sae, frequency = np.zeros(N), np.zeros(N)
    projections, active = [], []
    for row, acts, grads, weight in zip(
        ROWS, ACTS, GRADS, side_weights(ROWS), strict=True
    ):
        push = -(grads @ UNIT.T)
        if row.side > 0:
            grad_sae += weight * np.maximum(push * codes(acts), 0).mean(0)
        answer = acts[row.n_prompt :]
        frequency += weight * (codes(answer) > 0).mean(0)
        mean = answer.mean(0)
        projections.append(UNIT @ mean / np.linalg.norm(mean))
        active.append(codes(answer).mean(0))
    np.testing.assert_allclose(scores["grad_sae", "all"], grad_sae, atol=1e-5)
    np.testing.assert_allclose(scores["frequency_difference", ""], frequency, atol=1e-5)
    for name, values in (
        ("monitoring_auc", projections),
        ("monitoring_auc_code", active),
    ):
        positive = [v for v, row in zip(values, ROWS, strict=True) if row.side > 0]
        negative = [v for v, row in zip(values, ROWS, strict=True) if row.side < 0]
        wins = [(p > q) + (p == q) / 2 for p in positive for q in negative]
        np.testing.assert_allclose(scores[name, ""], np.mean(wins, 0), atol=1e-5)
    weights_k = np.abs(token_weights(ROWS, "prompt"))
    change = weights_k / weights_k.sum() @ (np.concatenate(ACTS) - ALIGNED)
    np.testing.assert_allclose(
        scores["code_of_difference", ""], codes(change), atol=1e-4
    )
    gradient = UNIT @ np.asarray(EVIDENCE.moment("all").g_d)
    np.testing.assert_allclose(
        scores["gradient_size", "all"], np.abs(gradient), atol=1e-5
    )


def test_what_is_missing_is_named_and_skipped() -> None:
    alone = replace(EVIDENCE, aligned_kd=None, no_second_model="set lm_aligned")
    _, skipped = selector_scores(alone, ("all",))
    assert skipped == {"code_of_difference": "set lm_aligned"}
    _, skipped = selector_scores(replace(EVIDENCE, dense_limit=1), ("all",))
    assert set(skipped) == {
        "grad_sae",
        "frequency_difference",
        "code_of_difference",
        "monitoring_auc_code",
    }
    assert "dense_limit" in skipped["grad_sae"]


def test_directions_are_unit_vectors_toward_the_behaviour() -> None:
    directions = plain_directions(EVIDENCE)
    assert tuple(directions) == tuple(DIRECTIONS)
    for vector_d in directions.values():
        assert np.linalg.norm(vector_d) == pytest.approx(1, abs=1e-5)
    g_d = np.asarray(EVIDENCE.moment("all").g_d)
    np.testing.assert_allclose(
        directions["gradient"], -g_d / np.linalg.norm(g_d), atol=1e-5
    )
    assert directions["best_of_moment"] @ g_d <= 0
    s_dd = np.asarray(EVIDENCE.moment("all").s_dd)
    delta = lambda d: -d @ s_dd @ d
    assert all(delta(directions["best_of_moment"]) >= delta(d) - 1e-5 for d in UNIT)
    difference = sum(
        weight * acts[row.n_prompt :].mean(0)
        for row, acts, weight in zip(ROWS, ACTS, side_weights(ROWS), strict=True)
    )
    np.testing.assert_allclose(
        directions["mean_difference"],
        difference / np.linalg.norm(difference),
        atol=1e-5,
    )
    alone = replace(EVIDENCE, aligned_kd=None)
    assert set(DIRECTIONS) - set(plain_directions(alone)) == {"model_difference"}


@pytest.mark.slow
def test_output_scores_are_those_of_one_latent_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two of 40 tokens, so that others may be likelier.
    monkeypatch.setattr(output_scores_module, "NEAREST", 2)
    cfg, site = llama(), Site(1)
    params = random_params(cfg)
    prompts = RNG.integers(0, VOCAB, (2, 5)).astype(np.int32)
    largest = np.array([0.5, 1.0, 0.0, 2.0, 0.1, 0.3], np.float32)
    computed = output_scores(params, prompts, UNIT, largest, cfg=cfg, site=site)

    def probs(tokens: np.ndarray, edits: dict) -> np.ndarray:
        hidden = forward(params, tokens[None], cfg=cfg, edits=edits).hidden_btd
        out = np.asarray(logits(params, hidden[0, -1], cfg=cfg), np.float64)
        return np.exp(out - out.max()) / np.exp(out - out.max()).sum()

    unembed = np.asarray(unembedding(params, cfg=cfg))
    unembed = unembed / np.linalg.norm(unembed, axis=1, keepdims=True)
    last = np.arange(5)[None] == 4
    ranks = []
    for latent in (3, 4):
        nearest = np.argsort(-(unembed @ UNIT[latent]))[:2]
        expected = {name: [] for name in computed}
        for tokens in prompts:
            before = probs(tokens, {})
            edit = Add(jnp.asarray(UNIT[latent]), 10 * largest[latent], last)
            after = probs(tokens, {site: edit})
            ranks.append((after > after[nearest].max()).sum())
            share = 1 - ranks[-1] / VOCAB
            expected["output_score"].append(share * after[nearest].max())
            expected["token_confidence"].append(after.max() - before.max())
            expected["output_kl"].append((after * np.log(after / before)).sum())
        for name, values in expected.items():
            measured = computed[name][latent]
            assert measured == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5)
    assert max(ranks) > 0
    # A latent that never fires is not added.
    assert computed["token_confidence"][2] == pytest.approx(0, abs=1e-6)
    assert computed["output_kl"][2] == pytest.approx(0, abs=1e-6)


def test_the_largest_code_is_that_of_a_counted_position() -> None:
    cfg, site = llama(), Site(1)
    params = random_params(cfg)
    tokens = RNG.integers(0, VOCAB, (2, 3, 7)).astype(np.int32)
    counted = RNG.random((2, 3, 7)) < 0.5
    valid = np.ones((3, 7), bool)
    batches = [
        (batch, valid, where) for batch, where in zip(tokens, counted, strict=True)
    ]
    largest = largest_codes(
        params,
        batches,  # pyright: ignore[reportArgumentType]
        SAE_,
        cfg=cfg,
        site=site,
        mesh=make_mesh("data=1"),
    )
    acts = [
        np.asarray(forward(params, b, cfg=cfg, keep=(site,)).acts[site]) for b in tokens
    ]
    expected = codes(np.concatenate(acts)[np.concatenate(counted)]).max(0)
    np.testing.assert_allclose(largest, expected, atol=1e-3)
