"""Groups of prompts that stand or fall together, such as the phrasings of one belief:
the bootstrap draws whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    interval,
    prompt_draws,
)


def group_numbers(names: Sequence[str]) -> np.ndarray:
    """Returns the number of every prompt's group, from 0 in the order of their first
    prompts, `[p]`.
    """
    numbers: dict[str, int] = {}
    for name in names:
        numbers.setdefault(name, len(numbers))
    return np.array([numbers[name] for name in names], np.int64)


def group_draws(
    group_p: np.ndarray, *, settings: EffectSettings = DEFAULT
) -> np.ndarray:
    """Draws how often each prompt is in each resample, `[resamples, prompts]`, whole
    groups at a time; where every prompt is a group, that is `prompt_draws`.

    Args:
      group_p: `group_numbers`.
    """
    groups = int(group_p.max()) + 1 if len(group_p) else 0
    return prompt_draws(groups, settings=settings)[:, group_p]


def group_interval(
    drawn: np.ndarray, group_p: np.ndarray, *, settings: EffectSettings = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the percentile interval over the first axis of values under `group_draws`;
    NaN with fewer than two groups, which drawn again and again have no width.
    """
    low, high = interval(drawn, settings.level)
    if len(np.unique(group_p)) < 2:
        return np.full_like(low, np.nan), np.full_like(high, np.nan)
    return low, high
