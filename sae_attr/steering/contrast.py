"""Rates of a behaviour from the probabilities of texts for and against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

MEASURES = ("probability", "log_odds")


@dataclass(frozen=True)
class Contrast:
    """Texts after a prompt that stand for and against a behaviour.

    Args:
      present, absent: texts that show the behaviour, and texts that show its absence,
        each with the space or capital that the model would write; a prompt's record may
        name its own. Empty: no contrast.
      measure: `probability`: P⁺ and P⁻ are the summed probabilities of either side, the
        rate is P⁺ / (P⁺ + P⁻), and coherence is P⁺ + P⁻; for short answers. `log_odds`:
        the rate is the logistic function of the difference of mean log-probabilities,
        and coherence is the geometric mean of the tokens' probabilities; for long texts.
      per_token: of `log_odds`: log-probability per token of a text, else their sum.
      least_mass: of `probability`: a prompt whose texts have less than this in all
        without steering is left out; less on average ends the study.
    """

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    measure: str = "probability"
    per_token: bool = True
    least_mass: float = 0.01

    def __post_init__(self) -> None:
        for side in ("present", "absent"):
            for text in getattr(self, side):
                if not isinstance(text, str) or not text:
                    raise ValueError(
                        f"continuations.{side} has {text!r}; give texts, in quotes where "
                        f"they are numbers or begin with a space: \"(' 1',)\""
                    )
        if self.measure not in MEASURES:
            raise ValueError(
                f"measure {self.measure!r} is unknown; choose {' or '.join(MEASURES)}"
            )
        if not 0 <= self.least_mass < 1:
            raise ValueError(
                f"least_mass {self.least_mass} is a probability; give 0 to below 1"
            )


def contrast_rates(
    log_probs_kpn: jax.Array,
    side_pn: Any,
    length_pn: Any,
    contrast: Contrast = Contrast(),
) -> tuple[jax.Array, jax.Array]:
    """Returns the rates of the behaviour and of coherence, `[k, p]` each in 0..1.

    Args:
      log_probs_kpn: nats, of every text under every condition.
      side_pn: 1 for a text that shows the behaviour, −1 for one that shows its absence,
        0 where there is no text.
      length_pn: tokens of every text.
      contrast: its `measure` and `per_token`.
    """
    side_pn = jnp.asarray(side_pn)
    if contrast.measure == "probability":
        log_with_kp = _log_sum(log_probs_kpn, side_pn > 0)
        log_without_kp = _log_sum(log_probs_kpn, side_pn < 0)
        mass_kp = jnp.exp(log_with_kp) + jnp.exp(log_without_kp)
        # Probabilities that sum to 1 do so up to rounding.
        return jax.nn.sigmoid(log_with_kp - log_without_kp), jnp.minimum(mass_kp, 1.0)
    odds_kp = log_odds(log_probs_kpn, side_pn, length_pn, per_token=contrast.per_token)
    per_token_kpn = log_probs_kpn / jnp.maximum(jnp.asarray(length_pn), 1)
    return jax.nn.sigmoid(odds_kp), jnp.exp(_mean(per_token_kpn, side_pn != 0))


def log_odds(
    log_probs_kpn: jax.Array, side_pn: Any, length_pn: Any, *, per_token: bool
) -> jax.Array:
    """Returns the mean log-probability of a prompt's texts for, minus that of those
    against, `[k, p]` in nats.

    Args:
      log_probs_kpn, side_pn, length_pn: as for `contrast_rates`.
      per_token: of every text its log-probability over its number of tokens.
    """
    side_pn = jnp.asarray(side_pn)
    if per_token:
        log_probs_kpn = log_probs_kpn / jnp.maximum(jnp.asarray(length_pn), 1)
    return _mean(log_probs_kpn, side_pn > 0) - _mean(log_probs_kpn, side_pn < 0)


def _log_sum(log_probs_kpn: jax.Array, where_pn: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(where_pn, log_probs_kpn, -jnp.inf), axis=-1)


def _mean(values_kpn: jax.Array, where_pn: jax.Array) -> jax.Array:
    total_kp = jnp.sum(jnp.where(where_pn, values_kpn, 0.0), axis=-1)
    return total_kp / jnp.maximum(jnp.sum(where_pn, axis=-1), 1)
