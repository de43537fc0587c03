"""Directions of a behaviour at every layer, from the tokens of graded answers: the mean
difference, the contrastive gradient, the moment; and how alike they are.

One pass over the answers each. What is in memory does not grow with the number of
tokens or of answers: sums by prompt and side, and a moment for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from sae_attr.attribution.gradients import act_and_grad
from sae_attr.attribution.scores import Moment, best_direction, moment
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.text.batching import RowBatch
from sae_attr.text.rows import TokenRow

AVERAGES = ("prompts", "answers")
SIDES = (1, -1)  # with the behaviour, without: the order of every axis of sides

Work = Iterable[tuple[RowBatch, np.ndarray]]
"""Batches with the numbers of their rows, of `text.batching.batches`; −1 for an empty
row."""


# ---- the mean difference -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SideSums:
    """Sums of the answers' mean activations, by prompt and side.

    Args:
      sums_p2sd: float64; prompts, with and without the behaviour, sites.
      answers_p2: answers that have a token that counts.
    """

    sums_p2sd: np.ndarray
    answers_p2: np.ndarray


def side_sums(
    params: Params,
    rows: Sequence[TokenRow],
    work: Work,
    *,
    cfg: LMConfig,
    sites: Sequence[Site],
    limits: Mapping[Site, float],
) -> SideSums:
    """Returns the sums over answers of the mean activation over an answer's own tokens.

    Prompts are numbered in the order of `TokenRow.pair`.

    Args:
      work: batches of `rows`.
      sites: of one width.
      limits: site -> norm; tokens beyond it do not count, and an answer that has none
        left at one of the sites counts nowhere.

    Raises:
      ValueError: no answer, or none with a token that counts.
    """
    prompts, prompt_r = np.unique([row.pair for row in rows], return_inverse=True)
    place_r = np.array([SIDES.index(row.side) for row in rows], int)
    widths = {cfg.width(site.point) for site in sites}
    if len(widths) > 1:
        raise ValueError(f"sites of widths {sorted(widths)}; give those of one width")
    step = jax.jit(partial(_answer_sums, cfg=cfg, sites=tuple(sites)))
    limit_s = jnp.array([limits.get(site, jnp.inf) for site in sites], jnp.float32)
    sums_p2sd = np.zeros((len(prompts), len(SIDES), len(sites), *widths))
    answers_p2 = np.zeros((len(prompts), len(SIDES)), int)
    for batch, row_b in work:
        sums_sbd, tokens_sb = jax.tree.map(np.asarray, step(params, batch, limit_s))
        counted_b = (row_b >= 0) & (tokens_sb > 0).all(0)
        means_sbd = sums_sbd[:, counted_b].astype(np.float64)
        means_sbd /= tokens_sb[:, counted_b, None]
        at = prompt_r[row_b[counted_b]], place_r[row_b[counted_b]]
        np.add.at(sums_p2sd, at, means_sbd.transpose(1, 0, 2))
        np.add.at(answers_p2, at, 1)
    if not answers_p2.any():
        raise ValueError(
            f"none of {len(rows)} answers has a token that counts, so there is no mean "
            "over response tokens; give answers that are not empty"
        )
    return SideSums(sums_p2sd, answers_p2)


def _answer_sums(
    params: Params,
    batch: RowBatch,
    limit_s: jax.Array,
    *,
    cfg: LMConfig,
    sites: tuple[Site, ...],
) -> tuple[jax.Array, jax.Array]:
    """Returns sums over completion tokens `[s, b, d]`, and how many there are."""
    last = max(site.layer for site in sites)
    acts = forward(
        params,
        batch.tokens_bt,
        cfg=cfg,
        valid_bt=batch.valid_bt,
        keep=sites,
        span=(0, last + 1),
    ).acts
    sums, counts = [], []
    for site, limit in zip(sites, limit_s, strict=True):
        acts_btd = acts[site].astype(jnp.float32)
        within_bt = jnp.linalg.norm(acts_btd, axis=-1) <= limit
        where_bt = jnp.asarray(batch.completion_bt) & within_bt
        # Not a product with the mask: a NaN where nothing counts would stay a NaN.
        sums.append(jnp.where(where_bt[..., None], acts_btd, 0).sum(1))
        counts.append(where_bt.sum(1))
    return jnp.stack(sums), jnp.stack(counts)


def mean_difference(sums: SideSums, average: str = "prompts") -> np.ndarray:
    """Returns the mean of answers with the behaviour − the mean of those without,
    `[s, d]`; arguments and errors are those of `drawn_differences`.
    """
    once_1p = np.ones((1, len(sums.answers_p2)))
    return drawn_differences(sums, once_1p, average)[0]


def drawn_differences(
    sums: SideSums, counts_bp: np.ndarray, average: str = "prompts"
) -> np.ndarray:
    """Returns the mean difference of several draws of the prompts, `[b, s, d]`; NaN for
    a draw that has no answers of one side.

    Args:
      counts_bp: how often each prompt is in each draw.
      average: `prompts`: within each prompt first, over those that have both sides, so
        that the sides differ in nothing that prompts decide; `answers`: every answer
        as much as another of its side, whatever its prompt.

    Raises:
      ValueError: another word for `average`, or answers of one side alone.
    """
    if average not in AVERAGES:
        raise ValueError(
            f"average {average!r} is unknown; choose one of {', '.join(AVERAGES)}"
        )
    both_p = (sums.answers_p2 > 0).all(1)
    if average == "prompts":
        _check_sides(bool(both_p.any()), "no prompt has answers")
        answers_p211 = sums.answers_p2[both_p][..., None, None]
        means_p2sd = sums.sums_p2sd[both_p] / answers_p211
        difference_psd = means_p2sd[:, 0] - means_p2sd[:, 1]
        counts_bq = counts_bp[:, both_p]
        total_b = counts_bq.sum(1)
        return _per(np.tensordot(counts_bq, difference_psd, axes=1), total_b)
    _check_sides(bool(sums.answers_p2.any(0).all()), "there are no answers")
    total_b2 = counts_bp @ sums.answers_p2
    sums_b2sd = np.tensordot(counts_bp, sums.sums_p2sd, axes=1)
    with_bsd, without_bsd = (_per(sums_b2sd[:, i], total_b2[:, i]) for i in range(2))
    return with_bsd - without_bsd


def _check_sides(both: bool, what: str) -> None:
    if not both:
        raise ValueError(
            f"{what} with and without the behaviour, so there is no mean difference; "
            "give pairs"
        )


def _per(sums_bsd: np.ndarray, total_b: np.ndarray) -> np.ndarray:
    """Returns sums over totals; NaN where there is nothing."""
    out = np.full(sums_bsd.shape, np.nan)
    total_b11 = total_b[:, None, None]
    return np.divide(sums_bsd, total_b11, out=out, where=total_b11 > 0)


def model_difference(sums: SideSums, before: SideSums) -> np.ndarray:
    """Returns what a fine-tune added: its mean activation over all answers − that of the
    model before it on the same answers, `[s, d]`.

    Raises:
      ValueError: models of other shapes, or sums over other answers.
    """
    shapes = [x.sums_p2sd.shape for x in (sums, before)]
    if shapes[0] != shapes[1]:
        (p, _, s, d), (q, _, t, e) = shapes
        raise ValueError(
            f"the fine-tune has {s} sites of {d} numbers on {p} prompts, the model "
            f"before it {t} of {e} on {q}; compare models of one shape on one set of "
            "answers"
        )
    return _mean_response(sums) - _mean_response(before)


def _mean_response(sums: SideSums) -> np.ndarray:
    """Returns the mean activation over all answers, both sides alike, `[s, d]`."""
    return sums.sums_p2sd.sum((0, 1)) / sums.answers_p2.sum()


# ---- gradients and moments -----------------------------------------------------------


def layer_moments(
    params: Params,
    rows: Sequence[TokenRow],
    work: Work,
    weights_hk: np.ndarray,
    *,
    cfg: LMConfig,
    sites: Sequence[Site],
) -> list[dict[Site, Moment]]:
    """Computes the moment at every site under each of h sets of token weights.

    Args:
      work: batches of `rows`.
      weights_hk: weights of the rows' tokens one after another, as `token_weights`
        gives them: halves of the prompts, for instance, whose moments add up.
    """
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    total = None
    step = jax.jit(partial(_batch_moments, cfg=cfg, sites=tuple(sites)))
    for batch, row_b in work:
        weights_hbt = np.zeros((len(weights_hk), *batch.tokens_bt.shape), np.float32)
        for b, row in enumerate(row_b):
            if row >= 0:
                of_row = weights_hk[:, starts[row] : starts[row + 1]]
                weights_hbt[:, b, : of_row.shape[1]] = of_row
        measured = step(params, batch, weights_hbt)
        total = measured if total is None else jax.tree.map(jnp.add, total, measured)
    if total is None:
        raise ValueError("there are no answers, and so no gradients; give some")
    part = lambda h: jax.tree.map(lambda leaf: leaf[h], total)
    return [part(h) for h in range(len(weights_hk))]


def _batch_moments(
    params: Params,
    batch: RowBatch,
    weights_hbt: jax.Array,
    *,
    cfg: LMConfig,
    sites: tuple[Site, ...],
) -> dict[Site, Moment]:
    """Returns the moments of a batch, h first on every axis."""
    out = act_and_grad(params, batch, cfg=cfg, sites=sites)
    of_weights = jax.vmap(moment, (None, None, 0))
    return {
        site: of_weights(out.acts[site], out.grads[site], weights_hbt) for site in sites
    }


def gradient_directions(
    moments: Mapping[Site, Moment], means: Mapping[Site, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns, of every site, the contrastive gradient by which the behaviour rises most
    and the moment's direction of the highest Δ, signed as the gradient; unit rows
    `[s, d]`.

    Args:
      means: site -> ā.
    """
    gradients, best = [], []
    for site, at_site in moments.items():
        gradient_d = -np.asarray(at_site.g_d, np.float64)
        mean_d = jnp.asarray(means[site], jnp.float32)
        best_d = np.asarray(best_direction(at_site, mean_d)[1], np.float64)
        if best_d @ gradient_d < 0:  # a direction and its opposite have one Δ
            best_d = -best_d
        gradients.append(gradient_d)
        best.append(best_d)
    return unit_rows(np.stack(gradients)), unit_rows(np.stack(best))


