"""Settings of a mitigation study, and the conditions that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_attr.analyses.mitigation import PROJECT_TO, SUPPRESS_BY
from sae_attr.settings import check_numbers
from sae_attr.study.settings import at_least, method_names

CAUSE, LEVER, RANDOM = "cause", "lever", "random"
DIRECTION, RANDOM_DIRECTION = "direction", "random_direction"
AT_SITE, AT_LAYERS = "site", "layers"


@dataclass(frozen=True)
class MitigationSettings:
    """Sets what a mitigation study does.

    Args:
      counts: latents that are suppressed together, ascending.
      cause, lever: rankings whose first latents are suppressed, of
        `settings.method_names`: which did cause the behaviour, and which move it.
      draws: sets of random latents of like firing rate, and random directions.
      suppress_by: ways to suppress, one or several: `mean`: the activation goes back to
        its mean over ordinary text within the span of the latents' rows, which is what
        the ranking by cause predicts, has no strength to choose, and subtracts nothing
        twice; `zero`: its part in that span is removed; `steer`: a vector of a fixed
        length against the sum of the rows, which is what the ranking by lever predicts.
      strength: of `steer`, in units of the site's mean norm; None: the median strength
        at which the study steers its latents away.
      project_to: what the projection on the mean-difference direction becomes: `zero`,
        as its authors have it, or that of the layer's `mean` activation.
      benign_present, benign_absent: sets of other prompts on which the answer that
        counts as the behaviour is the right one (agreeing with a true belief), or the
        wrong one (harmful advice); of either those that the case has.
      text_tokens: of ordinary text, on which perplexity is measured; 0 leaves it out.
      layer_tokens: of ordinary text, for means and largest norms of every layer.
      least_coherence: a condition is compared in words only while it keeps this part of
        the unedited coherence: a rate among answers that hardly occur means little.
      resamples: of bootstrap intervals.
      seed: of random latents, random directions and resamples.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cause: str = "delta_attribution"
    lever: str = "gradient"
    draws: int = 5
    suppress_by: tuple[str, ...] = ("mean", "steer")
    strength: float | None = None
    project_to: str = "zero"
    benign_present: tuple[str, ...] = ("true_beliefs",)
    benign_absent: tuple[str, ...] = ("misalignment", "validation")
    text_tokens: int = 4000
    layer_tokens: int = 4000
    least_coherence: float = 0.8
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self.counts, int, "counts")
        ascending = list(self.counts) == sorted(set(self.counts))
        if not self.counts or not ascending or self.counts[0] < 1:
            raise ValueError(
                f"counts {self.counts} must be numbers of latents from 1, ascending"
            )
        for name in ("cause", "lever"):
            if getattr(self, name) not in method_names():
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; choose of "
                    f"{', '.join(method_names())}"
                )
        _check_words("suppress_by", self.suppress_by, SUPPRESS_BY)
        _check_words("project_to", (self.project_to,), PROJECT_TO)
        at_least(self, 1, "draws", "layer_tokens", "resamples")
        at_least(self, 0, "text_tokens", "least_coherence")
        if self.strength is not None and not self.strength > 0:
            raise ValueError(
                f"strength {self.strength} must be above 0, in units of the site's mean "
                "norm"
            )

    @property
    def most(self) -> int:
        """The largest number of latents."""
        return self.counts[-1]


def _check_words(name: str, words: Sequence[str], allowed: Sequence[str]) -> None:
    unknown = [word for word in words if word not in allowed]
    if unknown or not words or len(set(words)) < len(words):
        raise ValueError(
            f"{name} {', '.join(words) or 'of nothing'}: choose of "
            f"{', '.join(allowed)}, each once"
        )


@dataclass(frozen=True)
class Suppression:
    """One condition of a mitigation study.

    Args:
      method: who chose: cause | lever | random, or direction | random_direction.
      count: latents that are suppressed, or sites at which a direction is projected out.
      draw: number of the random draw; 0 where nothing is drawn.
    """

    method: str
    count: int
    draw: int = 0


def latent_conditions(settings: MitigationSettings) -> list[Suppression]:
    """Returns the conditions that suppress latents in one way."""
    conditions = []
    for count in settings.counts:
        conditions.append(Suppression(CAUSE, count))
        conditions.append(Suppression(LEVER, count))
        for draw in range(settings.draws):
            conditions.append(Suppression(RANDOM, count, draw))
    return conditions


def direction_conditions(settings: MitigationSettings, sites: int) -> list[Suppression]:
    """Returns the conditions that project directions out at so many sites."""
    conditions = [Suppression(DIRECTION, sites)]
    for draw in range(settings.draws):
        conditions.append(Suppression(RANDOM_DIRECTION, sites, draw))
    return conditions
