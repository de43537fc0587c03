"""What a study with fewer pairs, or with other partners, would have concluded: sets of
pairs are drawn from many, and each one's ranking is compared with the ranking of the
pairs that were not drawn and with the ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sae_attr.analyses.completion_scores import SidedScores
from sae_attr.organism.score_agreement import agreement

PAIRS, SHUFFLED, POSITIVES = "pairs", "shuffled", "positives"
# Each answer with the behaviour minus one without it to the same prompt; minus one to a
# prompt that is none of the positives'; minus nothing.
DESIGNS = (PAIRS, SHUFFLED, POSITIVES)
NUMBERS = ("spearman", "recall", "effect")  # of `agreement` with a ground truth
REPEATED = ("spearman", "overlap")  # with the ranking of the pairs not drawn


def check_counts(counts: Sequence[int], pairs: int) -> None:
    """Raises ValueError for numbers of pairs that cannot be drawn from so many: shuffled
    partners are of prompts that were not drawn.
    """
    for count in counts:
        if count < 1 or 2 * count > pairs:
            raise ValueError(
                f"counts: {count} pairs cannot be drawn from {pairs} with as many other "
                f"prompts left for partners; leave out numbers above {pairs // 2}, or "
                "ask more prompts (pair_prompts)"
            )


def design_scores(
    scores: SidedScores, order_p: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Returns the score of every latent from `count` prompts, for every design.

    Args:
      order_p: prompts in a drawn order: the first `count` are used, and the next
        `count` give the partners of the shuffled design.
    """
    drawn, others = order_p[:count], order_p[count : 2 * count]
    positive_n = scores.positive_pn[drawn].mean(0)
    return {
        PAIRS: positive_n - scores.negative_pn[drawn].mean(0),
        SHUFFLED: positive_n - scores.negative_pn[others].mean(0),
        POSITIVES: positive_n,
    }


def drawn_agreement(
    scores: SidedScores,
    effects: Mapping[str, np.ndarray],
    counts: Sequence[int],
    *,
    draws: int,
    top: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws sets of pairs and compares their rankings.

    Args:
      effects: ground truth -> effect of every latent.
      counts: numbers of pairs, each drawn `draws` times without replacement.
      top: latents that recall, overlap and mean effect are of.
      seed: of the draws; the same draws serve every design.

    Returns:
      truth `[design, count, effect, NUMBERS, draw]`, and repeated
      `[count, REPEATED, draw]`: the pairs design against the pairs that were not drawn.

    Raises:
      ValueError: a number of pairs above half of those there are.
    """
    check_counts(counts, len(scores))
    generator = np.random.default_rng(seed)
    difference_pn = scores.difference_pn
    total_n = difference_pn.sum(0, dtype=np.float64)
    truth, repeated = [], []
    for count in counts:
        by_design: dict[str, list[np.ndarray]] = {design: [] for design in DESIGNS}
        same = []
        for _ in range(draws):
            order_p = generator.permutation(len(scores))
            for design, scores_n in design_scores(scores, order_p, count).items():
                by_design[design].append(scores_n)
            drawn_n = difference_pn[order_p[:count]].sum(0, dtype=np.float64)
            others_n = (total_n - drawn_n) / (len(scores) - count)
            alike = agreement(by_design[PAIRS][-1][None], others_n[:, None], top)
            same.append([alike.spearman[0], alike.recall[0]])
        repeated.append(np.array(same).T)
        of_designs = [np.stack(by_design[design]) for design in DESIGNS]
        truth.append(np.stack([_numbers(bn, effects, top) for bn in of_designs]))
    return np.stack(truth, axis=1), np.stack(repeated)


def resampled_agreement(
    difference_pn: np.ndarray,
    effects: Mapping[str, np.ndarray],
    count: int,
    *,
    draws: int,
    top: int,
    seed: int,
) -> np.ndarray:
    """Compares the rankings of `count` drawn pairs with the ground truth,
    `[effect, NUMBERS, draw]`.

    Args:
      difference_pn: Δ within each prompt; prompts are drawn with replacement.

    Raises:
      ValueError: fewer prompts than `count`.
    """
    if len(difference_pn) < count:
        raise ValueError(
            f"{count} pairs are asked for, but there are {len(difference_pn)}; ask for "
            "fewer (source_pairs), or for more prompts (pair_prompts)"
        )
    generator = np.random.default_rng(seed)
    drawn_bp = generator.integers(0, len(difference_pn), (draws, count))
    return _numbers(difference_pn[drawn_bp].mean(1), effects, top)


def _numbers(
    scores_bn: np.ndarray, effects: Mapping[str, np.ndarray], top: int
) -> np.ndarray:
    """Returns `[effect, NUMBERS, draw]` of a score per draw."""
    of_effects = []
    for effect_n in effects.values():
        of_draws = agreement(scores_bn, effect_n[:, None], top)
        of_effects.append(np.stack([getattr(of_draws, name) for name in NUMBERS]))
    return np.stack(of_effects)


def interval(
    values_sb: np.ndarray, *, resamples: int, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Returns `mean`, `low` and `high` of a number that every seed has for every draw of
    pairs.

    A resample takes as many seeds with replacement, and of each one draw: the interval
    is that of the mean over seeds of what one study of each finds.
    """
    generator = np.random.default_rng(seed)
    seeds, draws = values_sb.shape
    picked_s = generator.integers(0, seeds, (resamples, seeds))
    picked_b = generator.integers(0, draws, (resamples, seeds))
    means = values_sb[picked_s, picked_b].mean(1)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {
        "mean": float(np.nanmean(values_sb)),
        "low": float(low),
        "high": float(high),
    }
