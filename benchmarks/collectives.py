"""Collectives of one step of every stage, from the compiled programs, beside the least
possible.

Command: python -m benchmarks.collectives
Hardware: any CPU; eight devices are simulated, and nothing is executed but a forward
  pass; about two minutes on 2 cores.
Measured: number and bytes (of a result on one device) of all-reduces, all-gathers and
  others in the optimised text, times the trips of the loops around them, for the meshes
  data × model of 1×8, 2×4 and 8×1. A step of an SAE has branches (dead latents; tokens
  with more active latents than were looked at first): the first numbers are of those
  with the fewest bytes, "at most" of those with the most. Shape: a Llama of 8 layers, d 512, 16 heads of which
  8 for keys, MLP 1,408, vocabulary 8,192; 16 rows of 64 + 64 tokens, site after layer 3;
  an SAE of 4,096 latents on 1,024 tokens.
Least: what the layout of the weights asks for. With `model` above 1, an all-reduce of
  the rows' residual stream after each `o` and each `down` on the way up, one each on the
  way back through the layers above the site, and those of embedding and logits. With
  `data` above 1, none for gradients at a site, whose rows are independent, and one of the
  SAE's parameters (its shard of them) for a training step.
Expect: scoring has none at all on any mesh; gradients have none on 8×1. The status is 1
  where that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEVICES = 8
FLAG = f"--xla_force_host_platform_device_count={DEVICES}"
if __name__ == "__main__":  # read when jax is first imported
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks._hlo import collectives  # noqa: E402
from sae_attr.attribution.decoder_pass import score_rows  # noqa: E402
from sae_attr.attribution.gradients import act_and_grad  # noqa: E402
from sae_attr.hooks import Site  # noqa: E402
from sae_attr.lm.config import LMConfig  # noqa: E402
from sae_attr.lm.hf_config import config_from_hf  # noqa: E402
from sae_attr.lm.model import Params, forward  # noqa: E402
from sae_attr.lm.params import init_params  # noqa: E402
from sae_attr.parallel import (  # noqa: E402
    LM_RULES,
    make_mesh,
    shard_batch,
    shard_rows,
    shard_tree,
)
from sae_attr.sae.train_config import TrainConfig  # noqa: E402
from sae_attr.sae.train_state import init_state  # noqa: E402
from sae_attr.sae.update import compiled_step  # noqa: E402
from sae_attr.text.batching import RowBatch  # noqa: E402

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SITE = Site(3)
ROWS, PROMPT, COMPLETION = 16, 64, 64
LATENTS, TOKENS = 4096, 1024
MESHES = ((1, 8), (2, 4), (8, 1))


@dataclass(frozen=True)
class Shape:
    """What the programs are compiled for.

    Args:
      cfg: the language model.
      site: of gradients and SAE.
      rows, prompt, completion: of a batch of gradients.
      latents, tokens: of the SAE and one step of its training.
    """

    cfg: LMConfig
    site: Site
    rows: int = ROWS
    prompt: int = PROMPT
    completion: int = COMPLETION
    latents: int = LATENTS
    tokens: int = TOKENS


# ---- programs ------------------------------------------------------------------------


def scoring(shape: Shape, params: Params, mesh: jax.sharding.Mesh) -> str:
    """Compiles scores of a dictionary whose rows lie over all devices."""
    d = shape.cfg.d_model
    rows_nd = shard_rows(np.ones((shape.latents, d), np.float32), mesh)
    program = jax.jit(score_rows).lower(
        rows_nd, jnp.zeros((1, d, d)), jnp.zeros((2, d))
    )
    return str(program.compile().as_text())


def gradients(shape: Shape, params: Params, mesh: jax.sharding.Mesh) -> str:
    """Compiles activations and gradients at a site."""
    t = shape.prompt + shape.completion
    is_completion_t = np.arange(t) >= shape.prompt
    batch = RowBatch(
        np.ones((shape.rows, t), np.int32),
        np.ones((shape.rows, t), bool),
        np.tile(is_completion_t, (shape.rows, 1)),
        np.ones((shape.rows, shape.completion), np.int32),
        np.ones((shape.rows, shape.completion), bool),
    )
    program = jax.jit(
        lambda p, b: act_and_grad(p, b, cfg=shape.cfg, sites=(shape.site,))
    )
    return str(program.lower(params, shard_batch(batch, mesh)).compile().as_text())


def reading(shape: Shape, params: Params, mesh: jax.sharding.Mesh) -> str:
    """Compiles the forward pass through all layers, as activations are collected."""
    tokens_bt = np.ones((shape.rows, shape.prompt + shape.completion), np.int32)
    program = jax.jit(lambda p, x: forward(p, x, cfg=shape.cfg).hidden_btd)
    return str(program.lower(params, shard_batch(tokens_bt, mesh)).compile().as_text())


def sae_training(shape: Shape, params: Params, mesh: jax.sharding.Mesh) -> str:
    """Compiles one step of an SAE's training."""
    d = shape.cfg.d_model
    cfg = TrainConfig(d_in=d, n_latents=shape.latents, steps=10, k=32)
    x_bd = np.random.default_rng(0).standard_normal((shape.tokens, d), np.float32)
    state = init_state(cfg, lambda g: x_bd, mesh)
    x_bd = shard_batch(x_bd, mesh)
    program: Any = compiled_step(cfg, mesh, state)
    return str(program.lower(state, x_bd, x_bd).compile().as_text())


