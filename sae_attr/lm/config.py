"""`LMConfig`: every difference between decoder families as a field."""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.lm.hf_schema import MAX_MATRICES
from sae_attr.lm.rope import Rope

NO_WINDOW = 2**30  # "attends to everything", as an integer that can ride the scan


@dataclass(frozen=True)
class LMConfig:
    """A decoder-only transformer; hashable, so that it can be a static argument of a
    jitted function.

    Shapes: `d_model` residual width d, `d_mlp` f, `n_heads` h, `n_kv_heads` k,
    `head_dim`, `vocab` v. `ropes` and `rope_of_layer` / `window_of_layer` hold what
    differs between layers, so that layers can share one scanned body. `resid_dtype` is
    the residual stream's; weights have the dtype they were loaded in. With experts,
    `mlp_bias` is theirs and the router's.
    """

    family: str
    vocab: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int
    max_len: int
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-6
    norm_plus_one: bool = False  # Gemma stores scale - 1
    pre_norm: bool = True
    post_norm: bool = False  # norms on the sublayers' outputs (Gemma 2 and 3, OLMo 2)
    parallel_residual: bool = False
    qk_norm: str = ""  # "" | head (each head by itself) | all (all heads together)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    act: str = "silu"
    gated_mlp: bool = True
    glu_limit: float = 0.0  # gpt-oss clips gate and up (act "clipped_glu")
    glu_alpha: float = 1.0
    n_experts: int = 0  # 0: one MLP; otherwise experts of width d_mlp behind a router
    n_chosen: int = 0  # experts of a token
    dense_layers: tuple[
        int, ...
    ] = ()  # layers that have one MLP of width d_dense instead of experts
    d_dense: int = 0
    norm_chosen: bool = True  # weights of a token's experts sum to 1
    token_groups: int = 1  # rows go to the experts in so many groups, one per `data` shard; no number depends on it
    sinks: bool = False  # a logit per head that takes part in the softmax and has no value (gpt-oss)
    learned_pos: bool = False
    ropes: tuple[Rope, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    window_of_layer: tuple[int, ...] = ()
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    query_scale: float = 1.0
    inverse_layer_scale: bool = (
        False  # attention scores of layer l are divided by l + 1 as well (some GPT-2)
    )
    embed_scale: float = 1.0
    tied_head: bool = False
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    resid_dtype: str = "float32"
    names: tuple[
        tuple[str, str], ...
    ] = ()  # (leaf, tensor) where a checkpoint has another name than its family

    def __post_init__(self) -> None:
        facts = {
            f"{self.n_heads} heads are not shared evenly by {self.n_kv_heads} heads of keys and values": (
                self.n_heads % self.n_kv_heads
            ),
            f"{self.n_layers} layers with {self.n_experts} experts are more than {MAX_MATRICES:,} matrices": (
                self.n_layers * self.n_experts > MAX_MATRICES
            ),
            f"a token goes to {self.n_chosen} of {self.n_experts} experts": self.n_chosen
            > self.n_experts,
            f"window_of_layer has {len(self.window_of_layer)} entries for {self.n_layers} layers": (
                self.window_of_layer and len(self.window_of_layer) != self.n_layers
            ),
            f"rope_of_layer has {len(self.rope_of_layer)} entries for {self.n_layers} layers": (
                self.rope_of_layer and len(self.rope_of_layer) != self.n_layers
            ),
        }
        wrong = [words for words, fails in facts.items() if fails]
        if wrong:
            raise ValueError(f"no such {self.family} model: {'; '.join(wrong)}")

    def layers_of(self, leaf: str) -> tuple[int, ...]:
        """Returns the layers that a leaf under blocks/ holds, in their order: all, but
        for MLPs where only some have experts.
        """
        name = leaf.removeprefix("blocks/").split("/")[0]
        if not self.dense_layers or name not in ("moe", "gate", "up", "down"):
            return tuple(range(self.n_layers))
        if name != "moe":
            return self.dense_layers
        return tuple(
            layer for layer in range(self.n_layers) if layer not in self.dense_layers
        )

    @property
    def has_windows(self) -> bool:
        """Whether any layer attends to a limited number of past tokens."""
        return any(w < NO_WINDOW for w in self.window_of_layer)

    def width(self, point: str) -> int:
        """Returns the size of the last axis of the activation at a site's point."""
        return {"attn_z": self.n_heads * self.head_dim, "mlp_hidden": self.d_mlp}.get(
            point, self.d_model
        )
