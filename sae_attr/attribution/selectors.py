"""Scores that other studies select latents by, for comparison with Δ: they are no part
of a study's rankings (docs/method.md, Ground truth).

Each is an entry of `SELECTORS`, computed from the same evidence as `SCORES`. Those that
need a forward pass for every latent are in `attribution.output_scores`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from sae_attr.attribution.decoder_pass import score_dictionary
from sae_attr.attribution.encoder_scores import NUMBERS, contributions
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.latent_statistics import weighted_codes
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.score_registry import Score, ScoreValue
from sae_attr.sae.model import code_rows, encode


def monitoring_auc(values_rn: np.ndarray, positive_r: np.ndarray) -> np.ndarray:
    """Computes the area under the ROC curve of each latent as a monitor, `[n]`: the
    share of (positive, negative) completions in which the positive one has the larger
    value; ties count half.

    Args:
      values_rn: what each latent says of each completion.
      positive_r: bool, completions that show the behaviour.

    Raises:
      ValueError: all completions are of one side.
    """
    positives = int(np.sum(positive_r))
    negatives = len(positive_r) - positives
    if not positives or not negatives:
        raise ValueError(
            f"{positives} completions show the behaviour and {negatives} do not; a "
            "monitor is judged on both: add the other side"
        )
    ranks_rn = stats.rankdata(values_rn, axis=0)
    above_n = ranks_rn[positive_r].sum(0) - positives * (positives + 1) / 2
    return above_n / (positives * negatives)


def frequency_difference(evidence: Evidence) -> np.ndarray | Skipped:
    """Computes the share of tokens on which each latent is active in completions with
    the behaviour, minus that in the others, `[n]`.
    """
    if evidence.sae_cfg.no_token_codes:
        return Skipped(evidence.sae_cfg.no_token_codes)
    sae = evidence.sae

    def fires(reads_kd: jax.Array) -> jax.Array:
        return (encode(sae, reads_kd) != 0).astype(jnp.float32)

    return weighted_codes(
        fires,
        evidence.table.reads_kd,
        evidence.weights("completion"),
        block=_block(evidence),
    )


def selector_scores(
    evidence: Evidence, scopes: tuple[str, ...]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, str]]:
    """Computes every selector of every latent.

    Returns:
      (name, token scope or "") -> `[n]`, and name -> why it is left out.
    """
    scores: dict[tuple[str, str], np.ndarray] = {}
    skipped: dict[str, str] = {}
    for name, selector in SELECTORS.items():
        of_scopes = scopes if selector.scope == "each" else ("",)
        for scope in of_scopes:
            value = selector.compute(evidence, scope)
            if isinstance(value, Skipped):
                skipped[name] = value.why
            else:
                scores[name, scope] = np.asarray(value)
    return scores, skipped


# ---- the functions -------------------------------------------------------------------


def _gradient_size(evidence: Evidence, scope: str) -> ScoreValue:
    gradient_d = evidence.moment(scope).g_d
    vectors = {"gradient": gradient_d}
    pushes = score_dictionary(evidence.decoder, {}, vectors, mesh=evidence.mesh)
    return np.abs(pushes["gradient"])


def _code_gradient(evidence: Evidence, scope: str) -> ScoreValue:
    weights_k = np.maximum(evidence.weights(scope), 0)
    table, width = evidence.table, evidence.table.reads_kd.shape[1]
    sae = evidence.sae

    def push_times_code(reads_grads_kd: jax.Array) -> jax.Array:
        reads_kd, grads_kd = jnp.split(reads_grads_kd, [width], axis=1)
        push_kn = -grads_kd @ code_rows(sae).T
        return jnp.maximum(push_kn * contributions(sae, reads_kd), 0)

    reads_grads_kd = np.concatenate([table.reads_kd, table.grads_kd], axis=1)
    return weighted_codes(
        push_times_code, reads_grads_kd, weights_k, block=_block(evidence)
    )


def _code_of_difference(evidence: Evidence, scope: str) -> ScoreValue:
    if evidence.aligned_kd is None:
        return Skipped(evidence.no_second_model)
    changes_kd = np.asarray(evidence.table.reads_kd - evidence.aligned_kd, np.float64)
    change_d = jnp.asarray(evidence.mean_weights("prompt") @ changes_kd, jnp.float32)
    return np.asarray(encode(evidence.sae, change_d))


def _projection_auc(evidence: Evidence, scope: str) -> ScoreValue:
    table = evidence.table
    mean_rd = np.stack(
        [
            weights_t @ np.asarray(table.acts_kd[tokens], np.float64)
            for tokens, weights_t in _completions(evidence)
        ]
    )
    unit_rd = mean_rd / np.linalg.norm(mean_rd, axis=1, keepdims=True)
    n = len(evidence.decoder)
    dec_nd = np.asarray(decoder_rows(evidence.decoder, np.arange(n)), np.float64)
    return monitoring_auc(unit_rd @ dec_nd.T, _positive(evidence))


def _code_auc(evidence: Evidence, scope: str) -> ScoreValue:
    table = evidence.table
    mean_codes = jax.jit(lambda sae, w_t, x_td: w_t @ encode(sae, x_td))
    longest = max(len(row.ids) for row in table.rows)
    mean_rn = []
    for tokens, weights_t in _completions(evidence):
        # Padded to one length: one program serves all rows.
        gap = longest - len(weights_t)
        reads_td = np.pad(table.reads_kd[tokens], ((0, gap), (0, 0)))
        mean_rn.append(mean_codes(evidence.sae, np.pad(weights_t, (0, gap)), reads_td))
    return monitoring_auc(np.stack(mean_rn), _positive(evidence))


def _completions(evidence: Evidence) -> list[tuple[slice, np.ndarray]]:
    """Returns where the tokens of each row lie, and their weights in the mean over its
    completion.
    """
    weights_k = np.abs(evidence.weights("completion"))
    parts = []
    for row in range(len(evidence.table.rows)):
        tokens = evidence.table.tokens_of(row)
        parts.append((tokens, weights_k[tokens] / weights_k[tokens].sum()))
    return parts


def _positive(evidence: Evidence) -> np.ndarray:
    return np.array([row.side > 0 for row in evidence.table.rows])


def _block(evidence: Evidence) -> int:
    return max(1, min(4096, NUMBERS // len(evidence.decoder)))


def _by_codes(
    compute: Callable[[Evidence, str], ScoreValue], evidence: Evidence, scope: str
) -> ScoreValue:
    """Computes a selector that encodes every token, where that is possible."""
    if evidence.sae_cfg.no_token_codes:
        return Skipped(evidence.sae_cfg.no_token_codes)
    if why := evidence.over_limit(len(evidence.table.acts_kd)):
        return Skipped(why, by_limit=True)
    return compute(evidence, scope)


# ---- the table -----------------------------------------------------------------------

SELECTORS: dict[str, Score] = {
    "gradient_size": Score(
        _gradient_size,
        "|Δg·d|, as by the cosine with the contrastive gradient whatever its sign",
    ),
    "grad_sae": Score(
        partial(_by_codes, _code_gradient),
        "mean over C's tokens of max(−g·d · latent activation, 0) (GradSAE)",
    ),
    "frequency_difference": Score(
        partial(_by_codes, lambda evidence, scope: frequency_difference(evidence)),
        "share of C's tokens on which the latent fires − share of C′'s",
        scope="none",
    ),
    "code_of_difference": Score(
        partial(_by_codes, _code_of_difference),
        "latent activation on the two models' mean difference (CAFT)",
        scope="none",
    ),
    "monitoring_auc": Score(
        _projection_auc,
        "AUC of cos(d, mean activation of a completion) for C against C′",
        scope="none",
    ),
    "monitoring_auc_code": Score(
        partial(_by_codes, _code_auc),
        "AUC of the mean latent activation over a completion for C against C′",
        scope="none",
    ),
}


def selector_versions() -> dict[str, int]:
    """Returns the version of every selector, for the keys of stages."""
    return {name: selector.version for name, selector in SELECTORS.items()}
