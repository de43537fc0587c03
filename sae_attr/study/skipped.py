"""A score that is left out, with the reason."""

from __future__ import annotations

from typing import NamedTuple


class Skipped(NamedTuple):
    """Why a score of all latents is left out.

    `by_limit`: the dense limit alone is in the way, so that a few latents can have it.
    """

    why: str
    by_limit: bool = False
