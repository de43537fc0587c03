"""Scores of the latents that a case steers, whichever dictionary they are of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sae_attr.store import Arrays, Result


@dataclass(frozen=True, eq=False)
class LatentScores:
    """Scores by their keys.

    Args:
      of_sae: of every latent of the case's SAE, as an attribution has them.
      of_further: of the ranked latents of further dictionaries, as the stage
        `dictionaries` has them; {} without any.
    """

    of_sae: Arrays
    of_further: Arrays = field(default_factory=dict)

    @classmethod
    def load(cls, attribution: Result, dictionaries: Result | None) -> LatentScores:
        """Returns the scores that the two stages stored."""
        further = {} if dictionaries is None else dictionaries.arrays
        return cls(attribution.arrays, further)

    def of(self, key: str, latents_k: np.ndarray) -> np.ndarray:
        """Returns a score of some latents by their numbers (`StudyLatents`), `[k]`; NaN
        for those of a dictionary that does not have it.
        """
        latents_k = np.asarray(latents_k, np.int64)
        values_n = np.asarray(self.of_sae[key])
        is_own_k = latents_k < len(values_n)
        if is_own_k.all():
            return values_n[latents_k]
        out_k = np.full(len(latents_k), np.nan, values_n.dtype)
        out_k[is_own_k] = values_n[latents_k[is_own_k]]
        out_k[~is_own_k] = self.further(key, latents_k[~is_own_k])
        return out_k

    def further(self, key: str, latents_k: np.ndarray) -> np.ndarray:
        """Returns a score of some latents of further dictionaries, `[k]`; NaN where it
        is not known, and for latents of the case's SAE.
        """
        numbers = np.asarray(self.of_further.get("latents_k", np.zeros(0, np.int64)))
        values = self.of_further.get(f"score.{key}", np.full(len(numbers), np.nan))
        value_of = dict(zip(numbers.tolist(), np.asarray(values).tolist(), strict=True))
        return np.array([value_of.get(latent, np.nan) for latent in latents_k.tolist()])
