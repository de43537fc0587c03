"""Settings of an SAE's training: one frozen dataclass, checked when it is made and
recorded with the result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sae_attr.sae.train_checks import check_training
from sae_attr.sae.train_choices import QUADRATIC

_LONG_RUN = 20_000  # steps
_GROUP_SHARES = (1 / 16, 1 / 8, 1 / 4)
# Fields that runs of earlier versions did not have: at their defaults they change
# nothing and are not recorded, so that such runs go on.
_LATER = (
    "k_start",
    "k_anneal",
    "group_shares",
    "empty_prefix",
    "dead_batches",
    "sparsity_warmup_steps",
    "log_threshold",
    "warmup_shape",
    "enc_bias",
    "subtract_b_dec",
    "streams",
    "error",
    "aux_normalised",
    "threshold_start",
)


@dataclass(frozen=True)
class TrainConfig:
    """Holds everything that the result depends on beside the batches.

    Losses are in normalised units: inputs and targets are scaled so that E|x|² = d, and
    squared errors are per coordinate, so that coefficients mean the same at every width
    and site.

    Args:
      d_in, n_latents: widths of input and code.
      steps: optimiser steps of the whole run; the learning rate's schedule needs it.
      objective: one of `train_choices.OBJECTIVES`.
      d_out: width of the target of a transcoder; None for `d_in`.
      transcoder: the target is another site: decoder not tied to the encoder, b_dec not
        taken from the input.
      streams: crosscoder and crosscoder_l1, models whose activations lie side by side in
        the input; `d_in` is the width of all.
      error: crosscoder and crosscoder_l1: "squared" is the mean squared error of a
        coordinate, "norm" the mean length of a token's error, summed over streams.
      k: latents per token (per token on average for batch_topk, matryoshka and
        crosscoder).
      k_start: batch_topk, matryoshka and crosscoder, latents per token at the first
        step, which fall linearly to `k`; None for `k` from the start.
      k_anneal: share of the steps over which they fall.
      multi: multi_topk adds the loss at `multi * k` latents, times 1/8.
      groups: matryoshka, sizes of the nested groups in order, which add up to
        n_latents; () for n/16, n/8, n/4, rest.
      group_shares: the same as shares of n_latents, without the last, which gets the
        rest; () for none.
      empty_prefix: matryoshka's mean has one more term, the error of b_dec alone, as
        the authors' code has.
      candidates: batch_topk, matryoshka and crosscoder look at the `candidates * k` best latents of
        a token first. Tokens that need more are searched whole, and where they are many
        the whole matrix is: slower, same result.
      aux_k: dead latents that explain the residual (AuxK); None for half the width of
        the target, of a crosscoder for half that of one stream. 0 turns it off.
      aux_coef: weight of that loss.
      aux_normalised: that loss is divided by the residual's variance over the batch.
      dead_tokens: a latent that fired on none of so many tokens is dead; None for a
        tenth of the run's, at most 10 million, so that AuxK can act in short runs too.
      dead_batches: the same in batches, in the place of `dead_tokens`.
      sparsity: coefficient of the penalty (relu, gated, jumprelu, crosscoder_l1), where `target_l0` is
        given the first guess.
      sparsity_warmup: share of the steps over which it rises from 0. A controller makes
        up for a small coefficient meanwhile, so that a long rise ends early
        (docs/training.md).
      sparsity_warmup_steps: the same in steps, in the place of the share.
      target_l0: latents per token that a controller aims at by moving the coefficient;
        None leaves it alone. A quadratic penalty has it as its target and no controller.
      controller_gain: change of log(coefficient) per step and unit of log(L0 / target).
      controller_damping: power of (L0 / target) that multiplies the coefficient at
        once.
      penalty: of jumprelu: "step" counts active latents, "tanh" is Σ tanh(tanh_scale ·
        code · |dec row|). "quadratic" is 2 / target_l0 · (active latents - target_l0)²
        of each token (Gemma Scope 2, as SAELens writes it), "quadratic_mean" is (mean
        active latents / target_l0 - 1)² (dictionary_learning).
      gate_coef: of gated, weight of what its gates learn from (penalty and error of the
        gates' own code); 1 in the paper. Below 1 the encoder, which both paths share,
        follows the error of the codes more. Biases of gates see nothing else, and Adam
        is blind to its scale.
      bandwidth: width of the kernel of jumprelu's straight-through estimators, in
        normalised units.
      threshold_init: first threshold of jumprelu and of gated's gates (minus their
        bias); None takes from the data the one that leaves 2 target_l0 (or 2 k) active.
      log_threshold: log(threshold) is trained, as in the paper, and not the threshold.
      tanh_scale: see `penalty`.
      pre_act: jumprelu, weight of Σ relu(threshold - pre) over dead latents, which
        revives them.
      threshold_decay: of the running mean of batch_topk's threshold.
      threshold_start: the step that this mean begins with.
      lr: learning rate of Adam; None for 2e-4 / sqrt(n / 2^14) (arXiv:2406.04093,
        appendix) in runs of 20,000 steps or more, times sqrt(20,000 / steps), at most
        8, in shorter ones.
      warmup: steps of linear rise; None for a tenth of the steps, at most 100.
      warmup_shape: "linear" from lr / warmup, or "cosine" from lr / 10.
      decay: share of the steps, at the end, of linear fall to 0.
      b1, b2, eps: of Adam.
      clip: gradients are scaled down to this global norm; None for never.
      scale: "rms" normalises to E|x|² = d, "unit" to E|x|² = 1, "none" takes the
        activations as they are.
      enc_bias: the encoder's bias is trained; else it stays 0.
      subtract_b_dec: an autoencoder's encoder sees x - b_dec; else x.
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
    streams: int = 1
    error: str = "squared"
    k: int = 32
    k_start: int | None = None
    k_anneal: float = 0.25
    multi: int = 4
    groups: tuple[int, ...] = ()
    group_shares: tuple[float, ...] = ()
    empty_prefix: bool = False
    candidates: int = 4
    aux_k: int | None = None
    aux_coef: float = 1 / 32
    aux_normalised: bool = False
    dead_tokens: int | None = None
    dead_batches: int | None = None
    sparsity: float = 1e-3
    sparsity_warmup: float = 0.05
    sparsity_warmup_steps: int | None = None
    target_l0: float | None = None
    controller_gain: float = 0.02
    controller_damping: float = 2.0
    penalty: str = "step"
    gate_coef: float = 0.25
    bandwidth: float = 0.1
    threshold_init: float | None = None
    log_threshold: bool = False
    tanh_scale: float = 4.0
    pre_act: float = 1e-4
    threshold_decay: float = 0.99
    threshold_start: int = 0
    lr: float | None = None
    warmup: int | None = None
    warmup_shape: str = "linear"
    decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    scale: str = "rms"
    enc_bias: bool = True
    subtract_b_dec: bool = True
    enc_scale: float | None = None
    centre: str = "mean"
    init_batches: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self)

    @property
    def width_out(self) -> int:
        """Returns the width of the target."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of matryoshka's groups."""
        if self.groups:
            return self.groups
        n = self.n_latents
        sizes = [int(n * share) for share in self.group_shares or _GROUP_SHARES]
        return (*sizes, n - sum(sizes))

    @property
    def dead_k(self) -> int:
        """Returns the number of dead latents per token of the AuxK loss."""
        half = self.width_out // (2 * self.streams)
        return min(half if self.aux_k is None else self.aux_k, self.n_latents)

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

    @property
    def largest_k(self) -> int:
        """Returns the most latents per token that any step selects."""
        return max(self.k, self.k_start or 0)

    @property
    def controlled(self) -> bool:
        """Returns whether a controller moves the penalty's coefficient."""
        return self.target_l0 is not None and not self.quadratic

    @property
    def quadratic(self) -> bool:
        """Returns whether the penalty itself aims at `target_l0`."""
        return self.objective == "jumprelu" and self.penalty in QUADRATIC

    def dead_after(self, batch_size: int) -> int:
        """Returns the tokens of silence after which a latent is dead, in a run whose steps have
        `batch_size` tokens.
        """
        if self.dead_batches is not None:
            return self.dead_batches * batch_size
        if self.dead_tokens is not None:
            return self.dead_tokens
        return max(1, min(10_000_000, self.steps * batch_size // 10))


def recorded(cfg: TrainConfig) -> dict[str, Any]:
    """Returns the fields that identify a run: all but those that came later and have
    their defaults.
    """
    values = asdict(cfg)
    for field in fields(cfg):
        if field.name in _LATER and values[field.name] == field.default:
            del values[field.name]
    return values