# ---- how alike they are --------------------------------------------------------------


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Returns rows at unit length, float32; rows of zeros stay what they are."""
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(length > 0, length, 1.0)).astype(np.float32)


def paired_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine of each vector of `a` with that of `b` in its place; NaN where
    one of them is 0.
    """
    product = np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), axis=-1)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide(
        product, lengths, out=np.full(product.shape, np.nan), where=lengths > 0
    )


def random_cosine(width: int, level: float = 0.95, times: int = 1) -> float:
    """Returns the size that the cosine of a direction with random ones seldom exceeds.

    Args:
      width: of the space.
      level: share of draws that stay below.
      times: random directions of a draw, of which the largest counts.
    """
    each = level ** (1 / times)
    return float(np.sqrt(stats.beta.ppf(each, 0.5, (width - 1) / 2)))


def share_in_span(vector_d: np.ndarray, rows_kd: np.ndarray) -> float:
    """Returns the share of a vector's square that lies in the span of some rows; a
    random vector has their number over the width.
    """
    kept_kd = unit_rows(rows_kd)
    kept_kd = kept_kd[np.linalg.norm(kept_kd, axis=1) > 0]
    if not len(kept_kd):
        return 0.0
    basis_dk, _ = np.linalg.qr(kept_kd.astype(np.float64).T)
    unit_d = unit_rows(vector_d).astype(np.float64)
    return float(np.sum((unit_d @ basis_dk) ** 2))


# ---- what a scalar tells -------------------------------------------------------------


def drawn_auc(
    values_r: np.ndarray, positive_r: np.ndarray, counts_br: np.ndarray
) -> np.ndarray:
    """Returns the area under the ROC curve of a scalar in several draws of the answers,
    `[b]`; ties count half, NaN for a draw of one side.

    Args:
      counts_br: how often each answer is in each draw.

    Raises:
      ValueError: answers of one class alone.
    """
    positive_r = np.asarray(positive_r, bool)
    if positive_r.all() or not positive_r.any():
        raise ValueError(
            f"{int(positive_r.sum())} of {len(positive_r)} answers are of the class: "
            "an AUC needs two classes; add answers of the other"
        )
    values_r = np.asarray(values_r, np.float64)
    above_ij = np.sign(values_r[positive_r][:, None] - values_r[~positive_r]) / 2 + 0.5
    with_bi, without_bj = counts_br[:, positive_r], counts_br[:, ~positive_r]
    won_b = np.sum((with_bi @ above_ij) * without_bj, axis=1)
    pairs_b = with_bi.sum(1) * without_bj.sum(1)
    return np.divide(won_b, pairs_b, out=np.full(len(won_b), np.nan), where=pairs_b > 0)
