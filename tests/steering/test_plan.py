"""Plans: names, keys, costs; and a sweep that is stopped and continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.hooks import Site
from sae_attr.lm.draw import Sampling
from sae_attr.parallel import make_mesh
from sae_attr.steering import (
    NO_LATENT,
    Condition,
    Plan,
    SampledRow,
    Sampler,
    SweepRow,
    every_condition,
    row_keys,
    sample_batches,
    sample_rows,
)
from sae_attr.steering.plan import stable_hash
from sae_attr.store import Store
from tests.steering.test_steered import CFG, PARAMS, RELU

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = {"a/b": [1, 7, 3], "c d": [1, 9, 30, 4, 4, 21, 8], "é": [5]}


def planned(
    latents: Sequence[int] = (3, 5),
    strengths: Sequence[float] = (-2, 2.0),
    prompts: Sequence[str] = tuple(PROMPTS),
    samples: int = 2,
    **fields: Any,
) -> Plan:
    conditions = every_condition(latents, strengths, **fields)
    return Plan(conditions, tuple(prompts), samples)


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
        SweepRow("a/b", 1, Condition.steered(3, -0.1), case="x/y", model="m").id
        == "x%2Fy/m/3/away/all/-0.1/a%2Fb/1/0"
    )
    assert SweepRow("b", 1, case="a/").id != SweepRow("b", 1, case="a", model="/").id
    assert one.rows[0].again().id == one.rows[0].id[:-1] + "1"
    assert {(c.direction, np.sign(c.strength)) for c in one.conditions} == {
        ("", 0),
        ("away", -1),
        ("toward", 1),
    }
    away = every_condition([3], [1.0, -1.0], direction="away")
    assert {c.direction for c in away if c.latent != NO_LATENT} == {"away"}


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
    anew = np.asarray(jax.random.key_data(row_keys(key, [r.again() for r in rows])))
    assert not set(named.values()) & {words.tobytes() for words in anew}
    want = key
    for number in (stable_hash("c d"), 1, 2):
        want = jax.random.fold_in(want, number)
    got = row_keys(
        key, [None, SweepRow("c d", 1, Condition.steered(9, 3.0), attempt=2)]
    )[1]
    assert (jax.random.key_data(got) == jax.random.key_data(want)).all()


def test_cost_and_what_cannot_be() -> None:
    cost = planned().cost({k: len(v) for k, v in PROMPTS.items()}, max_new=9)
    assert (cost.rows, cost.prompt_tokens, cost.new_tokens) == (30, 110, 270)
    with pytest.raises(
        ValueError, match="6 rows are in the plan twice, the first is '//3/toward"
    ):
        planned(latents=[3], strengths=[1, 1.0])
    with pytest.raises(ValueError, match="samples is 0"):
        planned(samples=0)


def test_values_are_looked_up_by_condition() -> None:
    one = planned()
    values = one.by_condition(np.arange(len(one.rows)))
    for condition in one.conditions:
        numbers = [r for r, row in enumerate(one.rows) if row.condition == condition]
        assert values[condition].shape == (3, 2)
        assert values[condition].ravel().tolist() == numbers
    # Both sides of a latent without a coherent strength stay two conditions.
    assert Condition.steered(3, 0.0) != Condition(3, -1, 0.0, "toward", "all")


def sampler(**fields: Any) -> Sampler:
    settings: dict[str, Any] = {
        "params": PARAMS,
        "prompts": PROMPTS,
        "vectors": RELU,
        "key": jax.random.key(1),
        "cfg": CFG,
        "site": Site(1),
        "mesh": make_mesh("data=2,model=2"),
        "batch_size": 8,
        "sampling": Sampling(max_new=5, stop_ids=(4,)),
        "unit": 2.0,
    }
    return Sampler(**{**settings, **fields})


def swept(rows: Sequence[SweepRow], **more: Any) -> dict[str, SampledRow]:
    work = sample_batches(sampler(**more), rows)
    return {done.row.id: done for batch in work for done in batch}


def test_a_sweep_continues_and_shares_its_random_numbers() -> None:
    """Rows that run later, beside others, come out the same; one of strength 0 is the
    unsteered row of its sample.
    """
    rows = list(planned(strengths=(0.0, 3.0)).rows)
    whole = swept(rows)
    assert sorted(whole) == sorted(row.id for row in rows)
    part = swept(rows[5:9] + rows[20:23])
    assert part == {name: whole[name] for name in part}
    plain = {
        (r.prompt, r.sample): whole[r.id].ids
        for r in rows
        if r.condition.latent == NO_LATENT
    }
    assert all(
        whole[r.id].ids == plain[r.prompt, r.sample]
        for r in rows
        if not r.condition.strength
    )
    assert any(
        whole[r.id].ids != plain[r.prompt, r.sample]
        for r in rows
        if r.condition.strength
    )
    assert len({plain[p, s] for p in PROMPTS for s in range(2)}) == 6
    assert all(
        4 not in d.ids and (d.stopped or len(d.ids) == 5) and d.logp < 0
        for d in whole.values()
    )


def test_a_stopped_sweep_goes_on_with_the_rows_that_are_left(tmp_path: Path) -> None:
    """Also in batches of another size: a row does not depend on its batch."""
    rows = planned(strengths=(3.0,)).rows
    whole = swept(rows)
    progress = Store(tmp_path).progress("s")
    asked: list[int] = []
    before: list[int] = []

    def stopped(left: Sequence[SweepRow]) -> Iterator[list[SampledRow]]:
        asked.append(len(left))
        if len(asked) == 1:
            first = next(iter(sample_batches(sampler(), left)))
            before.append(len(first))
            yield first
            raise KeyboardInterrupt
        yield from sample_batches(sampler(batch_size=4), left)

    with pytest.raises(KeyboardInterrupt):
        sample_rows(rows, stopped, progress, bar=False)
    done = sample_rows(rows, stopped, progress, bar=False)
    assert asked == [18, 18 - before[0]]
    assert [one.row for one in done] == list(rows)
    assert {one.row.id: one.ids for one in done} == {
        name: one.ids for name, one in whole.items()
    }
    assert sample_rows(rows, stopped, progress, bar=False) == done
    assert len(asked) == 2


def test_a_latent_without_a_vector() -> None:
    work = sample_batches(
        sampler(vectors={3: np.zeros(16)}, mesh=make_mesh("data=1"), batch_size=1),
        [SweepRow("é", 0, Condition.steered(9, 1.0))],
    )
    with pytest.raises(ValueError, match="latent 9 has no vector; there are 3"):
        next(work)
