"""Settings of what stands beside exact effects: other prompts, ordinary text, Gaussian
directions, and a few latents that are sampled too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Sets what a study by exact probabilities measures beside its effects.

    Args:
      sampled_latents: of each method, and as many random ones, whose effects are also
        sampled and graded by the case's judge; 0 leaves that out.
      sampled_prompts, sampled_samples: at most so many prompts of the split for
        effects, and completions of each, for that.
      specific_latents: of each method whose specificity is measured: what they change
        on the case's probes and on ordinary text; 0 leaves that out.
      specific_random: random latents beside them.
      specific_tokens: of ordinary text, on which the loss under steering is measured;
        0 leaves that out.
      random_directions: Gaussian directions beside the random latents, at the median
        strength of the latents; 0 leaves them out.
      probe_prompts: at most so many prompts of each probe.
    """

    sampled_latents: int = 3
    sampled_prompts: int = 10
    sampled_samples: int = 8
    specific_latents: int = 5
    specific_random: int = 20
    specific_tokens: int = 2000
    random_directions: int = 20
    probe_prompts: int = 30


def check_probes(name: str, probes: Sequence[str], splits: Sequence[str]) -> None:
    """Raises ValueError for a probe that is one of a case's own splits, or listed twice.

    Args:
      name: of the case.
    """
    for probe in probes:
        if probe in splits or not probe:
            raise ValueError(
                f"case {name}: probe {probe!r} cannot be one of {', '.join(splits)}; "
                "name another split of its prompts"
            )
    if len(set(probes)) < len(probes):
        raise ValueError(f"case {name}: probes {tuple(probes)} name one twice")