Program = Callable[[Shape, Params, jax.sharding.Mesh], str]
STAGES: dict[str, Program] = {
    "reading": reading,
    "gradients": gradients,
    "scoring": scoring,
    "SAE training": sae_training,
}


# ---- the least -----------------------------------------------------------------------


def least(stage: str, shape: Shape, data: int, model: int) -> tuple[int, int]:
    """Returns the number and the bytes of collectives without which a stage cannot do.

    The vocabulary's logits of a row never cross devices: its target's logit and the sum
    of exponentials do, which are numbers a token.
    """
    cfg = shape.cfg
    t = shape.prompt + shape.completion
    stream = shape.rows // data * t * cfg.d_model * 4
    number, size = 0, 0
    if model > 1 and stage in ("reading", "gradients"):
        number, size = 1, stream  # the embedding's rows
        number += 2 * cfg.n_layers
        size += 2 * cfg.n_layers * stream
    if model > 1 and stage == "gradients":
        above = cfg.n_layers - 1 - shape.site.layer
        scored = shape.rows // data * shape.completion * 4
        # Back: two a layer, and one through the logits; the target, maximum and sum.
        number += 2 * above + 1 + 3
        size += 2 * above * stream + scored * cfg.d_model + 3 * scored
    if stage == "SAE training":
        parameters = (2 * shape.latents * cfg.d_model + shape.latents) // model * 4
        if data > 1:
            number, size = 1, parameters
        if model > 1:  # the reconstruction of a device's tokens
            number, size = number + 1, size + shape.tokens // data * cfg.d_model * 4
    return number, size


# ---- the table -----------------------------------------------------------------------


def measure(shape: Shape, meshes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """Returns a row for every stage and mesh: number, bytes, least number and bytes, and
    the collectives by kind.
    """
    host: Params = init_params(shape.cfg, jax.random.key(0))
    rows = []
    for stage, program in STAGES.items():
        for data, model in meshes:
            mesh = make_mesh(f"data={data},model={model}")
            text = program(shape, shard_tree(host, LM_RULES, mesh), mesh)
            rows.append(_row(stage, shape, data, model, text))
    return rows


def _row(stage: str, shape: Shape, data: int, model: int, text: str) -> dict[str, Any]:
    number, size = least(stage, shape, data, model)
    of_program = collectives(text, most=False)
    largest_branches = collectives(text)
    return {
        "stage": stage,
        "mesh": f"{data}×{model}",
        "number": sum(one.times for one in of_program),
        "bytes": sum(one.times * one.bytes for one in of_program),
        "most_number": sum(one.times for one in largest_branches),
        "most_bytes": sum(one.times * one.bytes for one in largest_branches),
        "least_number": number,
        "least_bytes": size,
        "largest": [f"{c.times} {c.kind} of {c.bytes:,} B" for c in of_program[:3]],
    }


def main() -> None:
    """Prints the table; ends with status 1 where scoring or independent rows need a
    collective.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    rows = measure(Shape(config_from_hf(LLAMA), SITE), MESHES)
    print(
        f"{'stage':<13} {'mesh':>5} {'number':>7} {'least':>6} {'at most':>8} "
        f"{'MB':>8} {'least':>8} {'at most':>8}  largest"
    )
    for row in rows:
        print(
            f"{row['stage']:<13} {row['mesh']:>5} {row['number']:>7} "
            f"{row['least_number']:>6} {row['most_number']:>8} "
            f"{row['bytes'] / 1e6:8.2f} {row['least_bytes'] / 1e6:8.2f} "
            f"{row['most_bytes'] / 1e6:8.2f}  {'; '.join(row['largest'])}"
        )
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
    silent = [r for r in rows if r["stage"] == "scoring" or r["least_number"] == 0]
    sys.exit(int(any(row["number"] for row in silent)))


if __name__ == "__main__":
    main()
