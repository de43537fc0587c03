"""Δ of a ragged data set, in float64, against the definition written out in loops over
completions.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    TokenTable,
    attribute,
    collect,
    prompt_scores,
    score_moment,
    table_moment,
    token_weights,
)
from sae_attr.attribution.prompt_merge import merge
from sae_attr.hooks import Replace, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import forward
from sae_attr.parallel import LM_RULES, make_mesh, shard_tree
from sae_attr.text.rows import SCOPES, TokenRow
from tests.attribution._tiny import (
    SPECIAL_IDS,
    VOCAB,
    llama,
    neox,
    off,
    plain_losses,
    ragged_rows,
    random_params,
)

pytestmark = pytest.mark.usefixtures("quick")

SITE = Site(1)
ROWS = ragged_rows()
EXCLUDES = {
    "nothing": frozenset(),
    "bos": frozenset({"bos"}),
    "special": frozenset({"special"}),
}
FAMILIES = {"llama": llama(resid_dtype="float64"), "neox": neox(resid_dtype="float64")}
DEC_ND = np.random.default_rng(1).standard_normal((37, 16)) * np.exp(
    np.random.default_rng(2).standard_normal((37, 1))
)
MEAN_D = np.random.default_rng(3).standard_normal(16)

Arrays = tuple[list[np.ndarray], list[np.ndarray]]


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(
    scope="module",
    params=[("llama", "sum"), ("llama", "mean"), ("neox", "sum")],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[LMConfig, str]:
    family, loss = request.param
    return FAMILIES[family], loss


Case = tuple[LMConfig, str]


@pytest.fixture(scope="module")
def acts_and_grads(case: Case) -> Arrays:
    return _acts_and_grads(case[0])


@functools.cache
def _acts_and_grads(cfg: LMConfig) -> Arrays:
    """a and g of every row by plain `jax.grad`; rows are filled up with random tokens,
    nothing is masked.
    """
    with jax.enable_x64(True):
        width, params = max(len(r.ids) for r in ROWS) + 3, random_params(cfg)
        tokens = (
            np.random.default_rng(9)
            .integers(0, VOCAB, (len(ROWS), width))
            .astype(np.int32)
        )
        completion = np.zeros((len(ROWS), width), bool)
        for k, r in enumerate(ROWS):
            tokens[k, : len(r.ids)] = r.ids
            completion[k, r.n_prompt : len(r.ids)] = True
        acts = jax.jit(
            lambda p: forward(p, tokens, cfg=cfg, span=(0, SITE.layer + 1)).hidden_btd
        )(params)
        loss = lambda a: plain_losses(
            params, tokens, completion, {SITE: Replace(a)}, cfg=cfg
        ).sum()
        grads = np.asarray(jax.jit(jax.grad(loss))(acts))
        lengths = [len(r.ids) for r in ROWS]
        return [np.asarray(acts[k, :n]) for k, n in enumerate(lengths)], [
            grads[k, :n] for k, n in enumerate(lengths)
        ]


def counts(r: TokenRow, t: int, scope: str, exclude: str) -> bool:
    if exclude == "bos" and t == 0 and r.ids[0] == 0:
        return False
    if exclude == "special" and r.ids[t] in SPECIAL_IDS:
        return False
    return scope == "all" or (t >= r.n_prompt) == (scope == "completion")


def completion_means(arrays: Arrays, scope: str, exclude: str, loss: str) -> np.ndarray:
    """mean_t δ_{i,t} of every completion, `[rows, n]`."""
    unit = DEC_ND / np.sqrt((DEC_ND**2).sum(1, keepdims=True))
    means = []
    for r, acts, grads in zip(ROWS, *arrays, strict=True):
        divisor = len(r.ids) - r.n_prompt if loss == "mean" else 1
        terms = []
        for t in range(len(r.ids)):
            if counts(r, t, scope, exclude):
                terms.append(-(unit @ grads[t] / divisor) * (unit @ (acts[t] - MEAN_D)))
        means.append(np.mean(terms, axis=0))
    return np.array(means)


def paired(means: np.ndarray) -> np.ndarray:
    """Δ within each prompt, `[prompts, n]`: mean over its positives − mean over its
    negatives.
    """
    out = []
    for pair in range(4):
        sides = {
            side: [m for m, r in zip(means, ROWS) if (r.pair, r.side) == (pair, side)]
            for side in (1, -1)
        }
        out.append(
            np.mean(sides[1], axis=0) - (np.mean(sides[-1], axis=0) if sides[-1] else 0)
        )
    return np.array(out)


@pytest.fixture(scope="module")
def table(case: Case) -> TokenTable:
    cfg, loss = case
    with jax.enable_x64(True):
        mesh = make_mesh("data=1" if loss == "mean" else "data=2,model=2")
        params = shard_tree(random_params(cfg), LM_RULES, mesh)
        return collect(
            params, ROWS, cfg=cfg, site=SITE, mesh=mesh, loss=loss, batch_size=4
        )


@pytest.mark.parametrize("exclude", EXCLUDES)
@pytest.mark.parametrize("scope", SCOPES)
def test_delta_is_the_mean_over_prompts_of_differences_of_means_of_completion_means(
    scope: str, exclude: str, case: Case, acts_and_grads: Arrays, table: TokenTable
) -> None:
    means = completion_means(acts_and_grads, scope, exclude, case[1])
    weights_k = token_weights(ROWS, scope, EXCLUDES[exclude])
    got = score_moment(
        table_moment(table, weights_k, block=100),
        jnp.asarray(MEAN_D),
        jnp.asarray(DEC_ND),
        chunk=10,
    )
    assert got.dtype == np.float64
    np.testing.assert_allclose(
        got, paired(means).mean(0), rtol=1e-9, atol=1e-9 * np.abs(means).max()
    )
    unit = jnp.asarray(DEC_ND / np.linalg.norm(DEC_ND, axis=1, keepdims=True))
    within = prompt_scores(
        merge(table, scope, EXCLUDES[exclude]), unit, jnp.asarray(MEAN_D)
    )
    np.testing.assert_allclose(
        within, paired(means), rtol=1e-9, atol=1e-9 * np.abs(means).max()
    )


def test_single_completions(
    case: Case, acts_and_grads: Arrays, table: TokenTable
) -> None:
    """`attribute` on padded rows with w = mask / T gives mean_t δ of each completion."""
    width = 50
    acts, grads, weights = (
        np.zeros((len(ROWS), width, *more)) for more in ((16,), (16,), ())
    )
    for k, r in enumerate(ROWS):
        n, part = len(r.ids), table.tokens_of(k)
        acts[k, :n], grads[k, :n] = table.acts_kd[part], table.grads_kd[part]
        weights[k, :n] = 1 / n
    got = attribute(*map(jnp.asarray, (acts, grads, weights, DEC_ND, MEAN_D)), chunk=10)
    means = completion_means(acts_and_grads, "all", "nothing", case[1])
    np.testing.assert_allclose(got, means, rtol=1e-9, atol=1e-9 * np.abs(means).max())


def test_pooling_tokens_would_be_another_number(
    case: Case, acts_and_grads: Arrays, table: TokenTable
) -> None:
    """Tokens pooled per side and prompt (instead of one mean per completion first)
    change Δ by far more than rounding.
    """
    right = token_weights(ROWS, "all")
    sizes = {
        (r.pair, r.side): sum(
            len(q.ids) for q in ROWS if (q.pair, q.side) == (r.pair, r.side)
        )
        for r in ROWS
    }
    pooled = np.concatenate(
        [np.full(len(r.ids), r.side / (4 * sizes[r.pair, r.side])) for r in ROWS]
    )
    assert right.sum() == pytest.approx(
        pooled.sum()
    )  # the totals cannot tell them apart
    score = lambda w: score_moment(
        table_moment(table, w), jnp.asarray(MEAN_D), jnp.asarray(DEC_ND)
    )
    want = paired(completion_means(acts_and_grads, "all", "nothing", case[1])).mean(0)
    assert off(score(right), want) < 1e-9
    assert off(score(pooled), want) > 0.02


@pytest.mark.parametrize("scope", SCOPES)
def test_weights_of_a_side_sum_to_one(scope: str) -> None:
    weights_k = token_weights(ROWS, scope, frozenset({"special"}))
    row_k = np.repeat(np.arange(len(ROWS)), [len(r.ids) for r in ROWS])
    for pair in range(4):
        for side in (1, -1):
            members = [
                k for k, r in enumerate(ROWS) if (r.pair, r.side) == (pair, side)
            ]
            sums = [weights_k[row_k == k].sum() for k in members]
            np.testing.assert_allclose(
                sums, side / (4 * max(len(members), 1)), rtol=1e-12
            )
    special_k = np.concatenate([r.special for r in ROWS])
    assert not weights_k[special_k].any()


def test_nll_is_a_sum_whatever_the_loss(case: Case, table: TokenTable) -> None:
    cfg, r = case[0], ROWS[3]
    completion = np.arange(len(r.ids)) >= r.n_prompt
    want = jax.jit(
        lambda p: plain_losses(p, r.ids[None], completion[None], {}, cfg=cfg)
    )(random_params(cfg))
    np.testing.assert_allclose(table.nll_r[3], want[0], rtol=1e-10)
