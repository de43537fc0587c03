"""Activations of counted tokens: one forward pass over rows of a token file, any number
of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations.shuffle import permute
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Meta
from sae_attr.text.masks import REASONS, Masks, norm_limit
from sae_attr.text.rows import mask_codes
from sae_attr.text.token_file import (
    Packing,
    TokenFile,
    TokenRows,
    check_embedding,
    row_count,
    rows_at,
)

OUTLIER = REASONS.index("norm_outlier")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Source:
    """Everything that decides which activations there are; made by `open_source`.

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
class Collected:
    """Counted tokens in the order of their rows.

    Args:
      acts: site -> [k, d].
      ids_k2: int64 (row of the token file, position in the row).
      counts: reason of `REASONS` -> positions; they add up to rows × context.
    """

    acts: dict[Site, np.ndarray]
    ids_k2: np.ndarray
    counts: dict[str, int]


Collect = Callable[[Sequence[int] | np.ndarray], Collected]


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
) -> Source:
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
    source = Source(file, packing, tuple(sites), masks, rows, dtype)
    if masks.outlier is None:
        return source
    return replace(
        source,
        limits=norm_limits(
            params, source, cfg=cfg, mesh=mesh, batch_rows=batch_rows, seed=seed
        ),
    )


def describe(source: Source) -> Meta:
    """The source as plain values: what a result records, and what a cache must agree
    with.
    """
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


def codes_of(source: Source, rows: TokenRows) -> np.ndarray:
    """Why each position does not count as far as the tokens tell, int8 [b, t] codes of
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


def count_tokens(source: Source, index: Sequence[int] | np.ndarray) -> int:
    """Tokens of these rows that count as far as the tokens tell, without a forward
    pass.
    """
    return sum(
        int(
            (
                codes_of(
                    source, rows_at(source.file, index[i : i + 64], source.packing)
                )
                == 0
            ).sum()
        )
        for i in range(0, len(index), 64)
    )


def collector(
    params: Params,
    source: Source,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    batch_rows: int = 16,
) -> Collect:
    """A function from row numbers to their counted tokens; the forward pass is compiled
    once.

    Args:
      batch_rows: rows of one forward pass, rounded up to what the mesh's data axis
        divides.

    Returns:
      The function. It raises ValueError where a counted activation is NaN or infinite
      in the source's dtype.
    """
    forward_rows = _forward_rows(
        params, source, cfg=cfg, mesh=mesh, batch_rows=batch_rows
    )

    def collect(index: Sequence[int] | np.ndarray) -> Collected:
        index = np.asarray(index, np.int64)
        most = count_tokens(source, index)
        out = {
            site: np.empty((most, cfg.width(site.point)), jnp.dtype(source.dtype))
            for site in source.sites
        }
        ids_k2 = np.empty((most, 2), np.int64)
        used = 0
        total = np.zeros(len(REASONS), np.int64)
        for part, codes_bt, acts, _ in forward_rows(index):
            rows_k, pos_k = np.nonzero(codes_bt == 0)
            place = slice(used, used := used + len(rows_k))
            ids_k2[place] = np.stack([part[rows_k], pos_k], axis=1)
            for site in source.sites:
                out[site][place] = acts[site][rows_k, pos_k]
            total += np.bincount(codes_bt[: len(part)].ravel(), minlength=len(REASONS))
        acts = {site: array[:used] for site, array in out.items()}
        return Collected(acts, ids_k2[:used], dict(zip(REASONS, total.tolist())))

    return collect


def norm_limits(
    params: Params,
    source: Source,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    batch_rows: int = 16,
    sample_rows: int = 128,
    seed: int = 0,
) -> dict[Site, float]:
    """site -> `outlier` × the median norm of the tokens that count otherwise, over a
    random sample of rows.
    """
    assert source.masks.outlier is not None
    n = len(source.rows)
    index = source.rows.start + permute(
        np.arange(min(sample_rows, n)), n, seed, "limits"
    )
    run = _forward_rows(
        params,
        replace(source, limits={}, dtype="float32"),
        cfg=cfg,
        mesh=mesh,
        batch_rows=batch_rows,
    )
    norms_sk = np.concatenate(
        [norms[:, codes == 0] for _, codes, _, norms in run(index)], axis=1
    )
    if not norms_sk.shape[1]:
        raise ValueError(
            "no token of the corpus counts; exclude fewer tokens or give more text"
        )
    multiple = source.masks.outlier
    return {
        site: norm_limit(norms_k, multiple)
        for site, norms_k in zip(source.sites, norms_sk, strict=True)
    }


def _forward_rows(
    params: Params,
    source: Source,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    batch_rows: int,
) -> Any:
    """row numbers -> for each forward pass (row numbers, codes_bt, site -> acts_btd,
    norms_sbt), all on the host.
    """
    size = mesh.shape["data"]
    batch_rows = -(-batch_rows // size) * size
    span = (0, 1 + max(site.layer for site in source.sites))

    @jax.jit
    def step(
        p: Params, rows: TokenRows
    ) -> tuple[dict[Site, jax.Array], jax.Array, jax.Array]:
        acts = forward(
            p,
            rows.tokens_bt,
            cfg=cfg,
            pos_bt=rows.pos_bt,
            valid_bt=rows.valid_bt,
            segment_bt=rows.segment_bt,
            keep=source.sites,
            span=span,
        ).acts
        norms_sbt = jnp.stack(
            [
                jnp.linalg.norm(acts[site].astype(jnp.float32), axis=-1)
                for site in source.sites
            ]
        )
        cast = {site: acts[site].astype(source.dtype) for site in source.sites}
        finite_bt = jnp.stack(
            [jnp.isfinite(a).all(axis=-1) for a in cast.values()]
        ).all(axis=0)
        return cast, norms_sbt, finite_bt

    def run(index: np.ndarray) -> Any:
        for start in range(0, len(index), batch_rows):
            part = index[start : start + batch_rows]
            padded = np.concatenate([part, np.full(batch_rows - len(part), -1)])
            rows = rows_at(source.file, padded, source.packing)
            cast, norms_sbt, finite_bt = step(params, shard_batch(rows, mesh))
            norms_sbt, codes_bt = to_host(norms_sbt), codes_of(source, rows)
            for k, site in enumerate(source.sites):
                if site in source.limits:
                    codes_bt[(codes_bt == 0) & (norms_sbt[k] > source.limits[site])] = (
                        OUTLIER
                    )
            if not to_host(finite_bt)[codes_bt == 0].all():
                raise ValueError(
                    f"activations at {', '.join(map(str, source.sites))} are NaN or "
                    f"infinite in {source.dtype}; take "
                    "float32 activations and weights"
                )
            yield (
                part,
                codes_bt,
                {site: to_host(a) for site, a in cast.items()},
                norms_sbt,
            )

    return run
