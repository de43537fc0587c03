"""Scores from arrays alone: the moment, token by token, the repairs, tokens merged
within a prompt, and their errors.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    Moment,
    attribute,
    best_direction,
    moment,
    prompt_scores,
    quadratic_form,
    score_dictionary,
    score_moment,
    table_from_arrays,
    table_moment,
    token_scores,
    token_weights,
)
from sae_attr.attribution.prompt_merge import merge
from sae_attr.attribution.scores import GATINGS
from sae_attr.attribution.token_table import table_from_batches
from sae_attr.files.row_source import RowSource
from sae_attr.parallel import make_mesh
from sae_attr.text.rows import BOS, COMPLETION, LAST, ROLES, SCOPES, TokenRow
from tests.attribution._tiny import off, ragged_rows, row

pytestmark = pytest.mark.usefixtures("quick")

B, T, D, N = 5, 11, 8, 23
RNG = np.random.default_rng(0)
ACTS, GRADS = RNG.standard_normal((B, T, D)) + 0.5, RNG.standard_normal((B, T, D)) + 0.2
WEIGHTS = RNG.standard_normal((B, T)) * (RNG.random((B, T)) > 0.3)
DEC = RNG.standard_normal((N, D)) * np.exp(2 * RNG.standard_normal((N, 1)))
UNIT = DEC / np.linalg.norm(DEC, axis=1, keepdims=True)
MEAN = RNG.standard_normal(D)


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def the_moment() -> Moment:
    return moment(jnp.asarray(ACTS), jnp.asarray(GRADS), jnp.asarray(WEIGHTS))


def naive(gating: str) -> np.ndarray:
    """Σ_t w_t δ_{i,t} of every completion `[b, n]`, one product of two numbers at a
    time.
    """
    out = np.zeros((B, N))
    for i, d in enumerate(UNIT):
        kept = gating != "gated" or -np.einsum("bt,btd,d", WEIGHTS, GRADS, d) > 0
        for b in range(B):
            for t in range(T):
                push, presence = -(GRADS[b, t] @ d), (ACTS[b, t] - MEAN) @ d
                presence = (
                    max(presence, 0) if gating in ("active", "quadrant") else presence
                )
                push = max(push, 0) if gating == "quadrant" else push
                out[b, i] += kept * WEIGHTS[b, t] * push * presence
    return out


def naive_vmap() -> jax.Array:
    delta = lambda d: -(GRADS @ d) * ((ACTS - MEAN) @ d)
    return jnp.einsum("bt,nbt->bn", WEIGHTS, jax.vmap(delta)(jnp.asarray(UNIT)))


def attributed(gating: str = "both", dec: Any = DEC, chunk: int = 1024) -> jax.Array:
    arrays = map(jnp.asarray, (ACTS, GRADS, WEIGHTS, dec, MEAN))
    return attribute(*arrays, gating=gating, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 7, N, 1024])
@pytest.mark.parametrize("gating", GATINGS)
def test_every_side_by_definition_in_chunks_that_do_not_divide(
    gating: str, chunk: int
) -> None:
    want = naive(gating)
    np.testing.assert_allclose(
        attributed(gating, chunk=chunk), want, rtol=1e-10, atol=1e-12
    )
    if gating == "gated":
        assert 0 < (want == 0).all(0).sum() < N
    elif gating != "both":
        assert off(want, naive("both")) > 0.1


@pytest.mark.parametrize("chunk", [1, 7, N, 8192])
def test_moment_is_the_sum_over_tokens(chunk: int) -> None:
    want = naive("both").sum(0)
    np.testing.assert_allclose(naive_vmap().sum(0), want, rtol=1e-10, atol=1e-12)
    score = lambda dec: score_moment(the_moment(), jnp.asarray(MEAN), dec, chunk=chunk)
    np.testing.assert_allclose(score(jnp.asarray(DEC)), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        jax.jit(score)(jnp.asarray(DEC)), want, rtol=1e-10, atol=1e-12
    )
    for source in (
        RowSource(DEC),
        RowSource(np.asfortranarray(DEC)),
        RowSource(UNIT, np.arange(1, N + 1.0)),
    ):
        assert off(score(source), want) < 1e-6


@pytest.mark.parametrize("mesh", ["", "data=1", "data=2,model=2"])
@pytest.mark.parametrize("chunk", [8, 10, 65536])
def test_dictionary_pass(chunk: int, mesh: str) -> None:
    """Several forms and vectors in one pass over rows in float32, sharded or not."""
    forms = {
        "both": quadratic_form(the_moment(), jnp.asarray(MEAN)),
        "other": jnp.diag(jnp.arange(D) - 3.0),
    }
    vectors = {"gradient": -the_moment().g_d, "first": jnp.eye(D)[0]}
    got = score_dictionary(
        RowSource(DEC), forms, vectors, mesh=make_mesh(mesh), chunk=chunk
    )
    assert list(got) == ["both", "other", "gradient", "first"]
    assert {v.dtype for v in got.values()} == {np.dtype(np.float32)}
    assert off(got["both"], naive("both").sum(0)) < 1e-5
    assert off(got["other"], -(UNIT**2) @ (np.arange(D) - 3)) < 1e-5
    assert off(got["gradient"], -np.einsum("bt,btd,nd->n", WEIGHTS, GRADS, UNIT)) < 1e-5
    assert off(got["first"], UNIT[:, 0]) < 1e-5
    only = score_dictionary(RowSource(DEC), {}, vectors)
    assert list(only) == ["gradient", "first"]
    assert off(only["first"], got["first"]) < 1e-6


def test_rows_of_zeros_score_zero() -> None:
    dec = np.array(DEC)
    dec[[0, 9, N - 1]] = 0
    keep = dec.any(1)
    for gating in GATINGS:
        got = np.asarray(attributed(gating, dec, chunk=4))
        assert not got[:, ~keep].any()
        np.testing.assert_allclose(
            got[:, keep], naive(gating)[:, keep], rtol=1e-10, atol=1e-12
        )
    got = np.asarray(
        score_moment(the_moment(), jnp.asarray(MEAN), jnp.asarray(dec), chunk=4)
    )
    assert not got[~keep].any()
    np.testing.assert_allclose(got[keep], naive("both").sum(0)[keep], rtol=1e-9)
    vector = score_dictionary(RowSource(dec), {}, {"v": jnp.ones(D)}, chunk=4)["v"]
    assert not vector[~keep].any()
    assert vector[keep].all()


def test_the_norm_of_a_row_does_not_matter_nor_its_sign_for_both_and_gated_differs() -> (
    None
):
    factor = np.exp(3 * np.random.default_rng(1).standard_normal((N, 1)))
    for gating in GATINGS:
        np.testing.assert_allclose(
            attributed(gating, DEC * factor), attributed(gating), rtol=1e-9, atol=1e-12
        )
    np.testing.assert_allclose(
        attributed("both", -DEC), attributed("both"), rtol=1e-9, atol=1e-12
    )
    two = attributed("gated", -DEC) + attributed("gated")
    # one of an antipodal pair passes the gate
    np.testing.assert_allclose(two, attributed("both"), rtol=1e-9, atol=1e-12)
    halves = attributed("active", -DEC) + attributed("active")
    np.testing.assert_allclose(halves, attributed("both"), rtol=1e-9, atol=1e-12)


def test_moments_add_up_and_the_mean_may_be_chosen_afterwards() -> None:
    parts = [
        moment(*(jnp.asarray(x[b]) for x in (ACTS, GRADS, WEIGHTS))) for b in range(B)
    ]
    total = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    whole = the_moment()
    np.testing.assert_allclose(total.s_dd, whole.s_dd, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(total.g_d, whole.g_d, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        whole.g_d, np.einsum("bt,btd->d", WEIGHTS, GRADS), rtol=1e-10
    )
    other = np.random.default_rng(7).standard_normal(D)
    shifted = moment(
        jnp.asarray(ACTS - other), jnp.asarray(GRADS), jnp.asarray(WEIGHTS)
    )
    late = score_moment(whole, jnp.asarray(other), jnp.asarray(DEC))
    early = score_moment(shifted, jnp.zeros(D), jnp.asarray(DEC))
    np.testing.assert_allclose(late, early, rtol=1e-9, atol=1e-10)
    assert off(late, score_moment(whole, jnp.asarray(MEAN), jnp.asarray(DEC))) > 0.1


def test_best_direction_bounds_every_unit_direction_and_is_attained() -> None:
    bound, direction = best_direction(the_moment(), jnp.asarray(MEAN))
    score = lambda dec: np.asarray(
        score_moment(the_moment(), jnp.asarray(MEAN), jnp.asarray(dec))
    )
    np.testing.assert_allclose(score(direction[None])[0], bound, rtol=1e-10)
    assert np.linalg.norm(direction) == pytest.approx(1)
    form = np.asarray(quadratic_form(the_moment(), jnp.asarray(MEAN)))
    np.testing.assert_array_equal(form, form.T)
    rng = np.random.default_rng(2)
    assert score(rng.standard_normal((2000, D))).max() <= bound
    near = score(np.asarray(direction) + 1e-3 * rng.standard_normal((2000, D)))
    assert bound - 1e-3 < near.max() <= bound
    assert bound > 0


def test_block_sizes_of_a_table_do_not_matter() -> None:
    rows = ragged_rows()
    rng = np.random.default_rng(3)
    acts, grads = (
        [rng.standard_normal((len(r.ids), D)) for r in rows] for _ in range(2)
    )
    table = table_from_arrays(rows, acts, grads)
    weights = token_weights(rows, "completion")
    want = np.einsum(
        "k,kd,ke->de", weights, np.concatenate(grads), np.concatenate(acts)
    )
    for block in (17, 128, 16384):
        np.testing.assert_allclose(
            table_moment(table, weights, block=block).s_dd, want, rtol=1e-10, atol=1e-12
        )
    assert np.isnan(table.nll_r).all()


# ---- tokens merged within a prompt ---------------------------------------------------


def shared_prompt_rows() -> tuple[list[TokenRow], list[np.ndarray], list[np.ndarray]]:
    """Prompts whose completions share activations on the prompt; the last prompt's rows
    differ at the prompt's end.
    """
    rng = np.random.default_rng(4)
    rows = ragged_rows(8)
    prompt = np.array([0, 7, 8, 1, 9, 10])
    straddled = np.array([0, 7, 8, 1, 9, 11, 12])
    rows += [
        row(rng, prompt, 5, (4, 1, 0)),
        row(rng, straddled, 3, (4, -1, 0)),
        row(rng, straddled, 6, (4, -1, 1)),
    ]
    acts, grads = [], []
    for r in rows:
        of_prompt = np.random.default_rng([5, r.pair]).standard_normal((r.n_prompt, D))
        if r.pair == 4:
            of_prompt = np.random.default_rng(5).standard_normal((7, D))[: r.n_prompt]
            of_prompt[5:] += rng.standard_normal((r.n_prompt - 5, D))
        acts.append(
            np.concatenate(
                [of_prompt, rng.standard_normal((len(r.ids) - r.n_prompt, D))]
            )
        )
        grads.append(rng.standard_normal((len(r.ids), D)))
    return rows, acts, grads


def within_prompts(
    scope: str, exclude: str, gating: str
) -> tuple[np.ndarray, np.ndarray]:
    """Per prompt and latent, and per prompt, role and latent; a shared token's
    gradients are added up before the product.
    """
    rows, acts, grads = shared_prompt_rows()
    total = np.zeros((5, len(ROLES), N))
    for pair in range(5):
        members = [k for k, r in enumerate(rows) if r.pair == pair]
        shared = 5 if pair == 4 else rows[members[0]].n_prompt
        merged: dict[
            tuple[int, int], list[Any]
        ] = {}  # (row or -1, position) -> activation, summed gradient, role
        for k in members:
            r = rows[k]
            side = sum(rows[j].side == r.side for j in members)
            keep = [
                t
                for t in range(len(r.ids))
                if (scope == "all" or (t >= r.n_prompt) == (scope == "completion"))
                and not (exclude == "special" and r.special[t])
                and not (exclude == "bos" and r.roles[t] == BOS)
            ]
            for t in keep:
                key = (-1, t) if t < shared else (k, t)
                entry = merged.setdefault(key, [acts[k][t], np.zeros(D), r.roles[t]])
                entry[1] = entry[1] + r.side * grads[k][t] / (side * len(keep))
        for a, g, role in merged.values():
            push, presence = -(UNIT @ g), UNIT @ (a - MEAN)
            presence = (
                np.maximum(presence, 0)
                if gating in ("active", "quadrant")
                else presence
            )
            total[pair, role] += (
                np.maximum(push, 0) if gating == "quadrant" else push
            ) * presence
    return total.sum(1), total


@pytest.mark.parametrize("gating", ["both", "active", "quadrant"])
@pytest.mark.parametrize("scope", SCOPES)
def test_prompt_scores_by_definition(scope: str, gating: str) -> None:
    rows, acts, grads = shared_prompt_rows()
    table = table_from_arrays(rows, acts, grads)
    for exclude in ("nothing", "special"):
        merged = merge(table, scope, frozenset({exclude} - {"nothing"}))
        want, by_role = within_prompts(scope, exclude, gating)
        score = lambda merged=merged, **more: prompt_scores(
            merged, jnp.asarray(UNIT), jnp.asarray(MEAN), gating=gating, **more
        )
        np.testing.assert_allclose(score(), want, rtol=1e-9, atol=1e-11)
        split = score(by_role=True)
        np.testing.assert_allclose(split, by_role, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(split.sum(1), score(), rtol=1e-9, atol=1e-11)
    if scope == "all":
        assert np.abs(by_role[:, [LAST, COMPLETION]]).max(-1).min() > 0


def test_quadrant_sees_the_difference_of_gradients_on_shared_tokens() -> None:
    """Two completions that push equally on the prompt cancel; token by token before
    differencing they would not.
    """
    rng = np.random.default_rng(6)
    prompt = np.array([0, 7, 8, 9])
    rows = [row(rng, prompt, 3, (0, side, 0)) for side in (1, -1)]
    shared, g = rng.standard_normal((4, D)), rng.standard_normal((7, D))
    acts = [np.concatenate([shared, rng.standard_normal((3, D))]) for _ in rows]
    table = table_from_arrays(rows, acts, [g, g])
    score = lambda dec: prompt_scores(
        merge(table, "prompt"), jnp.asarray(dec), jnp.asarray(MEAN), gating="quadrant"
    )
    np.testing.assert_allclose(score(UNIT), 0, atol=1e-15)
    positive = token_scores(
        jnp.asarray(shared),
        jnp.asarray(g[:4]),
        jnp.asarray(UNIT),
        jnp.asarray(MEAN),
        "quadrant",
    )
    assert np.asarray(positive).sum(0).max() > 0.1


def test_merged_both_is_the_tokenwise_delta() -> None:
    rows, acts, grads = shared_prompt_rows()
    table = table_from_arrays(rows, acts, grads)
    merged = merge(table, "all")
    assert len(merged.acts_jd) < len(table.acts_kd)
    want = score_moment(
        table_moment(table, token_weights(rows, "all")),
        jnp.asarray(MEAN),
        jnp.asarray(DEC),
    )
    got = prompt_scores(merged, jnp.asarray(UNIT), jnp.asarray(MEAN)).mean(0)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


# ---- errors --------------------------------------------------------------------------


def test_widths_that_differ() -> None:
    wide = np.ones((3, D + 1))
    match = r"decoder rows have 9 numbers but the site's activations have 8"
    with pytest.raises(ValueError, match=match):
        attributed(dec=wide)
    with pytest.raises(ValueError, match=match):
        score_moment(the_moment(), jnp.asarray(MEAN), jnp.asarray(wide))
    with pytest.raises(ValueError, match=match):
        score_moment(the_moment(), jnp.asarray(MEAN), RowSource(wide))
    with pytest.raises(ValueError, match=match):
        score_dictionary(RowSource(wide), {}, {"v": jnp.ones(D)})


def test_unknown_sides_and_scope() -> None:
    with pytest.raises(
        ValueError,
        match=r"gating 'left' is unknown; choose one of both, active, gated, quadrant",
    ):
        attributed("left")
    rows = ragged_rows()
    with pytest.raises(
        ValueError,
        match=r"scope 'answer' is unknown; choose one of prompt, completion, all",
    ):
        token_weights(rows, "answer")
    with pytest.raises(
        ValueError, match=r"exclude 'eos' is unknown; choose of bos, special"
    ):
        token_weights(rows, "all", frozenset({"eos"}))


def test_a_row_without_counted_tokens_is_named() -> None:
    only_bos = row(np.random.default_rng(0), np.array([0]), 4, (7, 1, 0))
    with pytest.raises(
        ValueError,
        match=r"row 13 has no token left in scope 'prompt' after leaving out bos",
    ):
        token_weights([*ragged_rows(), only_bos], "prompt", frozenset({"bos"}))
    assert len(token_weights([only_bos], "prompt")) == 5
    only_eos = row(np.random.default_rng(0), np.array([0, 7]), 1, (3, -1, 0), eos=True)
    with pytest.raises(
        ValueError, match=r"negative 0 of pair 3 .* has 1 tokens; .*tokens=all"
    ):
        token_weights([only_eos], "completion", frozenset({"special"}))


def test_numbers_that_are_none() -> None:
    rows = ragged_rows()
    good = [np.zeros((len(r.ids), D)) for r in rows]
    for value, name, row_index, token in (
        (np.nan, "activations", 4, 0),
        (np.inf, "gradients", 12, -1),
    ):
        bad = [g.copy() for g in good]
        bad[row_index][token, 3] = value
        arrays = (bad, good) if name == "activations" else (good, bad)
        with pytest.raises(
            ValueError, match=rf"{name} of row {row_index} hold NaN or infinity"
        ):
            table_from_arrays(rows, *arrays)
    dec = np.ones((4, D))
    dec[2, 5] = np.inf
    with pytest.raises(
        ValueError, match=r"score 'v' of latent 2 is (inf|nan) \(1 such latents\)"
    ):
        score_dictionary(RowSource(dec), {}, {"v": jnp.ones(D)})
    with pytest.raises(ValueError, match=r"a form and a vector are both called 'v'"):
        score_dictionary(RowSource(DEC), {"v": jnp.eye(D)}, {"v": jnp.ones(D)})


def test_tables_that_do_not_fit_their_rows() -> None:
    rows = ragged_rows()
    good = [np.zeros((len(r.ids), D)) for r in rows]
    with pytest.raises(ValueError, match=r"one activation and one gradient per token"):
        table_from_arrays(rows, [*good[:-1], good[-1][1:]], good)
    with pytest.raises(
        ValueError, match=r"activations are .* but gradients .*; make them equal"
    ):
        table_from_arrays(rows, good, [g[:, :4] for g in good])
    with pytest.raises(
        ValueError, match=r"13 of 13 rows have no gradients \(first: row 0\)"
    ):
        table_from_batches(rows, iter(()))
