"""The dictionaries of a study of crosscoders: training, and what is measured of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.crosscoder_data import Rows
from sae_attr.analyses.crosscoder_settings import DIFFERENCE, CrosscoderCase
from sae_attr.analyses.kl_patch import patch_kl
from sae_attr.analyses.latent_scaling import (
    LatentScaling,
    latent_scaling,
)
from sae_attr.sae.metrics import explained_variance, fit, l0, reconstruct_tokens
from sae_attr.sae.model import SAE, encode, unit_decoder
from sae_attr.sae.train_choices import CROSSCODERS
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.sae.two_models import relative_norms, stream_rows
from sae_attr.training import LoopOptions


def trained_dictionary(case: CrosscoderCase, name: str, x_kmd: np.ndarray) -> SAE:
    """Trains a dictionary on activations of both models, `[k, 2, d]`."""
    s = case.settings
    is_crosscoder = name in CROSSCODERS
    data_kd = x_kmd.reshape(len(x_kmd), -1)
    if not is_crosscoder:
        data_kd = x_kmd[:, 1] - x_kmd[:, 0]
    cfg = TrainConfig(
        data_kd.shape[1],
        s.latents,
        s.steps,
        objective=name if is_crosscoder else "batch_topk",
        streams=2 if is_crosscoder else 1,
        k=s.k,
        sparsity=s.sparsity,
        lr=s.lr,
        seed=case.evaluation.recipe.seed,
    )

    def batch(step: int) -> np.ndarray:
        rng = np.random.default_rng((cfg.seed, step))
        return data_kd[rng.integers(0, len(data_kd), s.batch)]

    options = LoopOptions(log_every=s.steps, save_every=s.steps)
    trained = train_sae(cfg, batch, options=options, progress=False)
    return finished(cfg, jax.tree.map(np.asarray, trained.state))


def measured(
    case: CrosscoderCase, name: str, sae: SAE, train: Rows, held_out: Rows
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns arrays of every latent, and the numbers of the dictionary: explained
    variance, L0, and of a crosscoder KL.
    """
    x_kmd = held_out.tokens_kmd
    if name == DIFFERENCE:
        x_kd = x_kmd[:, 1] - x_kmd[:, 0]
        sums = fit(sae, x_kd)
        codes_n = np.asarray(encode(sae, jnp.asarray(x_kd))).mean(0)
        rows_nd = np.asarray(sae.dec_nm)
        arrays = {"code_n": codes_n, "rows_nd": rows_nd}
    else:
        sums = fit(sae, x_kmd)
        batches = np.array_split(train.tokens_kmd, -(-len(train.tokens_kmd) // 4096))
        scaling = latent_scaling(sae, batches)
        norm_n = relative_norms(sae)
        rows_nd = np.asarray(unit_decoder(stream_rows(sae)[1]))
        arrays = {
            "norm_n": norm_n,
            "nu_error_n": scaling.nu_error_n,
            "nu_reconstruction_n": scaling.nu_reconstruction_n,
            "active_n": scaling.active_n,
            "rows_nd": rows_nd,
        }
    numbers: dict[str, Any] = {"explained_variance": explained_variance(sums)}
    numbers["l0"] = l0(sums)
    if name != DIFFERENCE:
        numbers["explained_variances"] = _by_model(sae, x_kmd)
        numbers["kl"] = _kl_of_sets(case, sae, norm_n, scaling, held_out)
    return arrays, numbers


def _by_model(sae: SAE, x_kmd: np.ndarray) -> list[float]:
    """Returns the explained variance of each model's activations."""
    recon_kmd = reconstruct_tokens(sae, x_kmd).recon_kd.reshape(x_kmd.shape)
    shares = []
    for m in range(2):
        rest = np.square(x_kmd[:, m] - recon_kmd[:, m]).sum()
        total = np.square(x_kmd[:, m] - x_kmd[:, m].mean(0)).sum()
        shares.append(float(1 - rest / total))
    return shares


def patched_sets(
    norm_n: np.ndarray, scaling: LatentScaling, count: int
) -> dict[str, np.ndarray]:
    """Returns the sets of latents that are patched, bool `[n]`: none, all, the latents of
    largest Δ_norm that fired, and the halves of them with the lower and higher ν.
    """
    fired_n = scaling.active_n > 0
    order = np.argsort(-np.where(fired_n, np.nan_to_num(norm_n), -1), kind="stable")
    top_k = order[:count][fired_n[order[:count]]]
    rank_k = np.zeros(len(top_k))
    for nu_n in (scaling.nu_error_n, scaling.nu_reconstruction_n):
        sizes_k = np.nan_to_num(nu_n[top_k], nan=np.inf)
        rank_k += np.argsort(np.argsort(sizes_k, kind="stable"))
    by_nu_k = top_k[np.argsort(rank_k, kind="stable")]
    half = len(by_nu_k) // 2
    members = {"specific": top_k, "low_nu": by_nu_k[:half], "high_nu": by_nu_k[half:]}
    n = len(norm_n)
    sets = {"nothing": np.zeros(n, bool), "all": np.ones(n, bool)}
    for name, latents in members.items():
        sets[name] = np.isin(np.arange(n), latents)
    return sets


def _kl_of_sets(
    case: CrosscoderCase,
    sae: SAE,
    norm_n: np.ndarray,
    scaling: LatentScaling,
    rows: Rows,
) -> dict[str, dict[str, float]]:
    """Returns set -> mean KL over all tokens that count, and over answers' first ones."""
    setup = case.evaluation.setup
    sets = patched_sets(norm_n, scaling, case.settings.patched)
    kl_sbt = patch_kl(
        setup.params,
        sae,
        rows.tokens_bt,
        rows.acts_btmd,
        rows.counted_bt,
        np.stack(list(sets.values())),
        cfg=setup.cfg,
        site=setup.site,
    )
    numbers = {}
    for name, kl_bt in zip(sets, kl_sbt, strict=True):
        numbers[name] = {
            "all": float(kl_bt[rows.counted_bt].mean()),
            "answer": float(kl_bt[rows.answer_bt].mean()),
            "latents": int(sets[name].sum()),
        }
    return numbers
