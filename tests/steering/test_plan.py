"""Plans: names, keys, batches, costs; and a sweep that is stopped and continued."""

from __future__ import annotations

import random
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.hooks import Site
from sae_attr.lm.sample import Sampling
from sae_attr.parallel import make_mesh
from sae_attr.steering import (
    NONE,
    Done,
    Plan,
    Row,
    again,
    batches,
    make_plan,
    row_keys,
    stable_hash,
    sweep,
)
from tests.steering.test_steered import CFG, PARAMS, RELU

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = {"a/b": [1, 7, 3], "c d": [1, 9, 30, 4, 4, 21, 8], "é": [5]}


def planned(**fields: Any) -> Plan:
    return make_plan(
        **{
            "latents": [3, 5],
            "strengths": (-2, 2.0),
            "prompts": list(PROMPTS),
            "samples": 2,
            **fields,
        }
    )


def test_ids_are_unique_and_stable() -> None:
    one = planned()
    assert len(one.rows) == 3 * 2 * (1 + 2 * 2)
    assert len({row.id for row in one.rows}) == len(one.rows)
    assert {
        r.id
        for r in planned(
            latents=[5, 3], strengths=[2, -2], prompts=list(PROMPTS)[::-1]
        ).rows
    } == {r.id for r in one.rows}
    assert (
        Row("a/b", 1, 3, -0.1, "away", "all", "x/y", "m").id
        == "x%2Fy/m/3/away/all/-0.1/a%2Fb/1/0"
    )
    assert Row("b", 1, case="a/").id != Row("b", 1, case="a", model="/").id
    assert again(one.rows[0]).id == one.rows[0].id[:-1] + "1"
    assert {(r.direction, np.sign(r.strength)) for r in one.rows} == {
        ("", 0),
        ("away", -1),
        ("toward", 1),
    }
    assert all(
        r.direction == "away" for r in planned(direction="away", unsteered=False).rows
    )


def test_keys_know_prompt_sample_and_attempt_alone() -> None:
    rows = list(planned().rows)
    key = jax.random.key(7)
    data = np.asarray(jax.random.key_data(row_keys(key, rows)))
    named: dict[tuple[str, int], bytes] = {}
    for row, words in zip(rows, data, strict=True):
        assert (
            named.setdefault((row.prompt, row.sample), words.tobytes())
            == words.tobytes()
        )
    assert len(set(named.values())) == 6
    anew = np.asarray(jax.random.key_data(row_keys(key, [again(r) for r in rows])))
    assert not set(named.values()) & {words.tobytes() for words in anew}
    want = key
    for number in (stable_hash("c d"), 1, 2):
        want = jax.random.fold_in(want, number)
    got = row_keys(key, [None, Row("c d", 1, 9, 3.0, attempt=2)])[1]
    assert (jax.random.key_data(got) == jax.random.key_data(want)).all()


def test_batches_have_one_shape_and_take_what_is_left() -> None:
    one = planned(tokens=("all", "prompt"))
    done = {row.id for row in random.Random(0).sample(one.rows, 20)}
    left = one.unfinished(done)
    found = list(batches(left, 7))
    assert {len(b) for b in found} == {7}
    assert sorted(r.id for b in found for r in b if r) == sorted(
        {r.id for r in one.rows} - done
    )
    assert all(len({r.tokens or "all" for r in b if r}) == 1 for b in found)
    assert list(batches([], 7)) == []


def test_cost_and_what_cannot_be() -> None:
    cost = planned().cost({k: len(v) for k, v in PROMPTS.items()}, max_new=9)
    assert (cost.rows, cost.prompt_tokens, cost.new_tokens) == (30, 110, 270)
    assert planned(strengths={3: [1.0], 5: []}).rows[-1].latent == 3
    with pytest.raises(ValueError, match="latent 5 has no strength"):
        planned(strengths={3: [1.0]})
    with pytest.raises(
        ValueError, match="6 rows stand twice in the plan, the first is"
    ):
        planned(latents=[3], strengths=[1, 1.0])
    with pytest.raises(ValueError, match="samples is 0"):
        planned(samples=0)
    with pytest.raises(ValueError, match="stand twice"):
        planned() + planned()


def swept(rows: list[Row], size: int = 8, **more: Any) -> dict[str, Done]:
    mesh = make_mesh("data=2,model=2")
    settings = {"sampling": Sampling(max_new=5, stop_ids=(4,)), "unit": 2.0, **more}
    work = sweep(
        PARAMS,
        rows,
        PROMPTS,
        RELU,
        jax.random.key(1),
        cfg=CFG,
        site=Site(1),
        mesh=mesh,
        batch_size=size,
        **settings,
    )
    return {done.row.id: done for batch in work for done in batch}


def test_a_sweep_continues_and_shares_its_random_numbers() -> None:
    """Rows that run later, beside others, come out the same; one of strength 0 is the
    unsteered row of its sample.
    """
    rows = list(planned(strengths=(0.0, 3.0)).rows)
    whole = swept(rows)
    assert list(whole) == [row.id for row in rows]
    part = swept(rows[5:9] + rows[20:23])
    assert part == {name: whole[name] for name in part}
    plain = {(r.prompt, r.sample): whole[r.id].ids for r in rows if r.latent == NONE}
    assert all(
        whole[r.id].ids == plain[r.prompt, r.sample] for r in rows if r.strength == 0
    )
    assert any(whole[r.id].ids != plain[r.prompt, r.sample] for r in rows if r.strength)
    assert len({plain[p, s] for p in PROMPTS for s in range(2)}) == 6
    assert all(
        4 not in d.ids and (d.stopped or len(d.ids) == 5) and d.logp < 0
        for d in whole.values()
    )


def test_a_latent_without_a_vector() -> None:
    work = sweep(
        PARAMS,
        [Row("é", 0, 9, 1.0)],
        PROMPTS,
        {3: np.zeros(16)},
        jax.random.key(1),
        cfg=CFG,
        site=Site(1),
        mesh=make_mesh("data=1"),
        batch_size=1,
    )
    with pytest.raises(ValueError, match="latent 9 has no vector; there are 3"):
        next(work)
