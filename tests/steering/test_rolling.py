"""A sweep whose rows take each other's places: the tokens of `steer`, whatever the
order, prompts read once, one program, no copy of the cache.
"""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae_attr.steering.waiting as waiting_module
from sae_attr.lm.cache import check_room
from sae_attr.lm.draw import Sampling
from sae_attr.lm.params import room_for_copy, unstacked
from sae_attr.parallel import make_mesh
from sae_attr.steering import SweepRow, row_keys, steer
from sae_attr.steering.rolling import (
    Programs,
    Steering,
    admit,
    decode,
    empty_rows,
    read_arms,
    read_below,
)
from tests.steering.test_plan import PROMPTS, planned, sampler, swept
from tests.steering.test_steered import CFG, PARAMS, RELU, SITE

pytestmark = pytest.mark.usefixtures("quick")

SAMPLING = Sampling(max_new=6, stop_ids=tuple(range(0, 50, 4)))


def steered(rows: list[SweepRow], tokens: str) -> dict[str, list[int]]:
    """The tokens of rows by `steer`, in one batch as wide as a sweep's."""
    out = steer(
        PARAMS,
        [PROMPTS[row.prompt] for row in rows],
        np.array([row.condition.latent for row in rows]),
        np.array([row.condition.strength for row in rows]),
        row_keys(jax.random.key(1), rows),
        cfg=CFG,
        site=SITE,
        tokens=tokens,
        sampling=SAMPLING,
        unit=2.0,
        sae=RELU,
    )
    tokens_of = {}
    for row, ids, length, stopped in zip(
        rows, out.tokens_bn, out.length_b, out.stopped_b, strict=True
    ):
        tokens_of[row.id] = ids[: length - int(stopped)].tolist()
    return tokens_of


def test_a_sweep_draws_the_tokens_of_steer_and_reads_each_prompt_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for function in (read_below, read_arms):

        def counted(*args: Any, _function: Any = function, **more: Any) -> Any:
            calls.append(_function.__name__)
            return _function(*args, **more)

        monkeypatch.setattr(waiting_module, function.__name__, counted)
    programs = (read_below, read_arms, admit, decode)
    before = [program._cache_size() for program in programs]
    scopes = ("all", "generated")
    rows = list(planned(tokens=scopes).rows)
    settings: dict[str, Any] = {"mesh": make_mesh("data=1"), "sampling": SAMPLING}
    whole = swept(rows, **settings)
    lengths = {len(done.ids) for done in whole.values()}
    assert len(lengths) > 3  # rows end at steps of their own
    for tokens in scopes:
        of_scope = [row for row in rows if row.condition.tokens in ("", tokens)]
        for name, ids in steered(of_scope, tokens).items():
            assert list(whole[name].ids) == ids
    # Four conditions that reach the prompt, and all that leave it as it is.
    arms = len(PROMPTS) * (4 + 1)
    assert calls.count("read_below") == len(PROMPTS)
    assert calls.count("read_arms") == -(-arms // 4)
    assert [program._cache_size() for program in programs] == [n + 1 for n in before]
    # In another order, and only a part of them: the same to the bit, nothing compiled.
    part = random.Random(0).sample(rows, 31)
    assert swept(part, **settings) == {row.id: whole[row.id] for row in part}
    assert [program._cache_size() for program in programs] == [n + 1 for n in before]


@pytest.mark.parametrize("by_layer", [True, False])
def test_rows_at_steps_of_their_own_copy_no_cache(by_layer: bool) -> None:
    rows = 3
    params = unstacked(PARAMS, cfg=CFG) if by_layer else PARAMS
    programs = Programs(CFG, SITE, "add", SAMPLING, 8, make_mesh("data=1"))
    state = empty_rows(programs, rows=rows, dtype="float32")
    coordinates = (jnp.zeros((rows, 1, CFG.d_model)), jnp.zeros((rows, 1)), None, None)
    scope_b = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)
    lowered = decode.lower(
        params, state, Steering(coordinates, scope_b), 0, programs=programs
    )
    lines = lowered.compile().as_text().splitlines()
    for axes in ((CFG.head_dim, programs.slots), (programs.slots, CFG.head_dim)):
        shape = (rows, CFG.n_kv_heads, *axes)
        of_cache = f"= f32[{','.join(map(str, shape))}]"
        of_shape = [line for line in lines if of_cache in line]
        assert of_shape
        assert [line for line in of_shape if " copy(" in line] == []


def test_a_batch_that_the_mesh_does_not_divide() -> None:
    with pytest.raises(
        ValueError, match="batch_size is 3, but the mesh spreads rows over data=2"
    ):
        swept(planned().rows, batch_size=3)
    assert sampler().programs.width == 16


def test_a_cache_larger_than_its_devices() -> None:
    device = SimpleNamespace(
        platform="gpu", memory_stats=lambda: {"bytes_limit": 2**30}
    )
    mesh: Any = SimpleNamespace(local_devices=[device], shape={"data": 2, "model": 1})
    room = partial(check_room, CFG, slots=4096, dtype="float32", mesh=mesh)
    room(rows=64)
    with pytest.raises(
        ValueError,
        match=r"4096 rows and 4096 tokens takes 1\.5 GiB on each of 2 devices, which "
        r"have 1\.0; lower the batch size",
    ):
        room(rows=4096)
    assert room_for_copy(2**28, mesh)
    assert not room_for_copy(2**28 + 1, mesh)
