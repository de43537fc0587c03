"""Activations for training: the right tokens with the right values, each once an epoch,
in an order that a kill keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sae_attr.activations import (
    ActivationBlock,
    ActivationSource,
    BlockStream,
    CorpusBatch,
    Masks,
    batch_function,
    cached_blocks,
    collector,
    inputs,
    live_blocks,
    mean_activation,
    mean_of,
    open_source,
    permute,
    read_index,
    write_cache,
)
from sae_attr.activations.blocks import count_tokens
from sae_attr.hooks import Site
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import LM_RULES, make_mesh, shard_tree
from sae_attr.sae_check.held_out import documents_with
from sae_attr.store import Store
from sae_attr.store.files import quote
from sae_attr.text import token_file
from sae_attr.text.masks import REASONS
from sae_attr.text.packed_rows import Packing, rows_at
from sae_attr.text.token_file import TokenFile, write_tokens
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests._processes import limited
from tests.attribution._tiny import llama, off, random_params
from tests.miniatures import write_tokenizer

pytestmark = pytest.mark.usefixtures("quick")

CONTEXT, VOCAB = 16, 105
CFG = replace(llama(), vocab=VOCAB)
LOW, HIGH = Site(0, "mlp_in"), Site(1)
REPO = Path(__file__).resolve().parents[2]
SINK = "~"  # the token whose activations are made huge


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    letters = list("abcdefghij") + ["</s>"]
    texts = ["".join(rng.choice(letters, rng.integers(1, 40))) for _ in range(60)]
    texts[7] += SINK + "abc"
    texts[30] += SINK
    return write_tokens(
        texts,
        load_tokenizer(write_tokenizer(folder / "tok", post=True)),
        folder / "file",
    )


@pytest.fixture(scope="module")
def params(file: TokenFile) -> Params:
    drawn = random_params(CFG)
    sink = int(file.ids_k.max())  # "~" has the largest id of those used
    return {**drawn, "embed": {"table": drawn["embed"]["table"].at[sink].mul(3000.0)}}


@pytest.fixture(scope="module")
def source(file: TokenFile, params: Params) -> ActivationSource:
    return make(file, params)


def make(
    file: TokenFile,
    params: Params,
    sites: tuple[Site, ...] = (LOW, HIGH),
    **options: Any,
) -> ActivationSource:
    packing = options.pop("packing", Packing(CONTEXT))
    return open_source(
        params, file, packing, sites, cfg=CFG, mesh=make_mesh("data=1"), **options
    )


def live(
    params: Params, source: ActivationSource, *, mesh: str = "data=1", **options: Any
) -> BlockStream:
    chosen = {"buffer_tokens": 10 * CONTEXT, "batch_rows": 4} | options
    return live_blocks(params, source, cfg=CFG, mesh=make_mesh(mesh), **chosen)


def tokens_in(blocks: BlockStream, epoch: int = 0) -> int:
    return sum(
        len(blocks.read(g).ids_k2)
        for g in range(epoch * blocks.per_epoch, (epoch + 1) * blocks.per_epoch)
    )


def sort(block: ActivationBlock) -> ActivationBlock:
    order = np.lexsort(block.ids_k2.T[::-1])
    return ActivationBlock(
        {site: acts[order] for site, acts in block.acts.items()}, block.ids_k2[order]
    )


def same(a: ActivationBlock, b: ActivationBlock) -> None:
    np.testing.assert_array_equal(a.ids_k2, b.ids_k2)
    assert a.acts.keys() == b.acts.keys()
    for site in a.acts:
        np.testing.assert_array_equal(a.acts[site], b.acts[site])


# ---- which tokens, which values ------------------------------------------------------


def test_values_are_those_of_each_document_alone(
    file: TokenFile, params: Params, source: ActivationSource
) -> None:
    found = collector(params, source, cfg=CFG, mesh=make_mesh("data=1"), batch_rows=4)(
        range(6)
    )
    step = jax.jit(lambda p, t: forward(p, t, cfg=CFG, keep=(LOW, HIGH)).acts)
    rows = rows_at(file, range(6), source.packing)
    for row, pos in found.ids_k2[:: len(found.ids_k2) // 12]:
        begin = pos - rows.since_bt[row, pos]
        piece = np.zeros((1, CONTEXT), np.int32)
        piece[0, : pos - begin + 1] = rows.tokens_bt[row, begin : pos + 1]
        alone = step(params, piece)
        k = int(np.flatnonzero((found.ids_k2 == (row, pos)).all(1))[0])
        for site in (LOW, HIGH):
            np.testing.assert_allclose(
                found.acts[site][k], alone[site][0, pos - begin], rtol=2e-5, atol=2e-6
            )


@pytest.mark.parametrize("exclude", [{"bos", "special"}, {"bos"}, set()])
@pytest.mark.parametrize("first_k", [0, 2])
def test_masked_tokens_do_not_appear(
    file: TokenFile, params: Params, exclude: set[str], first_k: int
) -> None:
    source = make(file, params, masks=Masks(frozenset(exclude), first_k, None))
    index = range(len(source.rows))
    found = collector(params, source, cfg=CFG, mesh=make_mesh("data=1"), batch_rows=32)(
        index
    )
    rows = rows_at(file, index, source.packing)
    expected = rows.valid_bt & (rows.since_bt >= first_k)
    if "special" in exclude:
        expected &= ~np.isin(rows.tokens_bt, (0, 1, 2, 3))
    if "bos" in exclude:
        expected &= rows.tokens_bt != 0
    assert sorted(map(tuple, found.ids_k2)) == sorted(zip(*np.nonzero(expected)))
    assert found.counts["kept"] == len(found.ids_k2) == expected.sum()
    assert sum(found.counts.values()) == rows.valid_bt.size
    assert found.counts["padding"] == (~rows.valid_bt).sum()
    assert (
        found.counts["bos"]
        == ("bos" in exclude) * (rows.tokens_bt == 0)[rows.valid_bt].sum()
    )
    assert (found.counts["first_k"] > 0) == (first_k > 0)


def test_norm_outliers(
    file: TokenFile, params: Params, source: ActivationSource
) -> None:
    index = range(len(source.rows))
    kept = collector(params, source, cfg=CFG, mesh=make_mesh("data=1"))(index)
    everything = make(file, params, masks=Masks(outlier=None))
    whole = collector(params, everything, cfg=CFG, mesh=make_mesh("data=1"))(index)
    for site in source.sites:
        norms = np.linalg.norm(whole.acts[site], axis=1)
        assert source.limits[site] == pytest.approx(
            10 * np.median(norms), rel=5e-3
        )  # all rows are in the sample
        assert np.linalg.norm(kept.acts[site], axis=1).max() <= source.limits[site]
    tokens = rows_at(file, index, source.packing).tokens_bt
    gone = set(map(tuple, whole.ids_k2)) - set(map(tuple, kept.ids_k2))
    assert gone >= set(
        zip(*np.nonzero(tokens == file.ids_k.max()))
    )  # at HIGH; LOW is behind a norm
    assert (
        kept.counts["norm_outlier"]
        == len(gone)
        == whole.counts["kept"] - kept.counts["kept"]
    )
    assert set(kept.counts) == set(REASONS)


@pytest.mark.parametrize("mesh", ["data=2,model=2", "data=4"])
def test_the_mesh_changes_nothing(
    params: Params, source: ActivationSource, mesh: str
) -> None:
    on = make_mesh(mesh)
    one = collector(params, source, cfg=CFG, mesh=make_mesh("data=1"), batch_rows=4)(
        range(7)
    )
    two = collector(
        shard_tree(params, LM_RULES, on), source, cfg=CFG, mesh=on, batch_rows=3
    )(range(7))
    np.testing.assert_array_equal(one.ids_k2, two.ids_k2)
    assert one.counts == two.counts
    for site in source.sites:
        assert off(two.acts[site], one.acts[site]) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_dtypes(
    file: TokenFile, params: Params, source: ActivationSource, dtype: str
) -> None:
    narrow = make(file, params, dtype=dtype)
    assert (
        narrow.limits == source.limits
    )  # measured in float32, and so an overflow of what is masked does no harm
    one = collector(params, source, cfg=CFG, mesh=make_mesh("data=1"))(range(9))
    two = collector(params, narrow, cfg=CFG, mesh=make_mesh("data=1"))(range(9))
    assert two.acts[HIGH].dtype == np.dtype(
        dtype if dtype == "float16" else ml_dtypes.bfloat16
    )
    np.testing.assert_array_equal(
        two.acts[HIGH], one.acts[HIGH].astype(two.acts[HIGH].dtype)
    )


# ---- order ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 4097])
def test_permutations(n: int) -> None:
    whole = permute(np.arange(n), n, 0, "row", 1)
    assert sorted(whole) == list(range(n))
    np.testing.assert_array_equal(
        permute(np.arange(n)[n // 3 :], n, 0, "row", 1), whole[n // 3 :]
    )
    assert n < 16 or (whole != permute(np.arange(n), n, 0, "row", 2)).any()


def test_permutations_are_even() -> None:
    """Places, and differences of neighbours, fall into ten bins as those of random
    permutations do.
    """
    n, bins = 20_000, 10
    for epoch in range(4):
        order = permute(np.arange(n), n, 7, "token", epoch)
        for values in (order[:2000], np.diff(order)[:2000] % n):
            counts = np.bincount(values * bins // n, minlength=bins)
            assert (
                (counts - 200.0) ** 2 / 200
            ).sum() < 28  # chi², 9 degrees: 1 in 1000
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    # must not change: resume hangs on it
    assert permute(np.arange(8), 8, 0, "row", 0).tolist() == [7, 2, 3, 0, 1, 6, 4, 5]


def epoch_of(batches: Any, tokens: int, size: int, epoch: int = 0) -> ActivationBlock:
    """The tokens of one epoch of the stream, cut out of its batches."""
    first, last = epoch * tokens // size, -(-(epoch + 1) * tokens // size)
    parts = [batches(step) for step in range(first, last)]
    skip = epoch * tokens - first * size
    pick = lambda arrays: np.concatenate(arrays)[skip : skip + tokens]
    return ActivationBlock(
        {s: pick([p.acts[s] for p in parts]) for s in parts[0].acts},
        pick([p.ids_k2 for p in parts]),
    )


@pytest.mark.parametrize("outlier", [10.0, None])
def test_every_token_once_an_epoch(
    file: TokenFile, params: Params, outlier: float | None
) -> None:
    source = make(file, params, masks=Masks(outlier=outlier))
    blocks = live(params, source)
    assert (blocks.count is None) == (outlier is not None)
    batches, tokens = batch_function(blocks, batch_size=48), tokens_in(blocks)
    assert tokens > 4 * 48
    assert blocks.per_epoch > 4
    all_at_once = collector(
        params, source, cfg=CFG, mesh=make_mesh("data=1"), batch_rows=4
    )(source.rows)
    orders = []
    for epoch in range(3):
        found = epoch_of(batches, tokens, 48, epoch)
        orders.append(found.ids_k2)
        assert all(len(batches(step).ids_k2) == 48 for step in (0, 5, 11))
        ours, theirs = (
            sort(found),
            sort(ActivationBlock(all_at_once.acts, all_at_once.ids_k2)),
        )
        np.testing.assert_array_equal(ours.ids_k2, theirs.ids_k2)
        for site in source.sites:  # aligned at both sites, too
            assert off(ours.acts[site], theirs.acts[site]) < 1e-6
    assert (orders[0] != orders[1]).any(1).mean() > 0.9
    first = {tuple(i) for i in orders[0][:160]}
    assert (
        len(first & {tuple(i) for i in orders[1][:160]}) < 100
    )  # other rows meet, not only another order


def test_resume_gives_the_same_batches(
    params: Params, source: ActivationSource, tmp_path: Path
) -> None:
    uninterrupted = batch_function(live(params, source), batch_size=50)
    expected = [uninterrupted(step) for step in range(30)]
    for step in (29, 13, 14, 0):
        same(batch_function(live(params, source), batch_size=50)(step), expected[step])
    other = batch_function(live(params, source, seed=1), batch_size=50, seed=1)(3)
    assert (other.ids_k2 != expected[3].ids_k2).any()

    ledger = Store(tmp_path)
    first = batch_function(live(params, source), batch_size=50, ledger=ledger)
    for step in range(14):
        first(step)
    reads: list[int] = []
    blocks = live(params, source)
    counted = replace(blocks, read=lambda g: reads.append(g) or blocks.read(g))
    again = batch_function(counted, batch_size=50, ledger=ledger)
    for step in range(14, 20):
        same(again(step), expected[step])
    assert (
        len(reads) == len(set(reads)) <= 5
    )  # each block once, and none of the earlier ones
    assert min(reads) >= 4
    other_size = live(params, source, buffer_tokens=20 * CONTEXT)  # has another ledger
    same(
        batch_function(other_size, batch_size=50, ledger=ledger)(9),
        batch_function(other_size, batch_size=50)(9),
    )


def test_what_a_trainer_asks_for(params: Params, source: ActivationSource) -> None:
    batches = batch_function(live(params, source), batch_size=20)
    x, y = inputs(batches, LOW, HIGH)(2)
    np.testing.assert_array_equal(x, batches(2).acts[LOW])
    np.testing.assert_array_equal(y, batches(2).acts[HIGH])
    np.testing.assert_array_equal(inputs(batches, HIGH)(2), y)


def test_how_well_a_block_mixes(file: TokenFile, params: Params) -> None:
    """Pairs of one batch come from the same row about as often as the number of rows in
    a block says.
    """
    source = make(file, params, masks=Masks(outlier=None))
    batches = batch_function(
        live(params, source, buffer_tokens=20 * CONTEXT), batch_size=64
    )
    rows = [batches(step).ids_k2[:, 0] for step in range(12)]
    share = np.mean(
        [
            (np.bincount(r) * (np.bincount(r) - 1)).sum() / (len(r) * (len(r) - 1))
            for r in rows
        ]
    )
    assert 0.03 < share < 0.07  # 1 / 20
    assert (
        np.mean(np.diff(np.concatenate(rows)) == 0) < 0.1
    )  # neighbours are no likelier


# ---- the cache -----------------------------------------------------------------------


def cache(
    folder: Path, params: Params, source: ActivationSource, **options: Any
) -> Any:
    chosen = {"lm": "tiny", "shard_tokens": 8 * CONTEXT, "batch_rows": 4} | options
    return write_cache(
        folder, params, source, cfg=CFG, mesh=make_mesh("data=1"), **chosen
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.suffix in (".npy", ".json")
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_the_same_set(
    file: TokenFile, params: Params, tmp_path: Path, dtype: str
) -> None:
    source = make(file, params, dtype=dtype)
    index = cache(tmp_path / "c", params, source)
    blocks = cached_blocks(tmp_path / "c", buffer_tokens=400)
    running = live(params, source)
    assert blocks.per_epoch == -(-len(index["shards"]) // (400 // max(index["shards"])))
    assert 1 < blocks.per_epoch < len(index["shards"])
    tokens = tokens_in(blocks)
    assert (
        tokens == sum(index["shards"]) == index["counts"]["kept"] == tokens_in(running)
    )
    assert sum(index["counts"].values()) == len(source.rows) * CONTEXT
    batches = batch_function(blocks, batch_size=48)
    from_model = sort(epoch_of(batch_function(running, batch_size=48), tokens, 48))
    epochs = [epoch_of(batches, tokens, 48, epoch) for epoch in (0, 1)]
    for epoch in epochs:
        ours = sort(epoch)
        np.testing.assert_array_equal(ours.ids_k2, from_model.ids_k2)
        for site in source.sites:
            assert off(ours.acts[site], from_model.acts[site]) < (
                1e-6 if dtype == "float32" else 1e-3
            )
    assert (epochs[0].ids_k2 != epochs[1].ids_k2).any(1).mean() > 0.9
    same(
        batch_function(cached_blocks(tmp_path / "c", buffer_tokens=400), batch_size=48)(
            17
        ),
        batches(17),
    )
    one_site = cached_blocks(tmp_path / "c", buffer_tokens=400, sites=(HIGH,)).read(0)
    assert list(one_site.acts) == [HIGH]


def test_a_cache_holds_no_more_shards_than_the_tokens_need(
    params: Params, source: ActivationSource, tmp_path: Path
) -> None:
    whole = cache(tmp_path / "whole", params, source)["shards"]
    some = cache(tmp_path / "some", params, source, tokens=whole[0] + 1)["shards"]
    assert some == whole[:2]
    first = bytes_of(tmp_path / "some" / "shard-000001")
    assert first == bytes_of(tmp_path / "whole" / "shard-000001")
    # Whoever needs less takes what is there; whoever needs more adds to it.
    assert cache(tmp_path / "some", params, source, tokens=1)["shards"] == some
    assert cache(tmp_path / "some", params, source)["shards"] == whole
    assert bytes_of(tmp_path / "some") == bytes_of(tmp_path / "whole")


def test_a_cache_that_was_cut_short_goes_on(
    params: Params,
    source: ActivationSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache(tmp_path / "whole", params, source)
    publish, done = Store.publish, []

    def killed(self: Store, key: str, *rest: Any, **more: Any) -> Any:
        if len(done) == 3:
            (
                tmp_path / "cut" / key
            ).mkdir()  # as a file system may leave a folder behind
            (tmp_path / "cut" / key / "ids.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(key)
        return publish(self, key, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            cache(tmp_path / "cut", params, source)
    with pytest.raises(ValueError, match="holds no complete cache"):
        cached_blocks(tmp_path / "cut", buffer_tokens=400)
    kept = os.stat(tmp_path / "cut" / "shard-000001" / "ids.npy").st_mtime_ns
    cache(tmp_path / "cut", params, source)
    assert os.stat(tmp_path / "cut" / "shard-000001" / "ids.npy").st_mtime_ns == kept
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from tests.activations import test_activations as t
from sae_attr.store import Store
from sae_attr.text.token_file import open_tokens
t.jax.config.update("jax_disable_most_optimizations", True)  # as here: another compilation has other last bits
params, (folder, tokens) = t.random_params(t.CFG), map(Path, sys.argv[1:])
source = t.make(open_tokens(tokens), params)
publish, count = Store.publish, []
def slow(self, key, *rest, **more):
    count.append(key)
    if len(count) == 4:
        more["write"] = lambda out: (print("in the middle", flush=True), sys.stdin.read())
    return publish(self, key, *rest, **more)
Store.publish = slow
t.cache(folder, params, source)
"""


