"""Settings of an SAE's training: one frozen dataclass, checked when it is made and
recorded with the result.
"""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVES = (
    "relu",
    "gated",
    "topk",
    "multi_topk",
    "batch_topk",
    "jumprelu",
    "matryoshka",
)
RANKED = ("topk", "multi_topk", "batch_topk", "matryoshka")
PENALTIES = ("step", "tanh")
SCALES = ("rms", "none")
CENTRES = ("mean", "median", "zero")
_LONG_RUN = 20_000  # steps


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the result depends on beside the batches.

    Losses are in normalised units: inputs and targets are scaled so that E|x|² = d, and
    squared errors are per coordinate, so that coefficients mean the same at every width
    and site.

    Args:
      d_in, n_latents: widths of input and code.
      steps: optimiser steps of the whole run; the learning rate's schedule needs it.
      objective: one of `OBJECTIVES`.
      d_out: width of the target of a transcoder; None for `d_in`.
      transcoder: the target is another site: decoder not tied to the encoder, b_dec not
        taken from the input.
      k: latents per token (per token on average for batch_topk and matryoshka).
      multi: multi_topk adds the loss at `multi * k` latents, times 1/8.
      groups: matryoshka, sizes of the nested groups in order, which add up to
        n_latents; () for n/16, n/8, n/4, rest.
      candidates: batch_topk and matryoshka look at the `candidates * k` best latents of
        a token first. Tokens that need more are searched whole, and where they are many
        the whole matrix is: slower, same result.
      aux_k: dead latents that explain the residual (AuxK); None for d_out / 2. 0 turns
        it off.
      aux_coef: weight of that loss.
      dead_tokens: a latent that fired on none of so many tokens is dead; None for a
        tenth of the run's, at most 10 million, so that AuxK can act in short runs too.
      sparsity: coefficient of the penalty (relu, gated, jumprelu), where `target_l0` is
        given the first guess.
      sparsity_warmup: share of the steps over which it rises from 0.
      target_l0: latents per token that a controller aims at by moving the coefficient;
        None leaves it alone.
      controller_gain: change of log(coefficient) per step and unit of log(L0 / target).
      controller_damping: power of (L0 / target) that multiplies the coefficient at
        once.
      penalty: of jumprelu: "step" counts active latents, "tanh" is Σ tanh(tanh_scale ·
        code · |dec row|).
      gate_coef: of gated, weight of what its gates learn from (penalty and error of the
        gates' own code); 1 in the paper. Below 1 the encoder, which both paths share,
        follows the error of the codes more. Biases of gates see nothing else, and Adam
        is blind to its scale.
      bandwidth: width of the kernel of jumprelu's straight-through estimators, in
        normalised units.
      threshold_init: first threshold of jumprelu and of gated's gates (minus their
        bias); None takes from the data the one that leaves 2 target_l0 (or 2 k) active.
      tanh_scale: see `penalty`.
      pre_act: jumprelu, weight of Σ relu(threshold - pre) over dead latents, which
        revives them.
      threshold_decay: of the running mean of batch_topk's threshold.
      lr: learning rate of Adam; None for 2e-4 / sqrt(n / 2^14) (arXiv:2406.04093,
        appendix) in runs of 20,000 steps or more, times sqrt(20,000 / steps), at most
        8, in shorter ones.
      warmup: steps of linear rise; None for a tenth of the steps, at most 100.
      decay: share of the steps, at the end, of linear fall to 0.
      b1, b2, eps: of Adam.
      clip: gradients are scaled down to this global norm; None for never.
      scale: "rms" normalises, "none" takes the activations as they are.
      enc_scale: first norm of the encoder's columns where they are tied; None takes
        from the data the one with the least error.
      centre: first b_dec: mean or geometric median of the targets, or zero.
      init_batches: batches that mean, scale and first thresholds are taken from.
      seed: of the first weights.

    Raises:
      ValueError: sizes that do not fit each other, or an unknown name.
    """

    d_in: int
    n_latents: int
    steps: int
    objective: str = "batch_topk"
    d_out: int | None = None
    transcoder: bool = False
    k: int = 32
    multi: int = 4
    groups: tuple[int, ...] = ()
    candidates: int = 4
    aux_k: int | None = None
    aux_coef: float = 1 / 32
    dead_tokens: int | None = None
    sparsity: float = 1e-3
    sparsity_warmup: float = 0.05
    target_l0: float | None = None
    controller_gain: float = 0.02
    controller_damping: float = 2.0
    penalty: str = "step"
    gate_coef: float = 0.25
    bandwidth: float = 0.1
    threshold_init: float | None = None
    tanh_scale: float = 4.0
    pre_act: float = 1e-4
    threshold_decay: float = 0.99
    lr: float | None = None
    warmup: int | None = None
    decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    scale: str = "rms"
    enc_scale: float | None = None
    centre: str = "mean"
    init_batches: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        names = {
            "objective": OBJECTIVES,
            "penalty": PENALTIES,
            "scale": SCALES,
            "centre": CENTRES,
        }
        for name, choices in names.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; known: "
                    f"{', '.join(choices)}"
                )
        for name in (
            "d_in",
            "n_latents",
            "steps",
            "k",
            "multi",
            "candidates",
            "init_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give 1 or more")
        _check_sizes(self)
        _check_shares(self)

    @property
    def width_out(self) -> int:
        """Returns the width of the target."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of matryoshka's groups."""
        n = self.n_latents
        return self.groups or (n // 16, n // 8, n // 4, n - n // 16 - n // 8 - n // 4)

    @property
    def dead_k(self) -> int:
        """Returns the number of dead latents per token of the AuxK loss."""
        return min(
            self.width_out // 2 if self.aux_k is None else self.aux_k, self.n_latents
        )

    @property
    def learning_rate(self) -> float:
        """Returns the peak learning rate.

        A short run has few steps to get anywhere. Rates that did well are 3.5 times the
        paper's at 1,270 steps (8,192 latents, width 576) and 5 to 10 times at 1,000
        (512 latents, width 64; benchmarks.sae_quality).
        """
        if self.lr is not None:
            return self.lr
        short = min(8.0, max(1.0, (_LONG_RUN / self.steps) ** 0.5))
        return short * 2e-4 / (self.n_latents / 2**14) ** 0.5

    @property
    def warmup_steps(self) -> int:
        """Returns the steps of linear rise."""
        return min(100, self.steps // 10) if self.warmup is None else self.warmup

    def dead_after(self, batch_size: int) -> int:
        """Returns the tokens of silence after which a latent is dead, in a run whose steps have
        `batch_size` tokens.
        """
        if self.dead_tokens is not None:
            return self.dead_tokens
        return max(1, min(10_000_000, self.steps * batch_size // 10))


def _check_sizes(cfg: TrainConfig) -> None:
    n = cfg.n_latents
    used = cfg.k * cfg.multi if cfg.objective == "multi_topk" else cfg.k
    if cfg.objective in RANKED and used > n:
        raise ValueError(
            f"{cfg.objective} with k={cfg.k} needs {used} latents, but there are {n}; "
            "lower k or widen"
        )
    if cfg.d_out not in (None, cfg.d_in) and not cfg.transcoder:
        raise ValueError(
            f"d_in={cfg.d_in} and d_out={cfg.d_out} differ; an autoencoder has one "
            "width: say transcoder"
        )
    if cfg.objective == "matryoshka" and (
        sum(cfg.group_sizes) != n or min(cfg.group_sizes) < 1
    ):
        raise ValueError(
            f"groups {cfg.group_sizes} add up to {sum(cfg.group_sizes)}, but there are "
            f"{n} latents; "
            "give sizes of 1 or more that add up to n_latents"
        )
    if cfg.groups and cfg.objective != "matryoshka":
        raise ValueError(
            f"groups {cfg.groups} mean nothing for {cfg.objective}; leave them out"
        )
    if cfg.target_l0 is not None and cfg.objective in RANKED:
        raise ValueError(
            f"target_l0={cfg.target_l0} means nothing for {cfg.objective}, whose L0 is "
            f"k={cfg.k}"
        )
    if cfg.target_l0 is not None and not 0 < cfg.target_l0 <= n:
        raise ValueError(
            f"target_l0={cfg.target_l0} is not among 0..{n} latents; give another"
        )


def _check_shares(cfg: TrainConfig) -> None:
    for name in ("decay", "sparsity_warmup"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise ValueError(
                f"{name}={getattr(cfg, name)} is a share of the steps; give 0..1"
            )
    if cfg.warmup_steps + cfg.decay * cfg.steps > cfg.steps:
        raise ValueError(
            f"warmup={cfg.warmup_steps} and decay={cfg.decay} of {cfg.steps} steps "
            "overlap; lower one of them"
        )
    for name in ("sparsity", "bandwidth", "tanh_scale", "enc_scale", "gate_coef"):
        if getattr(cfg, name) is not None and not getattr(cfg, name) > 0:
            raise ValueError(f"{name}={getattr(cfg, name)}; give a number above 0")
