"""Dense latents and the classes that can be decided without a judge, on arrays
(arXiv:2506.15679).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from sae_attr.analyses.dense_settings import (
    ALPHABET,
    NO_CLASS,
    NULL_SPACE,
    POSITION,
    PRINCIPAL,
    WORD,
    DenseSettings,
)

CHUNK = 4096  # latents that all others are compared with at a time


class Antipodes(NamedTuple):
    """The latent that resembles each one most in what it reads and writes.

    Args:
      score_k: s, the largest product of encoder and decoder cosines with another one.
      partner_k: that other latent.
      cosine_k: of the two decoder rows: −1 of an antipode, 1 of a duplicate.
    """

    score_k: np.ndarray
    partner_k: np.ndarray
    cosine_k: np.ndarray


def antipodality(
    enc_nd: np.ndarray, dec_nm: np.ndarray, latents_k: np.ndarray, *, chunk: int = CHUNK
) -> Antipodes:
    """Returns s_i = max over j ≠ i of cos(e_i, e_j) · cos(d_i, d_j) of some latents among
    all; memory grows with `latents · chunk`.

    Args:
      enc_nd: encoder, a row a latent.
      dec_nm: decoder, a row a latent.
      latents_k: whose s is wanted.

    Raises:
      ValueError: encoder and decoder of different numbers of latents, or fewer than 2.
    """
    n = len(dec_nm)
    if len(enc_nd) != n or n < 2:
        raise ValueError(
            f"the encoder has {len(enc_nd)} latents and the decoder {n}; give a row a "
            "latent of both, and 2 or more"
        )
    enc_nd, dec_nm = _unit(enc_nd), _unit(dec_nm)
    enc_kd, dec_km = enc_nd[latents_k], dec_nm[latents_k]
    rows_k = np.arange(len(latents_k))
    score_k = np.full(len(latents_k), -np.inf)
    partner_k = np.full(len(latents_k), -1)
    cosine_k = np.full(len(latents_k), np.nan)
    for start in range(0, n, chunk):
        cosine_kc = dec_km @ dec_nm[start : start + chunk].T
        product_kc = cosine_kc * (enc_kd @ enc_nd[start : start + chunk].T)
        column_k = latents_k - start
        itself_k = (column_k >= 0) & (column_k < product_kc.shape[1])
        product_kc[rows_k[itself_k], column_k[itself_k]] = -np.inf
        best_k = product_kc.argmax(1)
        larger_k = product_kc[rows_k, best_k] > score_k
        score_k = np.where(larger_k, product_kc[rows_k, best_k], score_k)
        cosine_k = np.where(larger_k, cosine_kc[rows_k, best_k], cosine_k)
        partner_k = np.where(larger_k, start + best_k, partner_k)
    return Antipodes(score_k, partner_k, cosine_k)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length 1, float32; a row of zeros stays zero."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


# ---- the measures --------------------------------------------------------------------


def position_correlations(
    codes_xk: np.ndarray, distances: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns Spearman's rho of every latent's activation with each distance, `[k]`; NaN
    where either is the same on all tokens.

    Args:
      codes_xk: activations of sampled tokens.
      distances: what it is counted from -> tokens since then, `[x]`.
    """
    ranks_xk = _centred_ranks(codes_xk)
    correlations = {}
    for start, distance_x in distances.items():
        ranks_x1 = _centred_ranks(np.asarray(distance_x)[:, None])
        squares_k = (ranks_xk**2).sum(0) * (ranks_x1**2).sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations[start] = (ranks_xk * ranks_x1).sum(0) / np.sqrt(squares_k)
    return correlations


def _centred_ranks(values_xk: np.ndarray) -> np.ndarray:
    ranks_xk = stats.rankdata(values_xk, axis=0)
    return ranks_xk - ranks_xk.mean(0)