@pytest.mark.slow
def test_a_writer_of_the_cache_that_is_killed(file: TokenFile, tmp_path: Path) -> None:
    params = random_params(CFG)
    cache(tmp_path / "whole", params, make(file, params))
    tokens = Path(str(file.ids_k.filename)).parent  # type: ignore[attr-defined]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(tokens)]
    with subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        with limited(process):
            assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert len(list((tmp_path / "cut").glob("shard-*"))) == 3
    cache(tmp_path / "cut", params, make(file, params))
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".tmp-*"))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)


def test_a_damaged_shard_or_index_of_the_cache_is_made_again(
    file: TokenFile, params: Params, source: ActivationSource, tmp_path: Path
) -> None:
    cache(tmp_path, params, source)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    index = (tmp_path / "index.json").read_bytes()
    for damage in (flipped, Path.unlink, lambda path: path.write_bytes(b"")):
        damage(next(iter(sorted(whole))))
        cache(tmp_path, params, source)
        assert all(path.read_bytes() == content for path, content in whole.items())
    for other in (b"[]", b'{"shards": [', b"{}", index.replace(b'"seed"', b'"seen"')):
        (tmp_path / "index.json").write_bytes(other)
        cache(tmp_path, params, source)
        assert (tmp_path / "index.json").read_bytes() == index


