"""What the steps of a fine-tune show of pairs of completions: Δ of every latent and two
directions; and which latents are steered at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.completion_scores import ScoreKind, completion_scores, sided
from sae_attr.analyses.transition_settings import TransitionSettings
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.token_table import collect, token_weights
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import Lora
from sae_attr.lm.params import Params
from sae_attr.organism.adapter_path import AdapterPath, with_adapter
from sae_attr.store import Computed
from sae_attr.study.setup import Setup

# Directions that are steered beside latents, both of the last step.
VECTORS = ("gradient", "mean_difference")


class SteppedModel(NamedTuple):
    """A model, and how the adapter of a step is put on it.

    Args:
      where: matrix and layer, of `check_path_adapter`.
    """

    cfg: LMConfig
    params: Params
    lora: Lora
    where: tuple[str, int]

    def at(self, path: AdapterPath, step: int, times: float = 1.0) -> Params:
        """Returns the weights of a step, the adapter multiplied with `times`."""
        factors = jnp.asarray(path.a_si[step]), jnp.asarray(path.b_so[step])
        return _adapted(self.params, self.lora, self.where, factors, times)


@partial(jax.jit, static_argnames=("lora", "where"))
def _adapted(
    params: Params, lora: Lora, where: tuple[str, int], factors: Any, times: Any
) -> Params:
    return with_adapter(params, lora, where, factors, times)


class PairMeasurement(NamedTuple):
    """Holds what one step shows of the pairs: Δ of every latent within each prompt, and
    unit directions toward the behaviour.
    """

    delta_pn: np.ndarray
    gradient_d: np.ndarray
    mean_difference_d: np.ndarray


def measure_pairs(
    setup: Setup,
    params: Params,
    dec_nd: jax.Array,
    mean_d: np.ndarray,
    *,
    cfg: LMConfig,
    settings: TransitionSettings,
) -> PairMeasurement:
    """Measures the first pairs of a setup, as many as the settings take.

    Args:
      params, cfg: of the step's model.
      dec_nd: unit decoder rows.
      mean_d: ā.
    """
    s, rows = settings, setup.encoded.rows
    rows = [row for row in rows if row.pair < s.pairs]
    table = collect(
        params,
        rows,
        cfg=cfg,
        site=setup.site,
        mesh=setup.mesh,
        batch_size=s.batch_size,
    )
    kind, mean = ScoreKind(*s.attribution), jnp.asarray(mean_d, jnp.float32)
    scores_rn = completion_scores(table, dec_nd, mean, kind, setup.exclude)
    gradient_k = token_weights(rows, s.gradient_tokens, setup.exclude)
    completion_k = token_weights(rows, "completion", setup.exclude)
    return PairMeasurement(
        sided(scores_rn, rows).difference_pn,
        _unit(-gradient_k @ table.grads_kd),
        _unit(completion_k @ table.acts_kd),
    )


def _unit(vector_d: np.ndarray) -> np.ndarray:
    return vector_d / max(float(np.linalg.norm(vector_d)), 1e-30)


def measured_series(
    settings: TransitionSettings,
    setup: Setup,
    measure: Callable[[int, jax.Array], PairMeasurement],
    steer: Callable[[int, np.ndarray], np.ndarray],
    *,
    seed: int,
) -> Computed:
    """Returns what the measured steps show, m of them: arrays `delta_m` and `delta_se_m`
    of the top latents on the half of the prompts that did not select them,
    `gradient_md`, `mean_difference_md`, and `steering_mk`, the rise of the rate at +s and
    its fall at −s, of `VECTORS`, the top latents and random ones; `latents_k` and `top`
    in `meta`.

    Args:
      measure: from a step and the unit decoder rows `[n, d]`.
      steer: from a step and directions `[k, d]`, the rise and the fall, `[k]`.
      seed: of the random latents.
    """
    s = settings
    dec_nd = decoder_rows(setup.decoder, np.arange(len(setup.decoder)))
    measured = [measure(step, dec_nd) for step in s.measured_steps]
    last = measured[-1]
    selected, others = _halves(len(last.delta_pn))
    delta_n = last.delta_pn[selected].mean(0)
    top_k = np.argsort(-delta_n, kind="stable")[: s.top]
    random_k = _random_latents(len(dec_nd), s.random, top_k, seed)
    latents_k = np.concatenate([top_k, random_k])
    vectors = np.stack([last.gradient_d, last.mean_difference_d])
    dec_kd = np.concatenate([vectors, np.asarray(dec_nd)[latents_k]])
    steering = [steer(step, dec_kd) for step in s.measured_steps]
    arrays = {"steering_mk": np.stack(steering), "latents_k": latents_k}
    arrays |= _series(measured, top_k, others)
    return arrays, {"top": len(top_k)}


def _halves(prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts that select latents, and the others: a latent that is selected
    on the prompts that it is measured on looks better than it is.

    Raises:
      ValueError: fewer than four prompts.
    """
    if prompts < 4:
        raise ValueError(
            f"{prompts} prompts have pairs: half of them select latents, and the other "
            "half needs two for a standard error; raise pair_prompts"
        )
    return np.arange(0, prompts, 2), np.arange(1, prompts, 2)


def _random_latents(count: int, drawn: int, top_k: np.ndarray, seed: int) -> np.ndarray:
    others = np.setdiff1d(np.arange(count), top_k)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(others, min(drawn, len(others)), replace=False))


def _series(
    measured: Sequence[PairMeasurement], top_k: np.ndarray, others: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns Δ of the top latents with its standard error over prompts, and the
    directions, step by step.
    """
    means, errors = [], []
    for x in measured:
        of_prompt = x.delta_pn[np.ix_(others, top_k)].astype(np.float64).mean(1)
        means.append(of_prompt.mean())
        errors.append(of_prompt.std(ddof=1) / np.sqrt(len(of_prompt)))
    return {
        "delta_m": np.array(means),
        "delta_se_m": np.array(errors),
        "gradient_md": np.stack([x.gradient_d for x in measured]),
        "mean_difference_md": np.stack([x.mean_difference_d for x in measured]),
    }
