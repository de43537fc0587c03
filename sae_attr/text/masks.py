"""Which tokens count: one rule for training, SAE check, ā, δ, firing rates, passages
and the unit of steering.

Language models park what attention does not need on a few tokens, often the first of a
row, whose activations are a hundred times as long as all others (attention sinks). They
say nothing about a text, and one of them outweighs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Site

EXCLUDABLE = frozenset({"bos", "special"})
# Why a position of ordinary text does not count; the last is known only from its
# activation.
REASONS = ("kept", "padding", "bos", "special", "first_k", "norm_outlier")


@dataclass(frozen=True)
class Masks:
    """Sets which tokens do not count; padding never does.

    Args:
      exclude: of "bos" (one at the front of a document or row) and "special" (every
        special token).
      first_k: leave out the first k positions of each piece of a document, BOS among
        them.
      outlier: leave out a token whose norm at any of the sites exceeds this many times
        the median norm there; None keeps all. Such tokens are the attention sinks. The
        limit is measured once on ordinary text (`norm_limit`), so that whether a token
        counts does not depend on what it is batched with.

    Raises:
      ValueError: an unknown exclusion, a negative first_k, an outlier that is no
        multiple above 1.
    """

    exclude: frozenset[str] = EXCLUDABLE
    first_k: int = 0
    outlier: float | None = 10.0

    def __post_init__(self) -> None:
        check_exclude(self.exclude)
        if self.first_k < 0:
            raise ValueError(f"first_k is {self.first_k}; it must not be negative")
        if self.outlier is not None and not self.outlier > 1:
            raise ValueError(
                f"outlier is {self.outlier}; give a multiple of the median norm above "
                "1, or 0 to keep all"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "exclude": sorted(self.exclude),
            "first_k": self.first_k,
            "outlier": self.outlier,
        }


def masks_from(values: Any) -> Masks:
    """Reads the values of `Masks.to_dict`, from JSON; an outlier of 0 keeps all tokens.

    Raises:
      ValueError: another shape, an unknown name, a value of another type.
    """
    if not isinstance(values, Mapping) or set(values) - {
        "exclude",
        "first_k",
        "outlier",
        "norm_limits",
    }:
        raise ValueError(
            f"masks are {values!r}; they must be an object of exclude, first_k and "
            "outlier"
        )
    exclude, first_k = values.get("exclude", ()), values.get("first_k", 0)
    outlier = values.get("outlier")
    names = isinstance(exclude, (list, tuple))
    names = names and all(isinstance(name, str) for name in exclude)
    if not (names and _is_number(first_k) and _is_number(outlier)):
        raise ValueError(
            f"masks are {values!r}; exclude must be a list of names, first_k and "
            "outlier numbers"
        )
    return Masks(
        frozenset(exclude), int(first_k or 0), float(outlier) if outlier else None
    )


def _is_number(value: Any) -> bool:
    """Returns True for a number or None; bool, which Python counts among them, is none."""
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_exclude(exclude: frozenset[str] | tuple[str, ...]) -> None:
    """Raises ValueError for a name that is not in `EXCLUDABLE`."""
    if unknown := sorted(set(exclude) - EXCLUDABLE):
        raise ValueError(
            f"exclude {', '.join(unknown)!r} is unknown; choose of "
            f"{', '.join(sorted(EXCLUDABLE))}"
        )


def norm_limit(norms_k: np.ndarray, outlier: float) -> float:
    """Returns the largest norm that counts: `outlier` times the median of the norms of
    ordinary tokens `[k]`.
    """
    # Three digits: the last bits depend on mesh and batch shape, and a run that was
    # stopped may go on with others.
    return float(f"{np.median(norms_k) * outlier:.3g}")


def beyond_limits(acts: Mapping[Site, Any], limits: Mapping[Site, float]) -> Any:
    """Returns which positions exceed the norm limit at any of the limited sites, bool
    `[...]`; False without limits.

    Args:
      acts: site -> activations `[..., d]`; every limited site must be among them.
      limits: site -> largest norm that counts.
    """
    beyond: Any = False
    for site, limit in limits.items():
        norms = jnp.linalg.norm(jnp.asarray(acts[site]).astype(jnp.float32), axis=-1)
        beyond = beyond | (norms > limit)
    return beyond


def count_text(counts: Mapping[str, int]) -> str:
    """Returns how many tokens a mask left out, by reason, as words; `counts` is by the
    names of `REASONS`.
    """
    tokens = sum(number for name, number in counts.items() if name != "padding")
    removed = {name: counts.get(name, 0) for name in REASONS[2:]}
    parts = []
    for name, number in removed.items():
        if number:
            parts.append(f"{number:,} {name.replace('_', ' ')}")
    share = sum(removed.values()) / max(tokens, 1)
    return f"{share:.1%} of {tokens:,} tokens masked ({', '.join(parts) or 'none'})"