def test_a_cache_belongs_to_one_source(
    file: TokenFile, params: Params, source: ActivationSource, tmp_path: Path
) -> None:
    cache(tmp_path, params, source)
    with pytest.raises(ValueError, match=r"source.masks.first_k: 0 → 3"):
        cache(tmp_path, params, make(file, params, masks=Masks(first_k=3)))
    with pytest.raises(ValueError, match=r'lm: "tiny" → "other"'):
        cache(tmp_path, params, source, lm="other")
    with pytest.raises(ValueError, match=r"and not layer2.resid_post"):
        cached_blocks(tmp_path, buffer_tokens=99, sites=(Site(2),))
    (tmp_path / "shard-000002" / f"{quote(str(HIGH))}.npy").write_bytes(b"cut")
    with pytest.raises(ValueError, match="shard-000002 damaged"):
        cached_blocks(tmp_path, buffer_tokens=99)
    (tmp_path / "index.json").unlink()
    cache(tmp_path, params, source)
    assert read_index(tmp_path)["counts"]["kept"] == tokens_in(
        cached_blocks(tmp_path, buffer_tokens=99)
    )


# ---- statistics, memory, mistakes ----------------------------------------------------


def test_mean_of_a_stream_is_the_mean_over_the_corpus(
    file: TokenFile, params: Params, source: ActivationSource
) -> None:
    batches = batch_function(live(params, source), batch_size=64)
    chunks = [batches(step).acts[HIGH] for step in range(8)]
    got, x = mean_of(chunks), np.concatenate(chunks).astype(np.float64)
    assert got.tokens == 512
    assert off(got.mean_d, x.mean(0)) < 1e-6
    assert got.norm == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-6)
    assert got.mean_square == pytest.approx((x**2).sum(1).mean(), rel=1e-6)
    # the other route: `mean_activation` of rows of one document each
    cut = make(
        file,
        params,
        packing=Packing(CONTEXT, documents="cut"),
        masks=Masks(outlier=None),
    )
    found = collector(params, cut, cfg=CFG, mesh=make_mesh("data=1"))(range(16))
    rows = rows_at(file, range(16), cut.packing)
    counted = np.zeros((16, CONTEXT), bool)
    counted[tuple(found.ids_k2.T)] = True
    work = [CorpusBatch(rows.tokens_bt, rows.valid_bt, counted)]
    whole = mean_activation(params, work, cfg=CFG, site=HIGH, mesh=make_mesh("data=1"))
    ours = mean_of([found.acts[HIGH]])
    assert off(whole.mean_d, ours.mean_d) < 1e-5
    assert (whole.tokens, whole.norm, whole.mean_square) == pytest.approx(
        (ours.tokens, ours.norm, ours.mean_square), rel=1e-5
    )
    with pytest.raises(ValueError, match="no corpus position counts"):
        mean_of([])


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Blocks of 4000 tokens × 256 numbers from streams of 5 and of 50 blocks take the
    same memory.
    """

    def peak(blocks: int) -> int:
        def read(g: int) -> ActivationBlock:
            return ActivationBlock(
                {HIGH: np.full((4000, 256), g, np.float32)}, np.full((4000, 2), g)
            )

        batches = batch_function(BlockStream("made up", blocks, read), batch_size=1500)
        tracemalloc.start()
        for step in range(blocks * 4000 // 1500):
            batches(step)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    block = 4000 * 256 * 4 + 4000 * 16
    assert (
        peak(50) < 1.1 * peak(5) < 1.1 * 1.9 * block
    )  # one block, and a batch in two parts


def test_shards_are_read_into_one_block(tmp_path: Path) -> None:
    for g in range(4):
        arrays = {
            str(HIGH): np.full((1000, 256), g, np.float32),
            "ids": np.full((1000, 2), g),
        }
        Store(tmp_path).publish(f"shard-{g:06d}", arrays)
    index = {"shards": [1000] * 4, "source": {"sites": [str(HIGH)], "dtype": "float32"}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    blocks = cached_blocks(tmp_path, buffer_tokens=4000)
    tracemalloc.start()
    block = blocks.read(0)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        sorted(block.ids_k2[:, 0])
        == sorted(block.acts[HIGH][:, 7])
        == [0] * 1000 + [1] * 1000 + [2] * 1000 + [3] * 1000
    )
    assert used < 1.1 * (block.acts[HIGH].nbytes + block.ids_k2.nbytes)


def test_tokens_are_written_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok"))

    def peak(documents: int) -> int:
        tracemalloc.start()
        file = write_tokens(
            ("abcdefgh" * 50 for _ in range(documents)), tok, tmp_path / str(documents)
        )
        rows_at(file, range(8), Packing(64))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    monkeypatch.setattr(token_file, "_TEXTS", 16)
    peak(100)
    assert (
        peak(800) - peak(200) < 8 * 600 * 401 / 2
    )  # a list of the ids would take twice that; 0.5 MB of it hashes the file


def test_held_out_documents_are_counted_in_tokens(tmp_path: Path) -> None:
    texts = ["a"] * 300 + ["abcdefgh" * 4] * 8
    file = write_tokens(
        texts,
        load_tokenizer(write_tokenizer(tmp_path / "tok", post=True)),
        tmp_path / "file",
    )
    cut = Packing(CONTEXT, documents="cut")
    source = ActivationSource(
        file, cut, (LOW,), Masks(outlier=None), range(len(texts)), "float32"
    )
    rows = documents_with(source, cut, range(len(texts)), 200)
    assert (
        200 <= count_tokens(source, rows) < 216
    )  # one token a document, and BOS, which does not count
    assert len(documents_with(source, cut, range(300, 308), 1000)) == 8
    with pytest.raises(
        ValueError,
        match=r"40 tokens of 40 held-out documents count, too few .* raise held_out_share",
    ):
        documents_with(source, cut, range(40), 1000)


def test_bad_input(file: TokenFile, params: Params, source: ActivationSource) -> None:
    mesh = make_mesh("data=1")
    for options, message in (
        (
            {"packing": Packing(65)},
            "rows of 65 tokens are longer than the model's context of 64",
        ),
        ({"rows": range(5, 500)}, r"rows 5..499 are asked for but the file has 0\.\."),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"sites": ()}, "at least one site"),
        ({"sites": (Site(9),)}, "layer"),
        ({"masks": Masks(first_k=99)}, "no token of the corpus counts"),
    ):
        with pytest.raises(ValueError, match=message):
            make(file, params, **options)
    with pytest.raises(
        ValueError,
        match=r"document 0 .* has the token id 81, beyond the model.s embedding of 40 rows",
    ):
        open_source(params, file, Packing(8), (HIGH,), cfg=llama(), mesh=mesh)
    with pytest.raises(ValueError, match="blocks of 15 tokens hold no row of 16"):
        live(params, source, buffer_tokens=15)
    nothing = make(file, params, masks=Masks(first_k=99, outlier=None))
    with pytest.raises(ValueError, match="no token of the corpus counts"):
        batch_function(live(params, nothing), batch_size=4)(0)
    broken = {
        **params,
        "embed": {
            "table": params["embed"]["table"].at[int(file.ids_k[3])].set(jnp.nan)
        },
    }
    with pytest.raises(
        ValueError, match=r"activations at .* are NaN or infinite in float32"
    ):
        batch_function(live(broken, source), batch_size=400)(0)
