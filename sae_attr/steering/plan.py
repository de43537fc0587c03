"""A sweep's plan: conditions, prompts and samples, the rows that they make, their
random keys.

A row's key depends on prompt, sample and attempt alone: the same sample with and
without steering, at every strength and of every latent, is drawn with the same random
numbers, so that their difference is the intervention's.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import numpy as np

NO_LATENT = -1  # the latent of an unsteered row
AWAY, TOWARD = "away", "toward"


class Condition(NamedTuple):
    """One thing that is done to a model while it answers.

    Args:
      latent: `NO_LATENT` where nothing is steered.
      sign: −1 or +1, the side to which it is steered; 0 where nothing is steered.
      size: |c|; 0 leaves the model unsteered (no strength was coherent enough).
      direction: what the steering is for, `away` from the behaviour or `toward` it.
      tokens: the scope that is steered, of `interventions.TOKENS`.
    """

    latent: int = NO_LATENT
    sign: int = 0
    size: float = 0.0
    direction: str = ""
    tokens: str = ""

    @property
    def strength(self) -> float:
        """The signed strength c."""
        return self.sign * self.size

    @classmethod
    def steered(
        cls,
        latent: int,
        strength: float,
        *,
        direction: str | None = None,
        tokens: str = "all",
    ) -> Condition:
        """Returns the condition of one latent at a signed strength.

        Args:
          direction: None names it by the sign: negative is away, positive toward (the
            method's fixed sign).
        """
        sign = -1 if strength < 0 else 1
        if direction is None:
            direction = AWAY if sign < 0 else TOWARD
        return cls(int(latent), sign, abs(float(strength)), direction, tokens)


UNSTEERED = Condition()


def every_condition(
    latents: Sequence[int],
    strengths: Sequence[float],
    *,
    tokens: Sequence[str] = ("all",),
    direction: str | None = None,
) -> tuple[Condition, ...]:
    """Returns the unsteered condition, then every latent at every strength on every
    scope.

    Args:
      strengths: signed; 0 makes rows that are steered by nothing.
      tokens: the scopes.
      direction: as for `Condition.steered`.
    """
    conditions = [UNSTEERED]
    for scope in tokens:
        for latent in latents:
            for strength in strengths:
                conditions.append(
                    Condition.steered(
                        latent, strength, direction=direction, tokens=scope
                    )
                )
    return tuple(conditions)


class SweepRow(NamedTuple):
    """One completion to sample.

    Args:
      prompt: id of the prompt.
      sample: number of the sample of that prompt, from 0.
      condition: what is done to the model.
      attempt: 0, and one more each time that the answer was excluded.
      case, model: of which study and which model; any text.
    """

    prompt: str
    sample: int
    condition: Condition = UNSTEERED
    attempt: int = 0
    case: str = ""
    model: str = ""

    @property
    def id(self) -> str:
        """A name made of the fields alone, whatever the order of a plan."""
        steering = self.condition
        fields = (
            self.case,
            self.model,
            steering.latent,
            steering.direction,
            steering.tokens,
            float(steering.strength),
            self.prompt,
            self.sample,
            self.attempt,
        )
        return "/".join(quote(str(field), safe=" ") for field in fields)

    def record(self) -> dict[str, Any]:
        """Returns the fields by name, those of the condition among them."""
        return {
            "prompt": self.prompt,
            "sample": self.sample,
            "latent": self.condition.latent,
            "strength": self.condition.strength,
            "direction": self.condition.direction,
            "tokens": self.condition.tokens,
            "case": self.case,
            "model": self.model,
            "attempt": self.attempt,
        }

    def again(self) -> SweepRow:
        """Returns the row's next attempt, with other random numbers: for an answer that
        was excluded.
        """
        return self._replace(attempt=self.attempt + 1)


@dataclass(frozen=True)
class PlanCost:
    """Rows, prompt tokens that are read, and new tokens at most."""

    rows: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Plan:
    """Every condition on every prompt, some samples each.

    Args:
      conditions: each once.
      prompts: ids, each once.
      samples: completions of every condition and prompt.
      case, model: of every row.

    Raises:
      ValueError: a number of samples below 1, or rows that are in the plan twice.
    """

    conditions: tuple[Condition, ...]
    prompts: tuple[str, ...]
    samples: int
    case: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        unique = len(set(self.conditions)) * len(set(self.prompts)) * self.samples
        if unique < len(self.rows):
            counts = Counter([row.id for row in self.rows])
            twice = [name for name, count in counts.items() if count > 1]
            raise ValueError(
                f"{len(twice)} rows are in the plan twice, the first is {twice[0]!r}; "
                "leave one out"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Conditions, prompts, samples: the order of `rows`."""
        return len(self.conditions), len(self.prompts), self.samples

    @functools.cached_property
    def rows(self) -> tuple[SweepRow, ...]:
        """The first attempts, condition by condition, in each prompt by prompt."""
        rows = []
        for condition in self.conditions:
            for prompt in self.prompts:
                for sample in range(self.samples):
                    row = SweepRow(prompt, sample, condition)
                    rows.append(row._replace(case=self.case, model=self.model))
        return tuple(rows)

    @functools.cached_property
    def place(self) -> dict[Condition, int]:
        """Condition -> its place on the first axis of an array of the plan's shape."""
        return {condition: k for k, condition in enumerate(self.conditions)}

    def by_condition(self, values_r: np.ndarray) -> dict[Condition, np.ndarray]:
        """Returns condition -> its values `[prompts, samples]`, of values in the order
        of `rows`.
        """
        values_kps = np.reshape(values_r, self.shape)
        return dict(zip(self.conditions, values_kps, strict=True))

    def cost(self, lengths: Mapping[str, int], *, max_new: int) -> PlanCost:
        """Returns what the plan takes at most; `lengths` are tokens of the prompts by
        id.
        """
        per_prompt = len(self.conditions) * self.samples
        prompt_tokens = sum([lengths[prompt] for prompt in self.prompts])
        return PlanCost(
            rows=len(self.rows),
            prompt_tokens=per_prompt * prompt_tokens,
            new_tokens=len(self.rows) * max_new,
        )


def stable_hash(text: str) -> int:
    """Returns 32 bits of a text, the same in every process and on every machine."""
    # Python's hash() of a text is salted in every process.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def row_keys(key: jax.Array, rows: Sequence[SweepRow | None]) -> jax.Array:
    """Returns keys `[b]`: key folded with the hash of the prompt's id, the sample and
    the attempt, and with nothing else.
    """
    # Not with the condition: steered and unsteered answers draw with the same numbers, so
    # that their difference is what steering did, not what chance did. Nor with the place
    # in the batch, which another batch size or a continued run would change.
    numbers_b3 = np.zeros((len(rows), 3), np.uint32)
    for b, row in enumerate(rows):
        if row is not None:
            numbers_b3[b] = stable_hash(row.prompt), row.sample, row.attempt
    return _folded(key, numbers_b3)


def row_seeds(key: jax.Array, rows: Sequence[SweepRow]) -> list[int]:
    """Returns a seed from 0 to 2³¹ - 1 for each row, of its key: for engines that draw
    with random numbers of their own.
    """
    bits_b = jax.vmap(lambda row_key: jax.random.bits(row_key))(row_keys(key, rows))
    # Servers read seeds as signed.
    return (np.asarray(bits_b) >> 1).tolist()


@jax.jit
def _folded(key: jax.Array, numbers_b3: jax.Array) -> jax.Array:
    fold = lambda numbers_3: jax.lax.fori_loop(
        0, 3, lambda i, k: jax.random.fold_in(k, numbers_3[i]), key
    )
    return jax.vmap(fold)(numbers_b3)
