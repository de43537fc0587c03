"""Settings of a sweep that steers named latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sae_attr.steering.interventions import INTERVENTIONS, TOKENS
from sae_attr.study.serving_settings import SWEEPS_BY


@dataclass(frozen=True, kw_only=True)
class SteerSettings:
    """Sets what is steered, and how strongly.

    Args:
      vectors: a file of directions instead of an SAE; scaled to unit length.
      latents: of the SAE, or numbers of the file's vectors; None: all vectors of the
        file.
      prompts: JSONL with prompt (a string or messages) and optionally id.
      mode: of `steering.INTERVENTIONS`.
      strengths: in units; every latent gets each.
      unit: None: the mean length at the site where the mode's strengths are in it,
        else 1.
      tokens: which are steered: of all, prompt, generated.
      skip: first positions of a row that are never changed; 1 spares BOS.
      samples: completions per prompt, latent and strength.
      batch_size: completions at a time.
      sweeps_by: completions are sampled `here`, or left to another engine: `export` writes
        the sweep as files in the workdir, and takes its completions from there.
    """

    vectors: str | None = None
    latents: tuple[int, ...] | None = None
    prompts: str | None = None
    mode: str = "add"
    strengths: tuple[float, ...] = (-1.0, 1.0)
    unit: float | None = None
    tokens: tuple[str, ...] = ("all",)
    skip: int = 0
    samples: int = 1
    batch_size: int = 16
    sweeps_by: str = "here"

    def __post_init__(self) -> None:
        for what, values, allowed in (
            ("mode", [self.mode], INTERVENTIONS),
            ("tokens", self.tokens, TOKENS),
            ("sweeps_by", [self.sweeps_by], SWEEPS_BY),
        ):
            unknown = [value for value in values if value not in allowed]
            if unknown:
                raise ValueError(
                    f"{what} {unknown[0]!r} is unknown; choose of {', '.join(allowed)}"
                )
        for name, least in (("batch_size", 1), ("skip", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.unit is not None and not math.isfinite(self.unit):
            raise ValueError(
                f"unit is {self.unit}; give a finite length, or leave it out for the "
                "site's mean"
            )
        if INTERVENTIONS[self.mode].of_latents and self.vectors:
            raise ValueError(
                f"mode {self.mode} needs an SAE, whose latent activations it changes; "
                "give sae instead of vectors"
            )
