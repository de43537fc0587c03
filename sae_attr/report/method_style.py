"""The methods that a study compares: their names for readers, and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from sae_attr.report.safe_text import one_line

RANDOM = "random"

NAMES = {
    "delta_attribution": "Δ-attribution",
    "delta_activation": "Δ-activation",
    "delta_code": "Δ-code",
    "delta_projection": "Δ-projection",
    "gradient": "lever (gradient)",
    "gradient_all": "lever, all tokens",
    "positive_only": "positives only",
}
# Where a reader meets it for the first time: the post's own recipe, which the preset
# `faithful` follows to the letter.
FIRST_NAMES = {"delta_attribution": "Δ-attribution (as published)"}
# The presets of an attribution are methods of a study.
PRESET_METHODS = {"faithful": "delta_attribution"}
# Most people with a colour deficiency can tell these apart, on white and on black.
COLORS = {
    "delta_attribution": "#2f7ebc",
    "delta_activation": "#e07b39",
    "recommended": "#3f9f6f",
    "gradient": "#b25fa6",
    "gradient_all": "#b25fa6",
    RANDOM: "#8a95a1",
}
MORE_COLORS = ("#b59a2c", "#4fb3c4", "#c65b62", "#7a6cc9")

_LONGEST = 40  # characters of a name in figures and sentences


def method_name(method: str) -> str:
    """Returns a method's name as figures and sentences write it."""
    return NAMES.get(method) or one_line(method.replace("_", " "), _LONGEST)


def first_name(method: str) -> str:
    """Returns a method's name as its first use writes it, with what it stands for."""
    return FIRST_NAMES.get(method) or method_name(method)


def preset_name(preset: str) -> str:
    """Returns the name of an attribution's preset as that of the method that ranks by
    it.
    """
    return method_name(PRESET_METHODS.get(preset, preset))


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """Returns a colour per method, the same for the same list of methods."""
    colors: dict[str, str] = {}
    more = cycle(MORE_COLORS)
    for method in methods:
        if method not in colors:
            colors[method] = COLORS.get(method) or next(more)
    return colors
