"""Settings of the papers' trainings, for `TrainConfig`: what a paper or its code fixes,
where our defaults differ.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

# arXiv:2407.14435, appendix; Gemma Scope (arXiv:2408.05147) trains the same way. Inputs
# have a mean square of 1, so that bandwidth and thresholds are the paper's numbers; its
# error is summed over coordinates and ours is averaged, so that its λ is ours times d.
_JUMPRELU = {
    "objective": "jumprelu",
    "scale": "unit",
    "centre": "zero",
    "subtract_b_dec": False,
    "log_threshold": True,
    "enc_scale": 1.0,
    "threshold_init": 1e-3,
    "bandwidth": 1e-3,
    "pre_act": 0.0,
    "sparsity_warmup_steps": 10_000,
    "lr": 7e-5,
    "b1": 0.0,
    "b2": 0.999,
    "warmup": 1000,
    "warmup_shape": "cosine",
    "decay": 0.0,
}
# arXiv:2412.06410 and the authors' code.
_BATCH_TOPK = {
    "objective": "batch_topk",
    "enc_bias": False,
    "aux_k": 512,
    "dead_batches": 5,
    "lr": 3e-4,
    "b1": 0.9,
    "b2": 0.99,
    "warmup": 0,
    "decay": 0.0,
    "enc_scale": 1.0,
    "centre": "zero",
}
# arXiv:2503.17547: the BatchTopK trainer with nested groups.
_MATRYOSHKA = _BATCH_TOPK | {
    "objective": "matryoshka",
    "group_shares": (1 / 16, 1 / 16, 1 / 8, 1 / 4),
    "empty_prefix": True,
    "dead_batches": 20,
}

# arXiv:2504.02922 and the authors' code: base model and fine-tune side by side.
_CROSSCODER = {
    "objective": "crosscoder",
    "k": 100,
    "error": "norm",
    "aux_normalised": True,
    "subtract_b_dec": False,
    "centre": "median",
    "threshold_decay": 0.999,
    "threshold_start": 1000,
    "lr": 1e-4,
    "clip": 1.0,
}
# The same paper's L1 crosscoder, ½|e|² + μ Σ code · norm: μ is ours times the width of
# one stream.
_CROSSCODER_L1 = {
    "objective": "crosscoder_l1",
    "subtract_b_dec": False,
    "lr": 1e-4,
    "clip": 1.0,
}

PUBLISHED: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "jumprelu": _JUMPRELU,
        "gemma_scope_2": _JUMPRELU | {"penalty": "quadratic"},
        "batch_topk": _BATCH_TOPK,
        "matryoshka": _MATRYOSHKA,
        "crosscoder": _CROSSCODER,
        "crosscoder_l1": _CROSSCODER_L1,
    }
)


def as_published(name: str) -> dict[str, Any]:
    """Returns the fields of `TrainConfig` that a paper fixes.

    Args:
      name: a key of `PUBLISHED`.

    Raises:
      ValueError: another name.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"no paper {name!r} among the published; give one of {', '.join(PUBLISHED)}"
        )
    return dict(PUBLISHED[name])
