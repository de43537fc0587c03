"""Activations of stories260K to train SAEs on, and what is measured of a trained one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import site_acts
from sae_attr.hooks import Replace, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import target_nll
from sae_attr.lm.model import forward
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.sae.metrics import (
    bare,
    dead_share,
    explained_variance,
    fit,
    l0,
    max_decoder_cosine,
)
from sae_attr.sae.model import SAE, reconstruct
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.text.batching import TextBatch, corpus_batches
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.tokenizer_folder import load_tokenizer
from sae_attr.training import LoopOptions

SITE, CONTEXT, ROWS = Site(2), 256, 25
VALID_ROWS, TEST_ROWS = 125, 150
TOKENS = 200_000  # to train on; more steps go round again


class Bench(NamedTuple):
    """Model, its tokens and what was collected from them: rows to train on, to choose
    with, and to measure on.
    """

    cfg: Any
    params: Any
    train_kd: np.ndarray
    valid_kd: np.ndarray
    test: list[TextBatch]
    test_kd: np.ndarray
    mean_d: np.ndarray


def collect(shared: Path, limit: int) -> Bench:
    """Activations of the training stories, shuffled, of the 125 after them, and of the
    last 150.
    """
    cfg, params = load_lm(str(shared / "models/stories260K"), mesh=make_mesh("data=1"))
    tok = load_tokenizer(str(shared / "models/stories260K"))
    batches = list(
        corpus_batches(
            read_corpus(shared / "corpora/tinystories_1000.json"),
            tok,
            context=CONTEXT,
            batch_size=ROWS,
        )
    )
    run = jax.jit(lambda t, v: site_acts(params, t, v, cfg=cfg, site=SITE))
    acts = [np.asarray(run(t, v))[v & ~s].astype(np.float32) for t, v, s in batches]
    test = len(batches) - TEST_ROWS // ROWS
    valid = test - VALID_ROWS // ROWS
    train_kd = np.concatenate(acts[:valid])
    train_kd = train_kd[np.random.default_rng(0).permutation(len(train_kd))][:limit]
    valid_kd, test_kd = np.concatenate(acts[valid:test]), np.concatenate(acts[test:])
    return Bench(
        cfg, params, train_kd, valid_kd, batches[test:], test_kd, train_kd.mean(0)
    )


def batches(bench: Bench, size: int) -> Callable[[int], np.ndarray]:
    """Returns the batch of a step: whole batches of the training rows, round and round."""
    count = len(bench.train_kd) // size
    return lambda step: bench.train_kd[step % count * size :][:size]


def trained(bench: Bench, cfg: TrainConfig, batch: int) -> SAE:
    """Trains an SAE on the training rows, without a bar or a checkpoint."""
    options = LoopOptions(log_every=100)
    result = train_sae(cfg, batches(bench, batch), progress=False, options=options)
    return finished(cfg, result.state)


@partial(jax.jit, static_argnames="cfg")
def _batch_loss(
    params: Any, replacement: Any, batch: Any, *, cfg: LMConfig
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed loss of a `TextBatch` and its number of targets; `replacement`
    is as for `losses`.
    """
    tokens, valid, special = batch
    edits = {}
    if replacement is not None:
        acts = site_acts(params, tokens, valid, cfg=cfg, site=SITE)
        value = replacement
        if isinstance(replacement, SAE):
            value = reconstruct(replacement, acts)
        is_plain = (valid & ~special)[..., None]
        edits = {SITE: Replace(jnp.where(is_plain, value, acts))}
    hidden = forward(params, tokens, cfg=cfg, valid_bt=valid, edits=edits).hidden_btd
    at = jnp.broadcast_to(
        jnp.arange(1, tokens.shape[1]), (len(tokens), tokens.shape[1] - 1)
    )
    nll = target_nll(params, hidden, tokens, at, valid[:, 1:], cfg=cfg)
    return nll.sum(), valid[:, 1:].sum()


def losses(bench: Bench, replacement: SAE | np.ndarray | None) -> float:
    """Returns nats a token on the test stories with the site's plain tokens replaced: by
    what an SAE makes of them, or by one vector.
    """
    if isinstance(replacement, SAE):
        replacement = bare(replacement)
    total, count = 0.0, 0
    for batch in bench.test:
        nats, targets = _batch_loss(bench.params, replacement, batch, cfg=bench.cfg)
        total += float(nats)
        count += int(targets)
    return total / count


def test_row(bench: Bench, sae: SAE, plain: float, mean: float) -> dict[str, float]:
    """Measures an SAE on the test tokens.

    Args:
      bench: the data.
      sae: what to measure.
      plain, mean: the losses without it and with the site at its mean.
    """
    sums = fit(sae, bench.test_kd)
    return {
        "ev": explained_variance(sums),
        "ce": (mean - losses(bench, sae)) / (mean - plain),
        "l0": l0(sums),
        "dead": dead_share(sums),
        "cosine": max_decoder_cosine(sae, sums.fired_n),
    }
