"""The tokens of all completions in one table, and the signed weights that turn sums over it into Δ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.gradients import act_and_grad
from sae_attr.attribution.scores import Moment, moment, token_scores
from sae_attr.data import ROLES, Batch, Row, batches, scope_mask
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import shard_batch, to_host

BLOCK = 16384  # tokens that are on the device at a time


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Activations and gradients of every token of every row, rows one after another.

    `acts_kd`, `grads_kd`: `[tokens, d]`, arrays or memory maps; row r owns tokens `start_r[r] : start_r[r + 1]`.
    `nll_r`: nats of each completion. Where they came from does not matter: another program's arrays do as well.
    """

    rows: Sequence[Row]
    acts_kd: np.ndarray
    grads_kd: np.ndarray
    start_r: np.ndarray
    nll_r: np.ndarray

    def __post_init__(self) -> None:
        lengths = [len(row.ids) for row in self.rows]
        if list(np.diff(self.start_r)) != lengths or self.start_r[-1] != len(self.acts_kd):
            raise ValueError(
                f"the table has {len(self.acts_kd)} tokens of activations but its {len(lengths)} rows have "
                f"{sum(lengths)} tokens; give one activation and one gradient per token, rows in order"
            )
        if self.acts_kd.shape != self.grads_kd.shape:
            raise ValueError(
                f"activations are {self.acts_kd.shape} but gradients {self.grads_kd.shape}; make them equal"
            )

    def tokens_of(self, row: int) -> slice:
        """Where a row's tokens lie."""
        return slice(int(self.start_r[row]), int(self.start_r[row + 1]))


def table_from_arrays(rows: Sequence[Row], acts: Sequence[Any], grads: Sequence[Any], nll_r: Any = None) -> TokenTable:
    """A table from one `[T, d]` array of activations and one of gradients per row, computed here or elsewhere.

    Raises ValueError if lengths disagree or a number is NaN or infinite.
    """
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    acts_kd, grads_kd = (np.concatenate([np.asarray(x) for x in parts]) for parts in (acts, grads))
    for name, values in (("activations", acts_kd), ("gradients", grads_kd)):
        if not np.isfinite(values).all():
            row = int(np.searchsorted(start_r, np.argwhere(~np.isfinite(values))[0, 0], side="right")) - 1
            raise ValueError(f"{name} of row {row} hold NaN or infinity; try float32 weights, or look at that record")
    nll = np.full(len(rows), np.nan) if nll_r is None else np.asarray(nll_r, np.float64)
    return TokenTable(rows, acts_kd, grads_kd, start_r, nll)


