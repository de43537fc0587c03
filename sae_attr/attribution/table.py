"""The tokens of all completions in one table, and the signed weights that turn sums
over it into Δ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.gradients import act_and_grad
from sae_attr.attribution.integrated import Path, integrated_gradients
from sae_attr.attribution.scores import Moment, moment
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules
from sae_attr.lm.model import Params
from sae_attr.parallel import shard_batch, to_host
from sae_attr.text.batching import RowBatch, batches
from sae_attr.text.rows import TokenRow, scope_mask

BLOCK = 16384  # tokens that are on the device at a time


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Activations and gradients of every token of every row, rows one after another.

    `acts_kd`, `grads_kd`: `[tokens, d]`, arrays or memory maps; row r owns tokens
    `start_r[r] : start_r[r + 1]`.
    `nll_r`: nats of each completion. `inputs_kd`: what a transcoder encodes, `[tokens,
      d_in]`.
    Where they came from does not matter: another program's arrays do as well.
    """

    rows: Sequence[TokenRow]
    acts_kd: np.ndarray
    grads_kd: np.ndarray
    start_r: np.ndarray
    nll_r: np.ndarray
    inputs_kd: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = [len(row.ids) for row in self.rows]
        if list(np.diff(self.start_r)) != lengths or self.start_r[-1] != len(
            self.acts_kd
        ):
            raise ValueError(
                f"the table has {len(self.acts_kd)} tokens of activations but its "
                f"{len(lengths)} rows have "
                f"{sum(lengths)} tokens; give one activation and one gradient per "
                "token, rows in order"
            )
        if self.acts_kd.shape != self.grads_kd.shape:
            raise ValueError(
                f"activations are {self.acts_kd.shape} but gradients "
                f"{self.grads_kd.shape}; make them equal"
            )

    @property
    def reads_kd(self) -> np.ndarray:
        """What the SAE encodes: `inputs_kd`, or the activations themselves."""
        return self.acts_kd if self.inputs_kd is None else self.inputs_kd

    def tokens_of(self, row: int) -> slice:
        """Returns where a row's tokens lie."""
        return slice(int(self.start_r[row]), int(self.start_r[row + 1]))


def table_from_arrays(
    rows: Sequence[TokenRow],
    acts: Sequence[Any],
    grads: Sequence[Any],
    nll_r: Any = None,
    inputs: Sequence[Any] | None = None,
) -> TokenTable:
    """A table from one `[T, d]` array of activations and one of gradients per row,
    computed here or elsewhere.

    `inputs`: per row what a transcoder encodes. Raises ValueError if lengths disagree
      or a number is NaN or infinite.
    """
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    acts_kd, grads_kd = (
        np.concatenate([np.asarray(x) for x in parts]) for parts in (acts, grads)
    )
    for name, values in (("activations", acts_kd), ("gradients", grads_kd)):
        if not np.isfinite(values).all():
            row = (
                int(
                    np.searchsorted(
                        start_r, np.argwhere(~np.isfinite(values))[0, 0], side="right"
                    )
                )
                - 1
            )
            raise ValueError(
                f"{name} of row {row} hold NaN or infinity; try float32 weights, or "
                "look at that record"
            )
    nll = np.full(len(rows), np.nan) if nll_r is None else np.asarray(nll_r, np.float64)
    inputs_kd = (
        None if inputs is None else np.concatenate([np.asarray(x) for x in inputs])
    )
    return TokenTable(rows, acts_kd, grads_kd, start_r, nll, inputs_kd)


