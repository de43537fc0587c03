"""What the settings of an SAE's training must fulfil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_attr.sae.train_choices import (
    ANNEALED,
    CENTRES,
    CROSSCODERS,
    ERRORS,
    OBJECTIVES,
    PENALTIES,
    RANKED,
    RISES,
    SCALES,
)

if TYPE_CHECKING:  # it runs these checks itself
    from sae_attr.sae.train_config import TrainConfig


def check_training(cfg: TrainConfig) -> None:
    """Raises ValueError for sizes that do not fit each other, or an unknown name."""
    _check_names(cfg)
    _check_sizes(cfg)
    _check_streams(cfg)
    _check_published(cfg)
    _check_shares(cfg)


def _check_names(cfg: TrainConfig) -> None:
    names = {
        "objective": OBJECTIVES,
        "error": ERRORS,
        "penalty": PENALTIES,
        "scale": SCALES,
        "warmup_shape": RISES,
        "centre": CENTRES,
    }
    for name, choices in names.items():
        if getattr(cfg, name) not in choices:
            raise ValueError(
                f"{name} {getattr(cfg, name)!r} is unknown; known: {', '.join(choices)}"
            )
    for name in (
        "d_in",
        "n_latents",
        "steps",
        "k",
        "multi",
        "candidates",
        "init_batches",
        "streams",
    ):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{name}={getattr(cfg, name)}; give 1 or more")


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


def _check_streams(cfg: TrainConfig) -> None:
    is_crosscoder = cfg.objective in CROSSCODERS
    if not is_crosscoder and (cfg.streams > 1 or cfg.error != "squared"):
        raise ValueError(
            f"streams={cfg.streams}, error={cfg.error!r} mean nothing for "
            f"{cfg.objective}; leave them out, or give objective crosscoder"
        )
    if is_crosscoder and cfg.transcoder:
        raise ValueError(
            f"a {cfg.objective} reconstructs what it reads; leave transcoder out"
        )
    if cfg.d_in % cfg.streams:
        raise ValueError(
            f"d_in={cfg.d_in} is no multiple of streams={cfg.streams}; d_in is the "
            "width of all streams side by side"
        )
    if not 0 <= cfg.threshold_start < cfg.steps:
        raise ValueError(
            f"threshold_start={cfg.threshold_start} is no step of {cfg.steps}; at the "
            "end there would be no threshold: give an earlier one"
        )


def _check_published(cfg: TrainConfig) -> None:
    if cfg.k_start is not None:
        if cfg.objective not in ANNEALED:
            raise ValueError(
                f"k_start={cfg.k_start} means nothing for {cfg.objective}; leave it out"
            )
        if not cfg.k <= cfg.k_start <= cfg.n_latents:
            raise ValueError(
                f"k_start={cfg.k_start} is not in k={cfg.k}..n_latents={cfg.n_latents}"
                "; give one that is"
            )
    if cfg.quadratic and cfg.target_l0 is None:
        raise ValueError(
            f"penalty={cfg.penalty!r} is the distance from target_l0, which is unset; "
            "give it"
        )
    if cfg.groups and cfg.group_shares:
        raise ValueError("groups and group_shares both say the sizes; leave out one")
    if (cfg.group_shares or cfg.empty_prefix) and cfg.objective != "matryoshka":
        raise ValueError(
            f"group_shares and empty_prefix mean nothing for {cfg.objective}; leave "
            "them out"
        )
    if cfg.dead_batches is not None and cfg.dead_tokens is not None:
        raise ValueError(
            "dead_batches and dead_tokens both say when a latent is dead; leave out one"
        )
    for name in ("dead_batches", "sparsity_warmup_steps"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; give 1 or more")
    if cfg.log_threshold and cfg.threshold_init == 0:
        raise ValueError("log_threshold needs threshold_init above 0")


def _check_shares(cfg: TrainConfig) -> None:
    for name in ("decay", "sparsity_warmup", "k_anneal"):
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
