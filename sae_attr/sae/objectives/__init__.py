"""Training objectives by name; each is a tuple of pure functions on one `SAE` pytree."""

from sae_attr.sae.objectives.contract import Objective, Outcome, Signals, first_weights
from sae_attr.sae.objectives.penalised import CROSSCODER_L1, GATED, JUMPRELU, RELU
from sae_attr.sae.objectives.ranked import (
    BATCH_TOPK,
    CROSSCODER,
    MATRYOSHKA,
    MULTI_TOPK,
    TOPK,
)

__all__ = ["OBJECTIVES", "Objective", "Outcome", "Signals", "first_weights"]

OBJECTIVES: dict[str, Objective] = {
    "relu": RELU, "gated": GATED, "jumprelu": JUMPRELU, "topk": TOPK, "multi_topk": MULTI_TOPK,
    "batch_topk": BATCH_TOPK, "matryoshka": MATRYOSHKA, "crosscoder": CROSSCODER,
    "crosscoder_l1": CROSSCODER_L1,
}  # fmt: skip
