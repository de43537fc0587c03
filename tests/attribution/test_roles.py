"""Δ by the roles of tokens, and the scores where only some roles count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from sae_attr.activations import MeanActivation
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.latent_statistics import CodeStatistics
from sae_attr.attribution.presets import Preset, decoder_rows
from sae_attr.attribution.roles import (
    COUNTED_ROLES,
    role_parts,
    role_shares,
    scores_of_roles,
)
from sae_attr.attribution.score_registry import SCORES, Candidates
from sae_attr.attribution.token_table import side_weights, table_from_arrays
from sae_attr.files.row_source import RowSource
from sae_attr.text.rows import LAST, PAD, USER, TokenRow
from tests.attribution._tiny import ragged_rows

D, N = 8, 11
RNG = np.random.default_rng(0)
DEC = RNG.standard_normal((N, D))
UNIT = DEC / np.linalg.norm(DEC, axis=1, keepdims=True)
MEAN = RNG.standard_normal(D)
ROWS = ragged_rows(3)
GRADS = [RNG.standard_normal((len(row.ids), D)) for row in ROWS]
# Δ knows of one activation a token of a prompt: completions share them.
ACTS = [
    np.random.default_rng([row.pair, 1]).standard_normal((99, D))[: len(row.ids)]
    for row in ROWS
]


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def evidence(rows: list[TokenRow] = ROWS) -> Evidence:
    nothing = np.zeros(N)
    return Evidence(
        table=table_from_arrays(rows, ACTS, GRADS),
        mean=MeanActivation(MEAN, norm=1.0, tokens=9),
        codes=CodeStatistics(nothing, nothing, np.zeros(D), tokens=0),
        decoder=RowSource(DEC),
        sae_cfg=None,
        load_sae=lambda latents: None,  # pyright: ignore[reportArgumentType]
        exclude=frozenset({"bos", "special"}),
    )


def by_definition(role: int, gating: str) -> np.ndarray:
    """Δ where tokens of one role alone count, row by row; `both` or `gated`."""
    delta_n, push_n = np.zeros(N), np.zeros(N)
    for k, (row, weight) in enumerate(zip(ROWS, side_weights(ROWS), strict=True)):
        counted = (row.roles == role) & ~row.special
        for t in np.flatnonzero(counted):
            push = -(UNIT @ GRADS[k][t]) * weight / counted.sum()
            delta_n += push * (UNIT @ (ACTS[k][t] - MEAN))
            push_n += push
    return delta_n * (push_n > 0) if gating == "gated" else delta_n


@pytest.mark.parametrize("gating", ["both", "active", "gated"])
def test_the_parts_of_all_roles_add_up_to_the_score(gating: str) -> None:
    known, preset = evidence(), Preset("p", "all", gating)
    latents = np.arange(N)
    scores = {"gradient_all": -UNIT @ np.asarray(known.moment("all").g_d)}
    few = Candidates(latents, decoder_rows(known.decoder, latents), scores)
    parts_rk = role_parts(known, preset, few)
    per_prompt = SCORES[gating].per_prompt
    assert per_prompt is not None
    want_k = per_prompt(known, "all", few).mean(0)
    np.testing.assert_allclose(parts_rk[list(COUNTED_ROLES)].sum(0), want_k, atol=1e-9)
    assert np.abs(parts_rk[[USER, LAST]]).min(0).max() > 0
    assert not parts_rk[PAD].any()


@pytest.mark.parametrize("gating", ["both", "gated"])
@pytest.mark.parametrize("role", [USER, LAST])
def test_scores_of_a_role_are_those_of_its_tokens_alone(role: int, gating: str) -> None:
    known = evidence()
    whole = np.asarray(known.moment("prompt").s_dd)
    got_n = scores_of_roles(known, Preset("p", "prompt", gating), (role,))
    np.testing.assert_allclose(got_n, by_definition(role, gating), rtol=1e-5)
    # The evidence itself still counts every token.
    np.testing.assert_array_equal(known.moment("prompt").s_dd, whole)


def test_token_by_token_scores_of_a_role_are_the_sum_of_their_parts() -> None:
    preset = Preset("p", "all", "active")
    got_n = scores_of_roles(evidence(), preset, (LAST,))
    rows = [replace(row, masked=row.roles != LAST) for row in ROWS]
    known = evidence(rows)
    want_n = np.asarray(SCORES["active"].compute(known, "all"))
    np.testing.assert_allclose(got_n, want_n)


def test_rows_without_a_token_of_the_role_leave_the_scores_out() -> None:
    rows = [
        replace(row, roles=np.where(row.roles == USER, LAST, row.roles))
        if row.pair == 1
        else row
        for row in ROWS
    ]
    count = sum(row.pair == 1 for row in ROWS)
    skipped = scores_of_roles(evidence(rows), Preset("p", "all", "both"), (USER,))
    assert isinstance(skipped, Skipped)
    assert skipped.why == f"{count} of {len(ROWS)} rows have no user token"
    # None of the user's tokens is in the completion.
    whole = scores_of_roles(evidence(), Preset("p", "completion", "both"), (USER,))
    assert isinstance(whole, Skipped)


def test_shares_are_of_the_parts_sizes() -> None:
    shares = role_shares(np.array([[3.0, 0.0], [-1.0, 0.0]]))
    assert shares[:, 0].tolist() == [0.75, -0.25]
    assert np.isnan(shares[:, 1]).all()