def gradient_batches(
    params: Params,
    work: Iterable[tuple[Batch, np.ndarray]],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    loss: str = "sum",
    remat: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs `act_and_grad` batch after batch: `row_b`, `acts_btd`, `grads_btd`, `nll_b` on the host for each."""
    step = jax.jit(lambda p, batch: act_and_grad(p, batch, cfg=cfg, sites=(site,), loss=loss, remat=remat))
    for batch, row_b in work:
        out = step(params, shard_batch(batch, mesh))
        yield {
            "row_b": row_b,
            "acts_btd": to_host(out.acts[site]),
            "grads_btd": to_host(out.grads[site]),
            "nll_b": to_host(out.nll_bc).astype(np.float64).sum(1),
        }


def table_from_batches(rows: Sequence[Row], results: Iterable[dict[str, np.ndarray]]) -> TokenTable:
    """Puts the rows of computed batches back in order.

    Raises ValueError if a row is missing, or a number is NaN or infinite.
    """
    acts: list[Any] = [None] * len(rows)
    grads: list[Any] = [None] * len(rows)
    nll_r = np.zeros(len(rows))
    for result in results:
        for b, row in enumerate(result["row_b"]):
            if row >= 0:
                length = len(rows[row].ids)
                acts[row], grads[row] = result["acts_btd"][b, :length], result["grads_btd"][b, :length]
                nll_r[row] = result["nll_b"][b]
    absent = [i for i, a in enumerate(acts) if a is None]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(rows)} rows have no gradients (first: row {absent[0]}); run them again"
        )
    return table_from_arrays(rows, acts, grads, nll_r)


def collect(
    params: Params,
    rows: Sequence[Row],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    loss: str = "sum",
    batch_size: int = 8,
) -> TokenTable:
    """Activations and gradients of all rows at one site: one forward and one backward pass for each."""
    work = batches(rows, batch_size=batch_size)
    return table_from_batches(rows, gradient_batches(params, work, cfg=cfg, site=site, mesh=mesh, loss=loss))


# ---- weights -------------------------------------------------------------------------------------------------------


def counted(rows: Sequence[Row], scope: str, exclude: frozenset[str]) -> list[np.ndarray]:
    """Per row, which tokens count: bool `[T]`.

    Raises ValueError for an unknown scope or a row of which no token counts.
    """
    masks = [scope_mask(row, scope, exclude=exclude) for row in rows]
    empty = [i for i, mask in enumerate(masks) if not mask.any()]
    if empty:
        raise ValueError(
            f"row {empty[0]} has no token left in scope {scope!r} after leaving out {', '.join(sorted(exclude)) or 'none'}; "
            "use another scope, or exclude less"
        )
    return masks


def side_weights(rows: Sequence[Row]) -> np.ndarray:
    """Per row ±1 / (prompts · completions of that prompt and side): the mean over pairs of differences within prompts."""
    sizes: dict[tuple[int, int], int] = {}
    for row in rows:
        sizes[row.pair, row.side] = sizes.get((row.pair, row.side), 0) + 1
    prompts = len({row.pair for row in rows})
    return np.array([row.side / (prompts * sizes[row.pair, row.side]) for row in rows])


def token_weights(rows: Sequence[Row], scope: str, exclude: frozenset[str] = frozenset()) -> np.ndarray:
    """w of every token `[k]`, float64: the row's side weight divided by the row's own number of counted tokens.

    The mean is per completion first; pooling tokens over completions of different lengths would be another number.
    """
    masks, sides = counted(rows, scope, exclude), side_weights(rows)
    return np.concatenate([side * mask / mask.sum() for side, mask in zip(sides, masks, strict=True)])


def table_moment(table: TokenTable, weights_k: np.ndarray, *, block: int = BLOCK) -> Moment:
    """The moment of a table, a block of tokens at a time; memory does not grow with the number of tokens."""
    d = table.acts_kd.shape[1]
    total = Moment(jnp.zeros((d, d)), jnp.zeros(d))
    add = jax.jit(lambda m, a, g, w: m + moment(a, g, w))
    for start in range(0, len(weights_k), block):
        part = slice(start, start + block)
        used = np.flatnonzero(weights_k[part]) + start
        if len(used):
            arrays = (table.acts_kd[used], table.grads_kd[used], weights_k[used])
            total = add(total, *(_padded(x, min(block, _round_up(len(weights_k), 128))) for x in arrays))
    return total


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros after the end, so that every block compiles to one shape."""
    array = np.asarray(array, np.float64 if jax.config.read("jax_enable_x64") else np.float32)
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


# ---- tokens merged within a prompt -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """Counted tokens with their weights folded into the gradients, prompt tokens shared by completions merged.

    On a shared prompt a_t is the same for C and C', so only the weighted sum of gradients matters:
    `grads_jd` = Σ_rows ± g / (completions of that side · T_row). The mean over prompts of the sums of δ is Δ.
    """

    acts_jd: np.ndarray
    grads_jd: np.ndarray
    prompt_j: np.ndarray
    role_j: np.ndarray
    prompts: int


def merge(table: TokenTable, scope: str, exclude: frozenset[str] = frozenset()) -> MergedTokens:
    """Merges the tokens of each prompt's completions for one token scope (host arrays)."""
    weights_k = token_weights(table.rows, scope, exclude)
    by_prompt: dict[int, list[int]] = {}
    for index, row in enumerate(table.rows):
        by_prompt.setdefault(row.pair, []).append(index)
    parts = [_merge_prompt(table, weights_k * len(by_prompt), members) for members in by_prompt.values()]
    acts, grads, roles = (np.concatenate(column) for column in zip(*parts, strict=True))
    prompt_j = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    return MergedTokens(acts, grads, prompt_j, roles, len(parts))


def _merge_prompt(
    table: TokenTable, weights_k: np.ndarray, members: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Acts, weighted gradients and roles of one prompt's tokens: the common prefix once, the rest row by row."""
    rows = [table.rows[i] for i in members]
    shared = _common_prefix(rows)
    weights = [weights_k[table.tokens_of(i)] for i in members]
    grads = [table.grads_kd[table.tokens_of(i)] * w[:, None] for i, w in zip(members, weights, strict=True)]
    acts = [table.acts_kd[table.tokens_of(i)] for i in members]
    all_acts = np.concatenate([acts[0][:shared], *(a[shared:] for a in acts)])
    all_grads = np.concatenate([sum(g[:shared] for g in grads), *(g[shared:] for g in grads)])
    all_roles = np.concatenate([rows[0].roles[:shared], *(row.roles[shared:] for row in rows)])
    used = np.concatenate([np.any([w[:shared] != 0 for w in weights], axis=0), *(w[shared:] != 0 for w in weights)])
    return all_acts[used], all_grads[used], all_roles[used]


def _common_prefix(rows: Sequence[Row]) -> int:
    """How many prompt tokens all rows share: a token that straddles the border can make prompts differ at their end."""
    length = min(row.n_prompt for row in rows)
    same = np.all([row.ids[:length] == rows[0].ids[:length] for row in rows], axis=0)
    return int(np.argmin(same)) if not same.all() else length


def prompt_scores(
    merged: MergedTokens, dec_nd: jax.Array, mean_d: jax.Array, *, sides: str = "both", by_role: bool = False
) -> np.ndarray:
    """Δ within each prompt for some latents: `[p, n]`, or `[p, roles, n]` split by the role of the tokens.

    The mean over prompts is the ranking's Δ. `gated` equals `both` here; the gate is one decision per latent. Memory is
    `BLOCK * n` numbers: meant for candidates, or for chunks of a dictionary.
    """
    groups = len(ROLES) if by_role else 1
    segment_j = merged.prompt_j * groups + (merged.role_j if by_role else 0)
    total = jnp.zeros((merged.prompts * groups, dec_nd.shape[0]))
    block = min(BLOCK, _round_up(len(segment_j), 128))
    for start in range(0, len(segment_j), block):
        part = slice(start, start + block)
        acts, grads = (_padded(x[part], block) for x in (merged.acts_jd, merged.grads_jd))
        segments = np.pad(segment_j[part], (0, block - len(segment_j[part])))
        total = _add_block(total, acts, grads, segments, dec_nd, mean_d, sides=sides)
    shape = (merged.prompts, groups, -1) if by_role else (merged.prompts, -1)
    return np.asarray(total).reshape(shape)


@partial(jax.jit, static_argnames="sides")
def _add_block(
    total: jax.Array,
    acts: jax.Array,
    grads: jax.Array,
    segments: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    *,
    sides: str,
) -> jax.Array:
    """Adds a block's scores to the sums of their segments `[segments, n]`."""
    scores = token_scores(acts, grads, dec_nd, mean_d, sides)  # padding has zero gradients, so it adds zero
    return total + jax.ops.segment_sum(scores, segments, num_segments=total.shape[0])