def null_energy(
    dec_km: np.ndarray, unembedding_vd: np.ndarray, count: int
) -> np.ndarray:
    """Returns the share of each decoder row's square that lies in the last `count` left
    singular directions of the unembedding, `[k]`: what hardly moves any logit.

    Args:
      unembedding_vd: with the final norm's gain folded in.

    Raises:
      ValueError: as many directions as the residual stream has, or more.
    """
    table_vd = np.asarray(unembedding_vd, np.float64)
    width = table_vd.shape[1]
    if count >= width:
        raise ValueError(
            f"null_directions is {count}, but the residual stream has {width} "
            "directions; take a few of them"
        )
    _, vectors_dd = np.linalg.eigh(table_vd.T @ table_vd)  # ascending eigenvalues
    return np.square(_unit(dec_km) @ vectors_dd[:, :count]).sum(1)


def letter_shares(
    ids_kc: np.ndarray, tokens: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Returns the share of each latent's best tokens that begin with its commonest
    letter, `[k]`, and that letter; "" where none begins with one.

    Args:
      ids_kc: best tokens of the logit lens.
      tokens: text of every token.
    """
    share_k, letters = np.zeros(len(ids_kc)), []
    for k, ids_c in enumerate(ids_kc):
        firsts = [first_letter(tokens[int(token)]) for token in ids_c]
        names, counts = np.unique([x for x in firsts if x], return_counts=True)
        letter = ""
        if len(names):
            letter = str(names[counts.argmax()])
            share_k[k] = counts.max() / len(ids_c)
        letters.append(letter)
    return share_k, letters


def first_letter(token: str) -> str:
    """Returns the letter that a token begins with, without its case and the spaces in
    front; "" where it begins with none.
    """
    first = token.strip()[:1].lower()
    return first if first.isalpha() else ""


def first_component(covariance_dd: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the first principal component `[d]` and its share of the variance; of its
    two ends the one whose largest coordinate is above 0.
    """
    values_d, vectors_dd = np.linalg.eigh(np.asarray(covariance_dd, np.float64))
    component_d = vectors_dd[:, -1]
    sign = np.sign(component_d[np.abs(component_d).argmax()])
    return sign * component_d, float(values_d[-1] / values_d.sum())


def component_cosines(dec_km: np.ndarray, component_m: np.ndarray) -> np.ndarray:
    """Returns the cosine of each decoder row with a direction, `[k]`."""
    return _unit(dec_km) @ (component_m / np.linalg.norm(component_m))


def class_aucs(
    codes_xk: np.ndarray, class_x: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns the area under the curve of every latent's activation for one class of
    words against the other classes, `[k]`; classes that do not occur are left out.

    Args:
      class_x: number of the class of each token in `names`; −1: a token of no class,
        which counts nowhere.
    """
    labelled_x = class_x >= 0
    class_x, codes_xk = class_x[labelled_x], codes_xk[labelled_x]
    if not len(class_x):
        return {}
    ranks_xk = stats.rankdata(codes_xk, axis=0)
    aucs = {}
    for number, name in enumerate(names):
        of_class_x = class_x == number
        inside = int(of_class_x.sum())
        outside = len(class_x) - inside
        if inside and outside:
            sums_k = ranks_xk[of_class_x].sum(0) - inside * (inside + 1) / 2
            aucs[name] = sums_k / (inside * outside)
    return aucs


# ---- the classes ---------------------------------------------------------------------


def latent_classes(
    measures: Mapping[str, np.ndarray], settings: DenseSettings
) -> list[tuple[str, ...]]:
    """Returns the classes whose test each latent meets, in the settings' order.

    Args:
      measures: class -> size of what its test looks at, `[k]`; NaN and classes that
        were not measured meet no test.
    """
    thresholds = {
        POSITION: settings.position,
        NULL_SPACE: settings.null_energy,
        ALPHABET: settings.letter_share,
        PRINCIPAL: settings.principal,
        WORD: settings.word_auc,
    }
    count = len(next(iter(measures.values())))
    classes: list[tuple[str, ...]] = []
    for k in range(count):
        met = []
        for name in settings.order:
            value = measures[name][k] if name in measures else np.nan
            # "At least 90 of 100 tokens", where the others say "more than".
            at_threshold = name == ALPHABET and np.isclose(value, thresholds[name])
            if value > thresholds[name] or at_threshold:
                met.append(name)
        classes.append(tuple(met))
    return classes


def first_class(met: Sequence[str]) -> str:
    """Returns the class that a latent is counted in."""
    return met[0] if met else NO_CLASS
