"""Activations in a cache on disk, and blocks of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from sae_attr.activations.block_sources import (
    VERSION,
    blocks_of_rows,
    rows_of_block,
)
from sae_attr.activations.blocks import (
    ActivationSource,
    Collect,
    collector,
    describe,
)
from sae_attr.activations.shuffle import ActivationBlock, BlockStream, permute
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import from_main, is_main
from sae_attr.site_names import parse_site
from sae_attr.store import (
    Meta,
    PathLike,
    Store,
    claim_workdir,
    digest,
    lock_workdir,
    write_atomic,
)
from sae_attr.store.files import json_row, quote, read_array
from sae_attr.text.masks import REASONS

INDEX = "index.json"  # of a cache; written last


def write_cache(
    folder: PathLike,
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    lm: str,
    tokens: int | None = None,
    shard_tokens: int = 1 << 16,
    batch_rows: int = 16,
    seed: int = 0,
    progress: bool = False,
    collect: Collect | None = None,
) -> Meta:
    """Computes the activations of a source once into shards of random rows; shards that
    are there already stay.

    A shard is an entry of a `Store`, published whole: after a kill at any moment the
    next call goes on at the next shard, and the bytes are those of an uninterrupted run
    (with another mesh or `batch_rows` the last bits may differ).

    Args:
      folder: local or in a bucket; it belongs to one source, model and seed.
      lm: what names the model: the fingerprint of its folder.
      tokens: that are needed: no further shard is begun once there are as many. Shards
        hold random rows, so the first ones are a sample of the source. Default all of
        the source; a later call that needs more adds shards.
      shard_tokens: positions of a shard; about the same number of tokens × the width of
        each site lie in one file.
      collect: as for `live_blocks`; `lm` names all models in it.

    Returns:
      The index: tokens of each shard, counts by reason, the source.

    Raises:
      ValueError: the folder holds the cache of another source (says which fields
        differ), or no token counts.
      RuntimeError: another run is writing it.
    """
    folder = epath.Path(folder)
    per_epoch, rows = blocks_of_rows(source, shard_tokens)
    config = {
        "version": VERSION,
        "lm": lm,
        "seed": seed,
        "shard_rows": rows,
        "source": describe(source),
    }
    # Not own_workdir: shards are named by number, so that a folder that was begun has
    #   to stay this source's.
    with lock_workdir(folder, wait=True) if is_main() else contextlib.nullcontext():
        if is_main():
            claim_workdir(folder, config)
        store = Store(folder, writer=is_main())
        # The forward pass runs on all processes or none: process 0 decides for all.
        if from_main(_has_index(store, folder, config, tokens, per_epoch)):
            return read_index(folder)
        if collect is None:
            collect = collector(
                params, source, cfg=cfg, mesh=mesh, batch_rows=batch_rows
            )
        shards, total = 0, 0
        with _progress_bar(per_epoch, shard_tokens, tokens, progress) as bar:
            while shards < per_epoch and (tokens is None or total < tokens):
                total += _write_shard(store, source, shards, rows, seed, collect)
                shards += 1
                bar.update()
        if is_main():
            write_atomic(
                folder / INDEX, json.dumps(_index(store, shards) | config, indent=1)
            )
    from_main(True)  # nobody reads before it is written
    return read_index(folder)


def _progress_bar(
    per_epoch: int, shard_tokens: int, tokens: int | None, progress: bool
) -> tqdm:
    """A bar over the shards that will be written, as far as that can be told: masks
    leave some tokens out, which may make it one more.
    """
    total = per_epoch
    if tokens is not None:
        total = min(per_epoch, -(-tokens // shard_tokens))
    return tqdm(total=total, desc="activations", unit="shard", disable=not progress)


def _write_shard(
    store: Store,
    source: ActivationSource,
    g: int,
    rows: int,
    seed: int,
    collect: Collect,
) -> int:
    """Writes shard g unless it is there, and returns its number of tokens."""
    # Every byte of a shard is read here, so that readers need compare sizes alone.
    if from_main(store.is_whole(_shard(g))):
        return from_main(_tokens_of(store, g))
    _discard(store, _shard(g))
    counted = collect(rows_of_block(source, g, rows, seed))
    arrays = {str(site): acts for site, acts in counted.acts.items()}
    arrays["ids"] = counted.ids_k2
    meta = {"tokens": len(counted.ids_k2), "counts": counted.counts}
    store.publish(_shard(g), arrays, meta)
    return len(counted.ids_k2)


def read_index(folder: PathLike) -> Meta:
    """Reads the index of a complete cache.

    Raises:
      ValueError: no complete cache lies there.
    """
    path = epath.Path(folder) / INDEX
    index = json_row(path.read_bytes()) if path.is_file() else None
    if index is None or not index.keys() >= {"shards", "source"}:
        raise ValueError(
            f"{os.fspath(path.parent)} holds no complete cache of activations; "
            "write_cache makes or ends one"
        )
    return index


def _has_index(
    store: Store,
    folder: epath.Path,
    config: Meta,
    tokens: int | None,
    per_epoch: int,
) -> bool:
    """Returns True if the index is that of this source and its shards are whole and
    enough. A damaged index counts as absent: to write it again costs nothing.
    """
    try:
        index = read_index(folder)
    except ValueError:
        return False
    # Through JSON, as the index went: a tuple there is a list.
    fields = json.loads(json.dumps(config))
    if any(index.get(name) != value for name, value in fields.items()):
        return False
    sizes = index["shards"]
    enough = len(sizes) == per_epoch or (tokens is not None and sum(sizes) >= tokens)
    return enough and all(store.is_whole(_shard(g)) for g in range(len(sizes)))


def _discard(store: Store, key: str) -> None:
    """Removes a damaged shard with a warning; does nothing where there is none."""
    if store.writer and store.path(key).exists():
        logging.warning(
            "%s is damaged; it is computed again", os.fspath(store.path(key))
        )
        store.discard(key)


def cached_blocks(
    folder: PathLike,
    *,
    buffer_tokens: int,
    seed: int = 0,
    sites: Sequence[Site] | None = None,
) -> BlockStream:
    """Returns blocks of several shards each, drawn anew in each epoch.

    Args:
      buffer_tokens: at most this many tokens are in memory (but at least one shard).
        With a single shard a block, only the order of blocks and tokens differs between
        epochs, not which tokens meet.
      sites: the ones to read; default all of the cache.

    Raises:
      ValueError: no complete cache, a site that it does not have, a shard that is
        damaged.
    """
    index, store = read_index(folder), Store(folder, writer=False)
    names = index["source"]["sites"] if sites is None else [str(site) for site in sites]
    if absent := sorted(set(names) - set(index["source"]["sites"])):
        raise ValueError(
            f"{os.fspath(folder)} has {index['source']['sites']} and not "
            f"{', '.join(absent)}"
        )
    sizes = np.asarray(index["shards"])
    # By file sizes: to hash all shards would read the whole cache before the first step.
    if broken := [_shard(i) for i in range(len(sizes)) if not store.has(_shard(i))]:
        raise ValueError(
            f"{os.fspath(folder)}: {', '.join(broken)} damaged; remove {INDEX} and "
            "write the cache again"
        )
    per_block = max(1, int(buffer_tokens // max(sizes)))
    per_epoch = -(-len(sizes) // per_block)

    def shards(g: int) -> np.ndarray:
        epoch, k = divmod(g, per_epoch)
        places = np.arange(k * per_block, min((k + 1) * per_block, len(sizes)))
        return permute(places, len(sizes), seed, "shard", epoch)

    def read(g: int) -> ActivationBlock:
        return _read_shards(store, shards(g), sizes, names, index["source"]["dtype"])

    return BlockStream(
        digest([index, per_block, seed]),
        per_epoch,
        read,
        lambda g: int(sizes[shards(g)].sum()),
    )


def _shard(g: int) -> str:
    return f"shard-{g:06d}"


def _shard_meta(store: Store, g: int) -> Meta:
    return json.loads((store.path(_shard(g)) / "meta.json").read_text())


def _tokens_of(store: Store, g: int) -> int:
    return _shard_meta(store, g)["tokens"]


def _index(store: Store, shards: int) -> Meta:
    """Tokens of each shard and the counts of all; ValueError if nothing counts."""
    metas = [_shard_meta(store, g) for g in range(shards)]
    counts = {name: sum(meta["counts"][name] for meta in metas) for name in REASONS}
    if not counts["kept"]:
        raise ValueError(
            "no token of the corpus counts; exclude fewer tokens or give more text"
        )
    return {"shards": [meta["tokens"] for meta in metas], "counts": counts}


def _read_shards(
    store: Store,
    shards: np.ndarray,
    sizes: np.ndarray,
    names: Sequence[str],
    dtype: str,
) -> ActivationBlock:
    """Reads shards one after another into one array a site; each file is closed before
    the next is mapped.
    """
    total, used, acts = int(sizes[shards].sum()), 0, {}
    ids_k2 = np.empty((total, 2), np.int64)
    for i in shards:
        place = slice(used, used := used + int(sizes[i]))
        folder = store.path(_shard(int(i)))
        ids_k2[place] = read_array(folder / "ids.npy", "int64")
        for name in names:
            acts_kd = read_array(folder / f"{quote(name)}.npy", dtype)
            if name not in acts:
                acts[name] = np.empty((total, acts_kd.shape[1]), jnp.dtype(dtype))
            acts[name][place] = acts_kd
    return ActivationBlock(
        {parse_site(name): array for name, array in acts.items()}, ids_k2
    )
