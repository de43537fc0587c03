"""AdamW with a warm-up and a schedule, as language models are trained with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import optax

from sae_attr.lm.model import Params

SCHEDULES = ("cosine", "linear", "constant")
# Matrices. Norms, biases and sinks are not decayed.
_DECAYED = ("kernel", "table", "gate", "up", "down", "a", "b")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), clipping by the
    global norm, and a schedule.

    Args:
      lr: peak learning rate.
      steps: of the whole run, warm-up included.
      warmup: steps in which the rate rises linearly; step s has lr (s + 1) / warmup.
      schedule: how it falls from then on: cosine, linear or constant.
      final: rate at the end as a share of the peak.
      clip: largest global norm of the gradient; 0 does not clip.
      weight_decay: of matrices and embeddings; norms and biases have none.
    """

    lr: float
    steps: int
    warmup: int = 0
    schedule: str = "cosine"
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


def learning_rate(opt: Optimizer) -> optax.Schedule:
    """Returns step -> rate: linear warm-up, then cosine or linear decay to `final`, or
    none.

    Raises:
      ValueError: an unknown schedule, or a warm-up that takes all steps.
    """
    if opt.schedule not in SCHEDULES:
        raise ValueError(
            f"schedule {opt.schedule!r} is unknown; choose one of "
            f"{', '.join(SCHEDULES)}"
        )
    if not 0 <= opt.warmup < max(opt.steps, 1):
        raise ValueError(
            f"a warm-up of {opt.warmup} steps does not fit a run of {opt.steps}; make "
            "it shorter"
        )
    after = max(opt.steps - opt.warmup, 1)
    falling = {
        "cosine": optax.cosine_decay_schedule(opt.lr, after, opt.final),
        "linear": optax.linear_schedule(opt.lr, opt.lr * opt.final, after),
        "constant": optax.constant_schedule(opt.lr),
    }[opt.schedule]
    if not opt.warmup:
        return falling

    def rising(step: Any) -> Any:
        # optax's own warm-up starts at a rate of 0, which would lose the first step.
        return opt.lr * (step + 1) / opt.warmup

    return optax.join_schedules([rising, falling], [opt.warmup])


def decay_mask(params: Params) -> Params:
    """Returns True for leaves with weight decay: kernels, embeddings, experts and
    adapters.
    """

    def is_decayed(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return path[-1].key in _DECAYED

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(opt: Optimizer) -> optax.GradientTransformation:
    """Returns the optax chain: clip, then AdamW at `learning_rate`.

    Raises:
      ValueError: as `learning_rate`.
    """
    adamw = optax.adamw(
        learning_rate(opt),
        b1=opt.b1,
        b2=opt.b2,
        eps=opt.eps,
        weight_decay=opt.weight_decay,
        mask=decay_mask,
    )
    if not opt.clip:
        return adamw
    # Clipped first, so that one outlying batch does not stay in Adam's moments.
    return optax.chain(optax.clip_by_global_norm(opt.clip), adamw)
