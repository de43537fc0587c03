"""Activations of counted tokens: one forward pass over rows of a token file, any number
of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations.corpus_pass import CorpusBatch, Measure, measured_step
from sae_attr.activations.shuffle import permute
from sae_attr.activations.statistics import norm_limits
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Meta
from sae_attr.text.masks import REASONS, Masks
from sae_attr.text.packed_rows import PackedRows, Packing, row_count, rows_at
from sae_attr.text.rows import mask_codes
from sae_attr.text.token_file import TokenFile, check_embedding

OUTLIER = REASONS.index("norm_outlier")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class ActivationSource:
    """Holds everything that decides which activations there are; made by `open_source`.

    Args:
      sites: taken in one pass.
      rows: the rows of the file that are used, so that some can be held out.
      dtype: of the arrays that come out: float32, bfloat16 or float16.
      limits: site -> largest norm that counts; empty without outlier mask.
    """

    file: TokenFile
    packing: Packing
    sites: tuple[Site, ...]
    masks: Masks
    rows: range
    dtype: str
    limits: dict[Site, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CountedTokens:
    """Counted tokens in the order of their rows.

    Args:
      acts: site -> [k, d].
      ids_k2: int64 (row of the token file, position in the row).
      counts: reason of `REASONS` -> positions; they add up to rows × context.
    """

    acts: dict[Site, np.ndarray]
    ids_k2: np.ndarray
    counts: dict[str, int]


Collect = Callable[[Sequence[int] | np.ndarray], CountedTokens]


def open_source(
    params: Params,
    file: TokenFile,
    packing: Packing,
    sites: Sequence[Site],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    masks: Masks | None = None,
    rows: range | None = None,
    dtype: str = "float32",
    batch_rows: int = 16,
    seed: int = 0,
) -> ActivationSource:
    """Checks that file, packing and model fit, and measures the norms beyond which a
    token does not count.

    Args:
      rows: default all rows of the file.
      seed: of the sample of rows on which median norms are measured.

    Raises:
      ValueError: rows longer than the model's context, token ids beyond its vocabulary,
        rows that the file does not have, an unknown dtype, no site.
    """
    count = row_count(file, packing)
    rows = range(count) if rows is None else rows
    masks = Masks() if masks is None else masks
    if packing.context > cfg.max_len:
        raise ValueError(
            f"rows of {packing.context} tokens are longer than the model's context of "
            f"{cfg.max_len}; lower it"
        )
    check_embedding(file, cfg.vocab)
    if not rows or rows.step != 1 or rows.start < 0 or rows.stop > count:
        raise ValueError(
            f"rows {rows.start}..{rows.stop - 1} are asked for but the file has "
            f"0..{count - 1}"
        )
    if dtype not in DTYPES or not sites:
        raise ValueError(
            f"dtype {dtype!r}, {len(sites)} sites: choose of {', '.join(DTYPES)}, and "
            "at least one site"
        )
    source = ActivationSource(file, packing, tuple(sites), masks, rows, dtype)
    limits = measure_limits(
        params, source, cfg=cfg, mesh=mesh, batch_rows=batch_rows, seed=seed
    )
    return replace(source, limits=limits)


def describe(source: ActivationSource) -> Meta:
    """Returns the source as plain values, which results record and caches compare."""
    limits = {str(site): limit for site, limit in source.limits.items()}
    names = (
        "sha256",
        "tokens",
        "documents",
        "bos_id",
        "special_ids",
        "prepend_bos",
        "append_eos",
    )
    return {
        "tokens": {name: source.file.meta[name] for name in names},
        "packing": asdict(source.packing),
        "sites": [str(site) for site in source.sites],
        "masks": source.masks.to_dict() | {"norm_limits": limits},
        "rows": [source.rows.start, source.rows.stop],
        "dtype": source.dtype,
    }


def codes_of(source: ActivationSource, rows: PackedRows) -> np.ndarray:
    """Returns why positions do not count by their token ids, int8 [b, t] codes of
    `REASONS`.
    """
    meta = source.file.meta
    special_bt = np.isin(rows.tokens_bt, meta["special_ids"]) & rows.valid_bt
    return mask_codes(
        rows.tokens_bt,
        rows.valid_bt,
        special_bt,
        bos_id=meta["bos_id"],
        masks=source.masks,
        since_bt=rows.since_bt,
    )


def count_tokens(source: ActivationSource, index: Sequence[int] | np.ndarray) -> int:
    """Counts the tokens of these rows that count by their token ids, without a forward
    pass.
    """
    total = 0
    # A few rows at a time: a block of millions of tokens is not held as arrays of all
    # its positions only to be counted.
    for start in range(0, len(index), 64):
        rows = rows_at(source.file, index[start : start + 64], source.packing)
        total += int((codes_of(source, rows) == 0).sum())
    return total


def collector(
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    batch_rows: int = 16,
) -> Collect:
    """Returns a function from row numbers to their counted tokens; the forward pass is
    compiled once.

    Args:
      batch_rows: rows of one forward pass, rounded up to what the mesh's data axis
        divides.

    Returns:
      The function. It raises ValueError where a counted activation is NaN or infinite
      in the source's dtype.
    """
    measures = {"acts": _cast(source)}
    step = measured_step(measures, source.sites, cfg=cfg, limits=source.limits)

    def collect(index: Sequence[int] | np.ndarray) -> CountedTokens:
        index = np.asarray(index, np.int64)
        # An upper bound: of these tokens the norm limits may exclude some.
        buffers = _empty_tokens(source, cfg, count_tokens(source, index))
        used, total = 0, np.zeros(len(REASONS), np.int64)
        for part, codes_bt, batch in _batches(source, index, mesh, batch_rows):
            arrays = step(params, {"acts": ()}, shard_batch(batch, mesh))
            measured, counted_bt = jax.tree.map(to_host, arrays)
            acts, finite_bt = measured["acts"]
            _check_finite(source, finite_bt[counted_bt])
            # Token ids decided every other reason; norms are known only now.
            codes_bt[(codes_bt == 0) & ~counted_bt] = OUTLIER
            used += _copy_counted(buffers, used, part, acts, counted_bt)
            # Rows that fill up the last pass are no rows of the file.
            total += np.bincount(codes_bt[: len(part)].ravel(), minlength=len(REASONS))
        return _filled(buffers, used, total)

    return collect


def _check_finite(source: ActivationSource, finite_k: np.ndarray) -> None:
    if not finite_k.all():
        raise ValueError(
            f"activations at {', '.join(map(str, source.sites))} are NaN or "
            f"infinite in {source.dtype}; take float32 activations and weights"
        )


def _cast(source: ActivationSource) -> Measure:
    """Measures site -> activations in the source's dtype, and which are finite in it."""

    def cast(
        _: Any, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> tuple[dict[Site, jax.Array], jax.Array]:
        # Checked after the cast: what float32 holds may be infinite in float16.
        narrow = {site: acts[site].astype(source.dtype) for site in source.sites}
        finite = [jnp.isfinite(acts_btd).all(axis=-1) for acts_btd in narrow.values()]
        return narrow, jnp.stack(finite).all(axis=0)

    return cast


def _empty_tokens(source: ActivationSource, cfg: LMConfig, most: int) -> CountedTokens:
    """Buffers of their final size: to join parts would need twice the memory."""
    acts = {
        site: np.empty((most, cfg.width(site.point)), jnp.dtype(source.dtype))
        for site in source.sites
    }
    return CountedTokens(acts, np.empty((most, 2), np.int64), {})


def _copy_counted(
    buffers: CountedTokens,
    start: int,
    row_numbers: np.ndarray,
    acts: Mapping[Site, np.ndarray],
    counted_bt: np.ndarray,
) -> int:
    """Copies the counted tokens of one pass to the buffers, from `start` on; returns
    how many they are.
    """
    rows_k, pos_k = np.nonzero(counted_bt)
    place = slice(start, start + len(rows_k))
    buffers.ids_k2[place] = np.stack([row_numbers[rows_k], pos_k], axis=1)
    for site, array in buffers.acts.items():
        array[place] = acts[site][rows_k, pos_k]
    return len(rows_k)


def _filled(buffers: CountedTokens, used: int, total: np.ndarray) -> CountedTokens:
    """Returns the part of the buffers that is in use: outliers leave the end empty."""
    acts = {site: array[:used] for site, array in buffers.acts.items()}
    counts: dict[str, int] = dict(zip(REASONS, total.tolist()))
    return CountedTokens(acts, buffers.ids_k2[:used], counts)


def measure_limits(
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    batch_rows: int = 16,
    sample_rows: int = 128,
    seed: int = 0,
) -> dict[Site, float]:
    """Measures `norm_limits` on a random sample of a source's rows."""
    n = len(source.rows)
    # A sample: the median of all rows would need a pass over the corpus of its own.
    places = np.arange(min(sample_rows, n))
    index = source.rows.start + permute(places, n, seed, "limits")
    batches = (batch for *_, batch in _batches(source, index, mesh, batch_rows))
    outlier = source.masks.outlier
    return norm_limits(params, batches, outlier, cfg=cfg, sites=source.sites, mesh=mesh)


def _batches(
    source: ActivationSource,
    index: np.ndarray,
    mesh: jax.sharding.Mesh,
    batch_rows: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, CorpusBatch]]:
    """Yields row numbers, codes of `REASONS` by token ids and the batch of each forward
    pass; the last is filled up with empty rows.
    """
    size = mesh.shape["data"]
    batch_rows = -(-batch_rows // size) * size
    for start in range(0, len(index), batch_rows):
        part = index[start : start + batch_rows]
        # One shape for all passes, so that one program is compiled.
        padded = np.concatenate([part, np.full(batch_rows - len(part), -1)])
        rows = rows_at(source.file, padded, source.packing)
        codes_bt = codes_of(source, rows)
        batch = CorpusBatch(
            rows.tokens_bt, rows.valid_bt, codes_bt == 0, rows.pos_bt, rows.segment_bt
        )
        yield part, codes_bt, batch