def gradient_batches(
    params: Params,
    work: Iterable[tuple[RowBatch, np.ndarray]],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    loss: str = "sum",
    remat: bool = False,
    rules: Rules = PLAIN,
    path: Path | None = None,
    read: Site | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Computes gradients batch after batch: `row_b`, `acts_btd`, `grads_btd`, `nll_b` on
    the host for each.

    Args:
      rules: backward rules of `act_and_grad`.
      path: take integrated gradients along it instead.
      read: another site that a transcoder encodes; adds `inputs_btd`.

    Raises:
      ValueError: rules and a path at once.
    """
    if path is not None and rules:
        raise ValueError(
            "integrated gradients follow the true derivative; give backward rules or a "
            "path, not both"
        )
    reads = () if read is None or read == site else (read,)
    steps = path.steps if path is not None else 0
    plain = lambda p, b: act_and_grad(
        p, b, cfg=cfg, sites=(site,), loss=loss, remat=remat, rules=rules, read=reads
    )
    line = lambda p, b, m, w: integrated_gradients(
        p, b, m, w, cfg=cfg, site=site, steps=steps, loss=loss, read=reads
    )
    step = jax.jit(plain if path is None else line)
    for batch, row_b in work:
        more = (
            ()
            if path is None
            else (jnp.asarray(path.mean_d, cfg.resid_dtype), path.where(batch, row_b))
        )
        out = step(params, shard_batch(batch, mesh), *more)
        yield {
            "row_b": row_b,
            "acts_btd": to_host(out.acts[site]),
            "grads_btd": to_host(out.grads[site]),
            "nll_b": to_host(out.nll_bc).astype(np.float64).sum(1),
            **({"inputs_btd": to_host(out.acts[reads[0]])} if reads else {}),
        }


def table_from_batches(
    rows: Sequence[TokenRow], results: Iterable[dict[str, np.ndarray]]
) -> TokenTable:
    """Puts the rows of computed batches back in order.

    Raises ValueError if a row is missing, or a number is NaN or infinite.
    """
    acts: list[Any] = [None] * len(rows)
    grads: list[Any] = [None] * len(rows)
    inputs: list[Any] = [None] * len(rows)
    nll_r = np.zeros(len(rows))
    for result in results:
        for b, row in enumerate(result["row_b"]):
            if row >= 0:
                length = len(rows[row].ids)
                acts[row], grads[row] = (
                    result["acts_btd"][b, :length],
                    result["grads_btd"][b, :length],
                )
                nll_r[row] = result["nll_b"][b]
                inputs[row] = (
                    result["inputs_btd"][b, :length] if "inputs_btd" in result else None
                )
    absent = [i for i, a in enumerate(acts) if a is None]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(rows)} rows have no gradients (first: row "
            f"{absent[0]}); run them again"
        )
    return table_from_arrays(
        rows, acts, grads, nll_r, inputs if inputs and inputs[0] is not None else None
    )


def collect(
    params: Params,
    rows: Sequence[TokenRow],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    loss: str = "sum",
    batch_size: int = 8,
    **options: Any,
) -> TokenTable:
    """Computes activations and gradients of all rows at one site: one forward and one
    backward pass for each.

    `options` go to `gradient_batches`: rules, path, read, remat.
    """
    work = batches(rows, batch_size=batch_size)
    return table_from_batches(
        rows,
        gradient_batches(
            params, work, cfg=cfg, site=site, mesh=mesh, loss=loss, **options
        ),
    )


# ---- weights -------------------------------------------------------------------------


def counted(
    rows: Sequence[TokenRow], scope: str, exclude: frozenset[str]
) -> list[np.ndarray]:
    """Returns per row which tokens count: bool `[T]`.

    Raises ValueError for an unknown scope or a row of which no token counts.
    """
    masks = [scope_mask(row, scope, exclude=exclude) for row in rows]
    empty = [i for i, mask in enumerate(masks) if not mask.any()]
    if empty:
        row = rows[empty[0]]
        side = "positive" if row.side > 0 else "negative"
        length = len(row.ids) - row.n_prompt
        raise ValueError(
            f"row {empty[0]} has no token left in scope {scope!r} after leaving out "
            f"{', '.join(sorted(exclude)) or 'none'}: "
            f"{side} {row.completion} of pair {row.pair} (counted from 0), whose "
            f"completion has {length} tokens; use another "
            "scope (tokens=all), exclude less (exclude=bos), or leave the pair out"
        )
    return masks


def side_weights(rows: Sequence[TokenRow]) -> np.ndarray:
    """Returns per row ±1 / (prompts · completions of that prompt and side): the mean over
    pairs of differences within prompts.
    """
    sizes: dict[tuple[int, int], int] = {}
    for row in rows:
        sizes[row.pair, row.side] = sizes.get((row.pair, row.side), 0) + 1
    prompts = len({row.pair for row in rows})
    return np.array([row.side / (prompts * sizes[row.pair, row.side]) for row in rows])


def token_weights(
    rows: Sequence[TokenRow], scope: str, exclude: frozenset[str] = frozenset()
) -> np.ndarray:
    """Returns w of every token `[k]`, float64: the row's side weight divided by the row's
    own number of counted tokens.

    The mean is per completion first; pooling tokens over completions of different
    lengths would be another number.
    """
    masks, sides = counted(rows, scope, exclude), side_weights(rows)
    return np.concatenate(
        [side * mask / mask.sum() for side, mask in zip(sides, masks, strict=True)]
    )


def table_moment(
    table: TokenTable, weights_k: np.ndarray, *, block: int = BLOCK
) -> Moment:
    """Computes the moment of a table, a block of tokens at a time; memory does not grow
    with the number of tokens.
    """
    d = table.acts_kd.shape[1]
    total = Moment(jnp.zeros((d, d)), jnp.zeros(d))
    add = jax.jit(lambda m, a, g, w: m + moment(a, g, w))
    for start in range(0, len(weights_k), block):
        part = slice(start, start + block)
        used = np.flatnonzero(weights_k[part]) + start
        if len(used):
            arrays = (table.acts_kd[used], table.grads_kd[used], weights_k[used])
            total = add(
                total,
                *(padded(x, min(block, round_up(len(weights_k), 128))) for x in arrays),
            )
    return total


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros after the end, so that every block compiles to one shape."""
    array = np.asarray(
        array, np.float64 if jax.config.read("jax_enable_x64") else np.float32
    )
    return np.concatenate(
        [array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)]
    )
