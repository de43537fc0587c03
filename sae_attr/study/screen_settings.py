"""Settings of the screen: latents that are tried on held-out pairs before any of them is
steered on prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.steering.screening import check_strength

SCREENED = "screened"  # the method that ranks by the screen
RANKS = ("both", "away", "toward")


@dataclass(frozen=True, kw_only=True)
class ScreenSettings:
    """Sets what a study screens (docs/method.md, Screening).

    Args:
      screen: latents that are tried, the best by one score; the latents that the study
        steers anyway are tried beside them, and the best by the screen are steered as
        one more method, `screened`. 0 leaves it out.
      screen_by: the score that proposes them: a preset's method, or a name of `SCORES`.
      screen_strength: |c| in units of the site's mean norm: −c in the model with the
        behaviour, +c in the one without.
      screen_pairs: prompts of the pairs that are held out for it, whole groups: no
        ranking sees them.
      screen_per_token: log-probabilities per token of a completion, else their sums.
      screen_rank: by the mean of `both` directions, or by `away` or `toward` alone.
    """

    screen: int = 0
    screen_by: str = "gradient"
    screen_strength: float = 0.2
    screen_pairs: int = 32
    screen_per_token: bool = False
    screen_rank: str = "both"


def check_screen(settings: ScreenSettings, scores: tuple[str, ...]) -> None:
    """Raises ValueError for settings with which nothing can be screened.

    Args:
      scores: that may propose latents.
    """
    if settings.screen < 0:
        raise ValueError(
            f"screen is {settings.screen}; give a number of latents, or 0 for no screen"
        )
    if settings.screen_by not in scores:
        raise ValueError(
            f"screen_by {settings.screen_by!r} is unknown; choose of {', '.join(scores)}"
        )
    if settings.screen_rank not in RANKS:
        raise ValueError(
            f"screen_rank {settings.screen_rank!r} is unknown; choose of "
            f"{', '.join(RANKS)}"
        )
    check_strength(settings.screen_strength)
    if settings.screen_strength < 0:
        raise ValueError(
            f"screen_strength is {settings.screen_strength}; give its size, since both "
            "signs are tried"
        )
    if settings.screen_pairs < 2:
        raise ValueError(
            f"screen_pairs is {settings.screen_pairs}; a standard error needs at least 2"
        )
