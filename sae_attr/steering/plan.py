"""What a sweep consists of: rows with names of their own, their random keys, and
batches of one shape.

A row's key depends on prompt, sample and attempt alone: the same sample with and
without steering, at every strength and of every latent, is drawn with the same random
numbers, so that their difference is the intervention's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import numpy as np

NONE = -1  # in the place of a latent: unsteered
AWAY, TOWARD = "away", "toward"


class Row(NamedTuple):
    """One completion to make.

    Args:
      prompt: id of the prompt.
      sample: number of the sample of that prompt, from 0.
      latent: `NONE` for an unsteered one.
      strength: c with its sign; 0 for an unsteered one.
      direction: what the steering is for, `away` from the behaviour or `toward` it; ""
        for an unsteered one.
      tokens: which tokens are steered; "" for an unsteered one.
      case, model: of which study and which model; any text.
      attempt: 0, and one more each time that the answer was set aside.
    """

    prompt: str
    sample: int
    latent: int = NONE
    strength: float = 0.0
    direction: str = ""
    tokens: str = ""
    case: str = ""
    model: str = ""
    attempt: int = 0

    @property
    def id(self) -> str:
        """A name made of the fields alone, whatever the order of a plan."""
        fields = (
            self.case,
            self.model,
            self.latent,
            self.direction,
            self.tokens,
            float(self.strength),
        )
        return "/".join(
            quote(str(f), safe=" ")
            for f in (*fields, self.prompt, self.sample, self.attempt)
        )


@dataclass(frozen=True)
class Cost:
    """Rows, prompt tokens that are read, and new tokens at most."""

    rows: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Plan:
    """Rows in the order in which they run.

    Raises:
      ValueError: two rows are the same.
    """

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        twice = [
            name
            for name, count in Counter(row.id for row in self.rows).items()
            if count > 1
        ]
        if twice:
            raise ValueError(
                f"{len(twice)} rows stand twice in the plan, the first is "
                f"{twice[0]!r}; leave one out"
            )

    def __add__(self, other: Plan) -> Plan:
        return Plan((*self.rows, *other.rows))

    def unfinished(self, done: Collection[str]) -> list[Row]:
        """The rows whose ids are not among `done`, in order."""
        done = set(done)
        return [row for row in self.rows if row.id not in done]

    def cost(self, lengths: Mapping[str, int], *, max_new: int) -> Cost:
        """What it takes at most; `lengths` are tokens of the prompts by id."""
        return Cost(
            len(self.rows),
            sum(lengths[row.prompt] for row in self.rows),
            len(self.rows) * max_new,
        )


def make_plan(
    latents: Sequence[int],
    strengths: Sequence[float] | Mapping[int, Sequence[float]],
    prompts: Sequence[str],
    samples: int,
    *,
    tokens: Sequence[str] = ("all",),
    unsteered: bool = True,
    direction: str | None = None,
    case: str = "",
    model: str = "",
) -> Plan:
    """Every latent at every strength on every scope, and the unsteered rows before
    them, for every sample of every prompt.

    Args:
      strengths: signed, for all latents, or for each its own; one of 0 makes rows that
        are steered by nothing.
      prompts: their ids.
      direction: None names a row by its sign: negative is away, positive toward (the
        fixed sign of the method).

    Raises:
      ValueError: a number of samples below 1, a latent without strengths, a row that
        stands twice.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
    if isinstance(strengths, Mapping) and (
        absent := [latent for latent in latents if latent not in strengths]
    ):
        raise ValueError(
            f"latent {absent[0]} has no strength; give one, or leave it out of the "
            "latents"
        )
    of = lambda latent: (
        strengths[latent] if isinstance(strengths, Mapping) else strengths
    )
    kinds: list[dict[str, Any]] = [{}] if unsteered else []
    kinds += [
        {
            "latent": int(k),
            "strength": float(c),
            "direction": direction or (AWAY if c < 0 else TOWARD),
            "tokens": scope,
        }
        for scope in tokens
        for k in latents
        for c in of(k)
    ]
    shared: dict[str, Any] = {"case": case, "model": model}
    return Plan(
        tuple(
            Row(p, s, **kind, **shared)
            for kind in kinds
            for p in prompts
            for s in range(samples)
        )
    )


def again(row: Row) -> Row:
    """The row's next attempt, with other random numbers: for an answer that was set
    aside.
    """
    return row._replace(attempt=row.attempt + 1)


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row | None]]:
    """Rows in order, `size` at a time and of one token scope; None fills up, so that
    all batches have one shape.
    """
    for scope in dict.fromkeys(row.tokens or "all" for row in rows):
        own = [row for row in rows if (row.tokens or "all") == scope]
        for start in range(0, len(own), size):
            part = own[start : start + size]
            yield [*part, *[None] * (size - len(part))]


def stable_hash(text: str) -> int:
    """32 bits of a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def row_keys(key: jax.Array, rows: Sequence[Row | None]) -> jax.Array:
    """Keys `[b]`: key folded with the hash of the prompt's id, the sample and the
    attempt, and with nothing else.
    """
    numbers = [
        (stable_hash(r.prompt), r.sample, r.attempt) if r else (0, 0, 0) for r in rows
    ]
    return _folded(key, np.asarray(numbers, np.uint32))


@jax.jit
def _folded(key: jax.Array, numbers_b3: jax.Array) -> jax.Array:
    one = lambda numbers_3: jax.lax.fori_loop(
        0, 3, lambda i, k: jax.random.fold_in(k, numbers_3[i]), key
    )
    return jax.vmap(one)(numbers_b3)
