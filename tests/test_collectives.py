"""What the compiled programs say to other devices: scoring nothing at all, independent
rows nothing, layers that are split what their layout asks for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import collectives as benchmark
from benchmarks._hlo import Collective, collectives
from sae_attr.hooks import Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.params import init_params
from sae_attr.parallel import LM_RULES, make_mesh, shard_tree

SMALL = {
    **benchmark.LLAMA,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BRANCHES = """HloModule branches
%small (a: f32[2]) -> f32[2] {
  ROOT %sum = f32[2] all-reduce(f32[2] %a), to_apply=%add
}
%large (a: f32[2]) -> f32[8] {
  ROOT %all = f32[8] all-gather(f32[2] %a), dimensions={0}
}
%body (p: s32[]) -> s32[] {
  %case = f32[8] conditional(s32[] %p, f32[2] %x, f32[2] %x), branch_computations={%small, %large}
}
ENTRY %main (p: s32[]) -> s32[] {
  ROOT %loop = s32[] while(s32[] %p), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"2"}}
}
"""
SHAPE = benchmark.Shape(
    config_from_hf(SMALL), Site(0), rows=4, prompt=6, completion=2, latents=64
)
LOOP = """HloModule loop
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}
%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %all = (bf16[8,4]{1,0}, f32[2]{0}) all-reduce(bf16[8,4]{1,0} %x, f32[2]{0} %y), to_apply=%add
  %inner = s32[] while(s32[] %i), condition=%less, body=%deep
}
%deep (p: s32[]) -> s32[] {
  %part = f32[4]{0} all-gather(f32[1]{0} %z), dimensions={0}
}
%less (p: s32[]) -> pred[] {
  ROOT %is_less = pred[] compare(s32[] %p, s32[] %n), direction=LT
}
ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %loop = (s32[], bf16[8,4]{1,0}) while((s32[], bf16[8,4]{1,0}) %t), condition=%less, body=%body, TRIPS
  %start = (f32[2]{0}, f32[2]{0}) all-reduce-start(f32[2]{0} %w), to_apply=%add
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_loops_count_as_often_as_they_run() -> None:
    assert collectives(LOOP) == [
        Collective("all-reduce", 5, 8 * 4 * 2 + 2 * 4),
        Collective("all-gather", 5, 16),
        Collective("all-reduce", 1, 8),
    ]


def test_the_text_of_a_program_of_this_jax_is_read() -> None:
    mesh = make_mesh("model=4")
    at = lambda *spec: jax.NamedSharding(mesh, P(*spec))

    def layers(w_lde: jax.Array, x_bd: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_bd, w_lde)[0]

    shardings = (at(None, "model", None), at())
    program = jax.jit(layers, in_shardings=shardings, out_shardings=at())
    compiled = program.lower(jnp.zeros((6, 8, 8)), jnp.zeros((2, 8))).compile()
    reduced = [
        c for c in collectives(str(compiled.as_text())) if c.kind == "all-reduce"
    ]
    assert reduced == [Collective("all-reduce", 6, 2 * 8 * 4)]
    with pytest.raises(ValueError, match="no compiled program"):
        collectives("module @jit_layers {}")


@pytest.mark.parametrize("mesh", ["data=1,model=4", "data=2,model=2", "data=4"])
def test_scoring_has_no_collective_before_its_merge(mesh: str) -> None:
    text = benchmark.scoring(SHAPE, {}, make_mesh(mesh))
    assert "dot" in text
    assert collectives(text) == []


def test_gradients_of_independent_rows_have_no_collective() -> None:
    host = init_params(SHAPE.cfg, jax.random.key(0))
    mesh = make_mesh("data=4")
    text = benchmark.gradients(SHAPE, shard_tree(host, LM_RULES, mesh), mesh)
    assert collectives(text) == []


@pytest.mark.parametrize(("data", "model"), [(4, 1), (1, 4)])
def test_layers_talk_as_little_as_their_layout_allows(data: int, model: int) -> None:
    mesh = make_mesh(f"data={data},model={model}")
    host = init_params(SHAPE.cfg, jax.random.key(0))
    text = benchmark.reading(SHAPE, shard_tree(host, LM_RULES, mesh), mesh)
    of_program = collectives(text)
    number, size = benchmark.least("reading", SHAPE, data, model)
    assert number == (0 if model == 1 else 1 + 2 * SHAPE.cfg.n_layers)
    assert np.sum([one.times for one in of_program]) == number
    assert np.sum([one.times * one.bytes for one in of_program]) == size


@pytest.mark.parametrize(("data", "model"), [(4, 1), (1, 4), (2, 2)])
def test_training_an_sae_has_no_collective_in_its_loops(data: int, model: int) -> None:
    """Winners, sums and gradients cross once each, however many latents are active."""
    text = benchmark.sae_training(SHAPE, {}, make_mesh(f"data={data},model={model}"))
    of_program = collectives(text, most=False)
    assert sum(one.times for one in of_program) <= 12
    _, size = benchmark.least("SAE training", SHAPE, data, model)
    parameters = (2 * SHAPE.latents * SHAPE.cfg.d_model + SHAPE.latents) // model * 4
    gradients = [one for one in of_program if parameters <= one.bytes < 2 * parameters]
    assert data == 1 or [one.times for one in gradients] == [1], (size, of_program)


def test_of_branches_the_one_with_the_most_bytes_counts() -> None:
    assert collectives(BRANCHES) == [Collective("all-gather", 2, 32)]
    assert collectives(BRANCHES, most=False) == [Collective("all-reduce", 2, 8)]
