"""Two models with planted features, on which it is known what a crosscoder should call
specific to the fine-tuned one: features of both models and of one, and two kinds of bait.

Shrinkage bait: the base model has the feature too, at a quarter of the length, which a
penalty on norms takes away. Decoupling bait: both models have the direction, each with a
strength of its own, so that two latents write it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.analyses.latent_scaling import (
    BASE_ONLY,
    FT_ONLY,
    SHARED,
    SpecificitySettings,
    latent_scaling,
    truly_specific,
)
from sae_attr.sae.model import SAE
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.sae.two_models import relative_norms, stream_rows
from sae_attr.study.settings import at_least
from sae_attr.training import LoopOptions

SHRINKAGE, DECOUPLING = "shrinkage", "decoupling"
Batches = Callable[[int], np.ndarray]
"""Number of a batch -> activations of both models, `[b, 2, d]`."""


@dataclass(frozen=True)
class PlantedSettings:
    """Two models with planted features, and the crosscoders that are trained on them.

    Args:
      steps: of each training; 0 leaves the test out.
      tokens: per step.
      width: of each model.
      shared, ft_only, base_only, shrinkage, decoupling: features of each kind.
      rate: how often each of them is active; its strength is 1 to 2.
      shrunk: length of a shrinkage bait in the base model; 1 in the fine-tuned one.
      latents, k: of the crosscoders; k of the BatchTopK one.
      sparsity: of the L1 one: λ times the sum of norms, beside the mean squared error
        of a coordinate.
      lr: of both.
      measured: tokens that latents are scaled on.
      match: cosine from which a latent is that of a feature.
    """

    steps: int = 1200
    tokens: int = 256
    width: int = 32
    shared: int = 20
    ft_only: int = 6
    base_only: int = 4
    shrinkage: int = 6
    decoupling: int = 4
    rate: float = 0.06
    shrunk: float = 0.25
    latents: int = 56
    k: int = 3
    sparsity: float = 0.02
    lr: float = 5e-3
    measured: int = 10_000
    match: float = 0.9

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "shared", "base_only", "shrinkage", "decoupling")
        at_least(self, 1, "tokens", "width", "ft_only", "latents", "k", "measured")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}; it must be a share between 0 and 1")


@dataclass(frozen=True, eq=False)
class PlantedModels:
    """Features of two models.

    Args:
      kinds: of each feature.
      rows_mnd: their directions in the base model and in the fine-tuned one.
      batch: activations, made anew for every number.
    """

    kinds: tuple[str, ...]
    rows_mnd: np.ndarray
    batch: Batches


def planted_models(settings: PlantedSettings, seed: int) -> PlantedModels:
    """Returns models whose directions are random and unit, but for the baits."""
    s = settings
    kinds: list[str] = []
    for kind in (SHARED, FT_ONLY, BASE_ONLY, SHRINKAGE, DECOUPLING):
        kinds += [kind] * getattr(s, kind)
    kind_n = np.array(kinds)
    rng = np.random.default_rng(seed)
    rows_nd = rng.standard_normal((len(kinds), s.width))
    rows_nd /= np.linalg.norm(rows_nd, axis=1, keepdims=True)
    base_n = np.where(kind_n == SHRINKAGE, s.shrunk, kind_n != FT_ONLY)
    tuned_n = (kind_n != BASE_ONLY).astype(float)
    rows_mnd = np.stack([base_n, tuned_n])[..., None] * rows_nd

    def batch(step: int) -> np.ndarray:
        rng = np.random.default_rng((seed, 1 + step))
        shape = s.tokens, len(kinds)
        active_bn = rng.random(shape) < s.rate
        strength_bn, other_bn = rng.uniform(1, 2, (2, *shape))
        base_bn = np.where(kind_n == DECOUPLING, other_bn, strength_bn)
        base_bd = (active_bn * base_bn) @ rows_mnd[0]
        tuned_bd = (active_bn * strength_bn) @ rows_mnd[1]
        return np.stack([base_bd, tuned_bd], axis=1).astype(np.float32)

    return PlantedModels(tuple(kinds), rows_mnd, batch)


def planted_rows(
    settings: PlantedSettings, specificity: SpecificitySettings, seed: int
) -> list[dict[str, Any]]:
    """Trains a BatchTopK and an L1 crosscoder on planted models, and returns a row for
    each: precision and recall of the features of the fine-tuned model alone, by Δ_norm
    and by ν with it, and baits that are called so.
    """
    models = planted_models(settings, seed)
    rows = []
    for objective in ("crosscoder", "crosscoder_l1"):
        sae = _trained(settings, models, objective, seed)
        rows.append(
            {"objective": objective, **_scores(sae, models, settings, specificity)}
        )
    return rows


def _trained(
    s: PlantedSettings, models: PlantedModels, objective: str, seed: int
) -> SAE:
    cfg = TrainConfig(
        2 * s.width,
        s.latents,
        s.steps,
        objective=objective,
        streams=2,
        k=s.k,
        sparsity=s.sparsity,
        lr=s.lr,
        seed=seed,
    )
    side_by_side = lambda step: models.batch(step).reshape(-1, 2 * s.width)
    options = LoopOptions(log_every=s.steps, save_every=s.steps)
    trained = train_sae(cfg, side_by_side, options=options, progress=False)
    return finished(cfg, jax.tree.map(np.asarray, trained.state))


def _scores(
    sae: SAE,
    models: PlantedModels,
    s: PlantedSettings,
    specificity: SpecificitySettings,
) -> dict[str, Any]:
    batches = range(s.steps, s.steps + -(-s.measured // s.tokens))
    scaling = latent_scaling(sae, map(models.batch, batches))
    norm_n = relative_norms(sae)
    feature_n = matched_features(stream_rows(sae)[1], models.rows_mnd[1], s.match)
    kind_n = np.array([*models.kinds, ""])[feature_n]  # -1 is none
    numbers = {}
    called = {
        "norm": (norm_n > specificity.ft_only) & (scaling.active_n > 0),
        "nu": truly_specific(norm_n, scaling, specificity),
    }
    for name, called_n in called.items():
        right_n = called_n & (kind_n == FT_ONLY)
        recovered = len(set(feature_n[right_n].tolist()))
        numbers[f"{name}_called"] = int(called_n.sum())
        numbers[f"{name}_precision"] = right_n.sum() / max(called_n.sum(), 1)
        numbers[f"{name}_recall"] = recovered / s.ft_only
        is_bait_n = np.isin(kind_n, (SHRINKAGE, DECOUPLING))
        baits = set(feature_n[called_n & is_bait_n].tolist())
        numbers[f"{name}_baits"] = len(baits)
    return numbers


def matched_features(
    rows_nd: np.ndarray, features_fd: np.ndarray, match: float
) -> np.ndarray:
    """Returns for every latent's row the feature with the largest cosine, -1 where that
    is below `match`.
    """
    product_nf = rows_nd @ features_fd.T
    length_n1 = np.linalg.norm(rows_nd, axis=1, keepdims=True)
    length_f = np.linalg.norm(features_fd, axis=1)
    length_nf = length_n1 * length_f
    cosine_nf = np.divide(
        product_nf, length_nf, out=np.zeros_like(product_nf), where=length_nf > 0
    )
    return np.where(cosine_nf.max(1) >= match, cosine_nf.argmax(1), -1)
