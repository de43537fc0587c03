"""The config of an SAE, the static part of its pytree: widths, gate, norm, source."""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.text.masks import Masks

# Gates that look at one latent at a time, and those that compare latents with each
# other.
LOCAL_GATES = ("relu", "identity", "jumprelu", "gated")
RANKED_GATES = ("topk", "topk_raw", "abs_topk", "groupmax")
GATES = (*LOCAL_GATES, *RANKED_GATES, "matching_pursuit", "temporal")
NORMS = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True)
class SAEConfig:
    """Widths, gate, norm and source of an SAE; static under jit.

    Args:
      d_in, d_out, n_latents: widths of input, output (of one stream each) and code.
      gate: one of `GATES`. jumprelu compares strictly. topk keeps k pre-activations per
        token and then applies relu, topk_raw leaves the relu out, abs_topk ranks by
        absolute value and keeps the sign, groupmax keeps the largest of each of k
        groups of neighbouring latents. matching_pursuit is greedy and tied: one latent
        after another. temporal reads whole sequences, see `temporal.py`.
      k: latents kept per token (topk, topk_raw, abs_topk, groupmax; temporal, where
        None keeps all).
      heads, projection_eps: of a temporal SAE's attention, and of its projection on the
        predicted part.
      residual_threshold: matching pursuit stops where the rest is shorter than this; 0
        for never.
      max_iterations: of matching pursuit.
      stop_on_duplicate_support: matching pursuit stops where a round brings no new
        latent.
      subtract_b_dec: the decoder bias is taken from the input.
      norm: one of `NORMS`, per token. layer_norm: (x - mean) / (std + 1e-5), std with N
        - 1; constant_norm_rescale: x sqrt(d) / |x|. The output is scaled back, and the
        mean added.
      rescale_by_dec_norm: ranked gates select and code `pre * |dec row|`, the decoder
        divides it out again.
      select_by_dec_norm: ranked gates select by `pre * |dec row|`, the code is `pre`.
      flatten_heads: the input may come as `[..., heads, head_dim]`.
      skip: the file has a skip connection from input to output.
      streams: layers or models that a crosscoder reads and writes; the input is `[...,
        streams, d_in]`.
      stream_names: their names (layer numbers, "base" and "chat"), or empty.
      stream: the one whose decoder rows stand for the latents (options layer= and
        model=), or None.
      block_encoder: each stream has latents of its own, `n_latents / streams`, numbered
        stream after stream.
      decoupled: codes are gated per stream, `[..., streams, n]`.
      source, architecture: format, and the name that the file gives its own kind.
      dtype: of the decoder on disk.
      site, site_out: where it reads and (transcoders) writes, as spelled in the file;
        None where the file does not say.
      layer: index of the block where the file or its path gives it.
      head_index: the one attention head that it was trained on, or None.
      model_name, context_size, prepend_bos: of the training text.
      exclude_special: True where BOS, EOS and padding were left out of training:
        reconstruction there means nothing.
      masks: tokens that were left out of training, where the file states them;
        `exclude_special` is a part of that.
      expected_l0: active latents per token that file or path state.
      folded: scales and norms that the loader multiplied into the weights.

    Raises:
      ValueError: unknown gate or norm, a ranked gate without a k that fits, or sizes
        that do not fit each other.
    """

    d_in: int
    d_out: int
    n_latents: int
    gate: str = "relu"
    k: int | None = None
    heads: int = 1
    projection_eps: float = 0.0
    residual_threshold: float | None = None
    max_iterations: int | None = None
    stop_on_duplicate_support: bool = True
    subtract_b_dec: bool = False
    norm: str = "none"
    rescale_by_dec_norm: bool = False
    select_by_dec_norm: bool = False
    flatten_heads: bool = False
    skip: bool = False
    streams: int = 1
    stream_names: tuple[str, ...] = ()
    stream: int | None = None
    block_encoder: bool = False
    decoupled: bool = False
    source: str = ""
    architecture: str = ""
    dtype: str = "float32"
    site: str | None = None
    site_out: str | None = None
    layer: int | None = None
    head_index: int | None = None
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    exclude_special: bool | None = None
    masks: Masks | None = None
    expected_l0: float | None = None
    folded: tuple[str, ...] = ()

    @property
    def no_token_codes(self) -> str | None:
        """Why one token's activation at one site has no code, or None where it has one."""
        if self.streams > 1:
            return (
                "a crosscoder reads several layers or models at once, of which a run "
                "has one"
            )
        if self.gate == "temporal":
            return "a temporal SAE's codes depend on earlier tokens"
        return None

    def __post_init__(self) -> None:
        if self.gate not in GATES or self.norm not in NORMS:
            raise ValueError(
                f"gate {self.gate!r} or norm {self.norm!r} is unknown; gates: {GATES}, "
                f"norms: {NORMS}"
            )
        self._check_k()
        if self.gate == "matching_pursuit":
            self._check_pursuit()
        if self.streams > 1 and self.norm != "none":
            raise ValueError(
                f"{self.streams} streams with the per-token norm {self.norm}; only "
                "'none' is defined"
            )

    def _check_k(self) -> None:
        n = self.n_latents
        is_ranked = self.gate in RANKED_GATES
        if self.gate == "temporal":
            is_ranked = self.k is not None
        if is_ranked and not (self.k and 1 <= self.k <= n):
            raise ValueError(
                f"gate {self.gate} with k={self.k} and {n} latents; give k in 1..{n}"
            )
        if self.gate == "groupmax" and n % (self.k or 1):
            raise ValueError(
                f"gate groupmax with k={self.k} groups does not divide {n} latents; "
                "give another k"
            )

    def _check_pursuit(self) -> None:
        threshold, rounds = self.residual_threshold or 0, self.max_iterations or 0
        if threshold < 0 or rounds < 1:
            raise ValueError(
                f"matching_pursuit with residual_threshold={self.residual_threshold} "
                f"and max_iterations={self.max_iterations}; give a threshold of 0 or "
                "more and at least one iteration"
            )
