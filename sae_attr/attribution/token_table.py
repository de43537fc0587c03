"""The tokens of all completions in one table, and the signed weights that turn sums
over it into Δ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
        tokens = len(self.acts_kd)
        rows_differ = list(np.diff(self.start_r)) != lengths
        if rows_differ or self.start_r[-1] != tokens:
            raise ValueError(
                f"the table has {tokens} tokens of activations but its {len(lengths)} "
                f"rows have {sum(lengths)} tokens; give one activation and one "
                "gradient per token, rows in order"
            )
        if self.acts_kd.shape != self.grads_kd.shape:
            raise ValueError(
                f"activations are {self.acts_kd.shape} but gradients "
                f"{self.grads_kd.shape}; make them equal"
            )

    @property
    def reads_kd(self) -> np.ndarray:
        """What the SAE encodes: `inputs_kd`, or the activations themselves."""
        if self.inputs_kd is None:
            return self.acts_kd
        return self.inputs_kd

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
    """Returns the table of one `[T, d]` array of activations and one of gradients per
    row, computed here or elsewhere.

    `inputs`: per row what a transcoder encodes. Raises ValueError if lengths disagree
      or a number is NaN or infinite.
    """
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    acts_kd, grads_kd = _one_array(acts), _one_array(grads)
    # One NaN would spread over the whole moment and so over the score of every latent.
    _check_finite("activations", acts_kd, start_r)
    _check_finite("gradients", grads_kd, start_r)

    if nll_r is None:
        nll_r = np.full(len(rows), np.nan)
    inputs_kd = None
    if inputs is not None:
        inputs_kd = _one_array(inputs)
    nll_r = np.asarray(nll_r, np.float64)
    return TokenTable(rows, acts_kd, grads_kd, start_r, nll_r, inputs_kd)


def _one_array(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])


def _check_finite(name: str, values_kd: np.ndarray, start_r: np.ndarray) -> None:
    """Raises ValueError naming the first row that holds NaN or infinity."""
    finite_kd = np.isfinite(values_kd)
    if finite_kd.all():
        return
    token = np.argwhere(~finite_kd)[0, 0]
    row = int(np.searchsorted(start_r, token, side="right")) - 1
    raise ValueError(
        f"{name} of row {row} hold NaN or infinity; try float32 weights, or look at "
        "that record"
    )


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
    reads: tuple[Site, ...] = ()
    if read is not None and read != site:
        reads = (read,)
    options: dict[str, Any] = {"cfg": cfg, "loss": loss, "read": reads}

    if path is None:
        step = partial(
            _act_and_grad, sites=(site,), remat=remat, rules=rules, **options
        )
    else:
        along_path = partial(
            integrated_gradients, site=site, steps=path.steps, **options
        )
        step = jax.jit(along_path)

    for batch, row_b in work:
        arguments: tuple[Any, ...] = ()
        if path is not None:
            mean_d = jnp.asarray(path.mean_d, cfg.resid_dtype)
            arguments = (mean_d, path.where(batch, row_b))
        out = step(params, shard_batch(batch, mesh), *arguments)
        result = {
            "row_b": row_b,
            "acts_btd": to_host(out.acts[site]),
            "grads_btd": to_host(out.grads[site]),
            # float64: a float32 sum would round more, the longer the completion.
            "nll_b": to_host(out.nll_bc).astype(np.float64).sum(1),
        }
        if reads:
            result["inputs_btd"] = to_host(out.acts[reads[0]])
        yield result


# One jitted function, so that models of one shape share a program.
_act_and_grad = jax.jit(
    act_and_grad, static_argnames=("cfg", "sites", "loss", "remat", "rules", "read")
)


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
            if row < 0:  # a row of padding that fills up the batch
                continue
            length = len(rows[row].ids)
            acts[row] = result["acts_btd"][b, :length]
            grads[row] = result["grads_btd"][b, :length]
            nll_r[row] = result["nll_b"][b]
            if "inputs_btd" in result:
                inputs[row] = result["inputs_btd"][b, :length]

    absent = [row for row, acts_td in enumerate(acts) if acts_td is None]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(rows)} rows have no gradients (first: row "
            f"{absent[0]}); run them again"
        )
    if not inputs or inputs[0] is None:
        return table_from_arrays(rows, acts, grads, nll_r)
    return table_from_arrays(rows, acts, grads, nll_r, inputs)


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
    results = gradient_batches(
        params, work, cfg=cfg, site=site, mesh=mesh, loss=loss, **options
    )
    return table_from_batches(rows, results)


# ---- weights -------------------------------------------------------------------------


def counted(
    rows: Sequence[TokenRow], scope: str, exclude: frozenset[str]
) -> list[np.ndarray]:
    """Returns per row which tokens count: bool `[T]`.

    Raises ValueError for an unknown scope or a row of which no token counts.
    """
    masks = []
    for number, row in enumerate(rows):
        mask = scope_mask(row, scope, exclude=exclude)
        if not mask.any():
            raise ValueError(_no_token_left(number, row, scope, exclude))
        masks.append(mask)
    return masks


def _no_token_left(
    number: int, row: TokenRow, scope: str, exclude: frozenset[str]
) -> str:
    side = "negative"
    if row.side > 0:
        side = "positive"
    length = len(row.ids) - row.n_prompt
    excluded = ", ".join(sorted(exclude)) or "none"
    return (
        f"row {number} has no token left in scope {scope!r} after leaving out "
        f"{excluded}: {side} {row.completion} of pair {row.pair} (counted from 0), "
        f"whose completion has {length} tokens; use another scope (tokens=all), "
        "exclude less (exclude=bos), or leave the pair out"
    )


def side_weights(rows: Sequence[TokenRow]) -> np.ndarray:
    """Returns per row ±1 / (prompts · completions of that prompt and side): the mean over
    pairs of differences within prompts.
    """
    # Several answers to one prompt are averaged within it: a prompt with many answers
    # counts no more than one with a single answer.
    sizes = Counter((row.pair, row.side) for row in rows)
    prompts = len({row.pair for row in rows})
    return np.array([row.side / (prompts * sizes[row.pair, row.side]) for row in rows])


def token_weights(
    rows: Sequence[TokenRow], scope: str, exclude: frozenset[str] = frozenset()
) -> np.ndarray:
    """Returns w of every token `[k]`, float64: the row's side weight divided by the row's
    own number of counted tokens.

    The mean is per completion first (docs/method.md, The score).
    """
    masks = counted(rows, scope, exclude)
    weights = []
    for side, mask in zip(side_weights(rows), masks, strict=True):
        # Divided by this row's own count. Pooling the tokens of all rows is another
        # number: a long completion would outweigh the short one it is compared with.
        weights.append(side * mask / mask.sum())
    return np.concatenate(weights)


def table_moment(
    table: TokenTable, weights_k: np.ndarray, *, block: int = BLOCK
) -> Moment:
    """Computes the moment of a table, a block of tokens at a time; memory does not grow
    with the number of tokens.
    """
    d = table.acts_kd.shape[1]
    total = Moment(zeros((d, d)), zeros((d,)))
    length = block_length(len(weights_k), block)
    for start in range(0, len(weights_k), block):
        # Tokens outside the scope have weight 0 and are not read from a memory map.
        used = np.flatnonzero(weights_k[start : start + block]) + start
        if not len(used):
            continue
        acts = padded(table.acts_kd[used], length)
        grads = padded(table.grads_kd[used], length)
        weights = padded(weights_k[used], length)
        total = _add_moment(total, acts, grads, weights)
    return total


@jax.jit
def _add_moment(
    total: Moment, acts: jax.Array, grads: jax.Array, weights: jax.Array
) -> Moment:
    return total + moment(acts, grads, weights)


def block_length(tokens: int, most: int) -> int:
    """Returns how many tokens a block of a table holds, at most `most`.

    Few lengths, so that few programs are compiled: powers of two from 128 to 2,048,
    then multiples of a sixteenth of one.
    """
    power = max(128, 1 << (tokens - 1).bit_length())
    part = power if power <= 2048 else power // 16
    return min(most, max(1, -(-tokens // part)) * part)


def zeros(shape: tuple[int, ...]) -> Any:
    """Makes zeros of the type that jax computes in; on the host, where nothing is
    compiled for them.
    """
    return np.zeros(shape, jax.dtypes.canonicalize_dtype(np.float64))


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Appends zeros up to a length, so that every block compiles to one shape.

    A token of zeros adds nothing to a moment.
    """
    rest = zeros((length - len(array), *array.shape[1:]))
    return np.concatenate([np.asarray(array, rest.dtype), rest])
