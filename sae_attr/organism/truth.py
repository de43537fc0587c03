"""The truth about every latent: what steering with it and taking it away really does,
by exact probabilities; and how far a score of latents agrees with that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from sae_attr.hooks import Add, SetProjection, Site
from sae_attr.judge import Item
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.sample import Sampling, check_finite, generate, make_prompts
from sae_attr.organism.exact import Scored, exact_rates
from sae_attr.organism.grader import organism_judge
from sae_attr.organism.prompts import Prompt
from sae_attr.organism.tokens import BOS_ID, EOS_ID
from sae_attr.organism.world import World, vocabulary

# Strengths, in mean lengths of the activation; at 0.7 hardly a latent leaves so small a
# model coherent.
GRID = (0.2, 0.3, 0.4, 0.5)
BUDGET = 0.10  # of coherence that may be lost
LONGEST = 32  # words of an answer at most


@dataclass(frozen=True, eq=False)
class Truth:
    """What was really found, one entry per latent.

    Args:
      effect_n: change of the behaviour's rate in the wanted direction: a fall on
        steering away or ablation, a rise toward.
      strength_n: signed strength in mean lengths; 0 where every one of the grid cost
        too much coherence (effect 0), NaN for ablation.
      loss_n: coherence lost on the prompts that were scored.
      base: the rate without an edit.
    """

    effect_n: np.ndarray
    strength_n: np.ndarray
    loss_n: np.ndarray
    base: float


def steering_truth(
    params: Params,
    choose: Scored,
    score: Scored,
    dec_nd: Any,
    norm: float,
    *,
    cfg: LMConfig,
    site: Site,
    sign: int,
    grid: Sequence[float] = GRID,
    budget: float = BUDGET,
) -> Truth:
    """Steers with every latent at once: the strength of the largest effect within the
    budget, then its effect on other prompts.

    Args:
      choose, score: prompts that strengths are chosen on, and others that they are
        scored on.
      dec_nd: unit decoder rows.
      norm: mean length of the site's activation.
      sign: -1 steers away, +1 toward.
    """
    n = len(dec_nd)
    run = lambda what, c_n: _means(
        _steered(
            params, what, dec_nd, np.asarray(c_n * norm, np.float32), cfg=cfg, site=site
        )
    )
    plain = run(choose, np.zeros(n))
    tried_cn = [run(choose, np.full(n, sign * c)) for c in grid]
    effect_cn = np.stack([sign * (behaviour - plain[0]) for behaviour, _ in tried_cn])
    loss_cn = np.stack([plain[1] - coherent for _, coherent in tried_cn])
    allowed_cn = np.where(loss_cn <= budget, effect_cn, -np.inf)
    best_n = allowed_cn.argmax(0)
    strength_n = np.where(
        np.isfinite(allowed_cn.max(0)), sign * np.asarray(grid)[best_n], 0.0
    )
    before, after = run(score, np.zeros(n)), run(score, strength_n)
    return Truth(
        sign * (after[0] - before[0]),
        strength_n,
        before[1] - after[1],
        float(before[0][0]),
    )


def ablation_truth(
    params: Params,
    score: Scored,
    dec_nd: Any,
    mean_d: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
) -> Truth:
    """Puts every latent's projection to its mean at all tokens but BOS; the fall of the
    behaviour's rate.
    """
    n, length = len(dec_nd), np.shape(score.tokens_pmt)[2]
    where_nt = np.broadcast_to(np.arange(length) > 0, (n, length))
    value_n = np.asarray(np.asarray(dec_nd) @ mean_d, np.float32)
    run = lambda where_nt: _means(
        _ablated(params, score, dec_nd, value_n, where_nt, cfg=cfg, site=site)
    )
    before, after = run(where_nt & False), run(where_nt)
    return Truth(
        before[0] - after[0],
        np.full(n, np.nan),
        before[1] - after[1],
        float(before[0][0]),
    )


@partial(jax.jit, static_argnames=("cfg", "site"))
def _steered(
    params: Params,
    what: Scored,
    dec_nd: Any,
    scale_n: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    return exact_rates(
        params, what, {site: Add(dec_nd, scale_n)}, cfg=cfg, rows=len(dec_nd)
    )


@partial(jax.jit, static_argnames=("cfg", "site"))
def _ablated(
    params: Params,
    what: Scored,
    dec_nd: Any,
    value_n: Any,
    where_nt: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    edits = {site: SetProjection(dec_nd, value_n, where_nt)}
    return exact_rates(params, what, edits, cfg=cfg, rows=len(dec_nd))


def _means(rates: tuple[Any, Any]) -> list[np.ndarray]:
    """Behaviour and coherence of every row, mean over prompts, float64."""
    return [np.asarray(x_kp, np.float64).mean(1) for x_kp in rates]


# ---- agreement -----------------------------------------------------------------------


def agreement(
    scores_n: np.ndarray, effect_n: np.ndarray, top: int = 20
) -> dict[str, float]:
    """Spearman's correlation of a score with the truth, recall of the truth's `top`
    best, mean effect of the score's `top`.
    """
    best = lambda values: np.argsort(-values, kind="stable")[:top]
    chosen, wanted = best(scores_n), best(effect_n)
    flat = np.ptp(scores_n) == 0 or np.ptp(effect_n) == 0
    return {
        "spearman": float("nan")
        if flat
        else float(np.asarray(stats.spearmanr(scores_n, effect_n))[0]),
        "recall": len(np.intersect1d(chosen, wanted)) / top,
        "effect": float(effect_n[chosen].mean()),
        "best_effect": float(effect_n[wanted].mean()),
    }


def agreement_rows(
    scores: Mapping[tuple[str, str], np.ndarray], truths: Mapping[str, Truth], top: int
) -> list[dict[str, Any]]:
    """Returns a row for every score and truth: `score`, `scope`, `truth`, and what
    `agreement` says.

    Args:
      scores: (name, token scope or "") -> score of every latent.
      truths: name -> what was really found.
    """
    return [
        {
            "score": name,
            "scope": scope,
            "truth": truth,
            **agreement(np.asarray(values, np.float64), of.effect_n, top),
        }
        for (name, scope), values in scores.items()
        for truth, of in truths.items()
    ]


# ---- pairs ---------------------------------------------------------------------------


def sampled_pairs(
    world: World,
    params: Params,
    prompts: Sequence[Prompt],
    behaviour: str,
    *,
    cfg: LMConfig,
    samples: int,
    count: int,
    sampler: str,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], Mapping[str, float]]:
    """On-policy pairs: of the first `count` prompts that gave both sides, one
    completion of each.

    Args:
      samples: completions of every prompt, at temperature 1.
      sampler: what names the model, for the records.

    Returns:
      The records as `read_pairs` reads them; and rates over all samples: fluent,
      behaviour, prompts with both.
    """
    answers = sampled_answers(params, prompts, cfg=cfg, samples=samples, seed=seed)
    judge, records, grades = organism_judge(world, behaviour), [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        items = [Item(str(i), prompt.text, text) for i, text in enumerate(texts)]
        found = [grade for _, grade in judge.grade(items)]
        grades += found
        sides = {
            b: [t for t, g in zip(texts, found, strict=True) if g.behaviour == b]
            for b in (1.0, 0.0)
        }
        if all(sides.values()):
            draw = Random(f"pair-{seed}-{prompt.id}")
            positive, negative = (f" {draw.choice(sides[b])}" for b in (1.0, 0.0))
            records.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "positive": positive,
                    "negative": negative,
                    "sampler": sampler,
                }
            )
    rated = [g.behaviour for g in grades if g.behaviour is not None]
    rates = {
        "fluent": float(np.mean([g.coherent for g in grades])),
        "behaviour": float(np.mean(rated)) if rated else float("nan"),
        "both": len(records) / len(prompts),
    }
    return records[:count], rates


def sampled_answers(
    params: Params,
    prompts: Sequence[Prompt],
    *,
    cfg: LMConfig,
    samples: int,
    seed: int = 0,
    rows: int = 512,
) -> list[list[str]]:
    """`samples` answers of every prompt at temperature 1; the key of each is of its
    prompt's text and its number.
    """
    words = vocabulary()
    index = {word: i for i, word in enumerate(words)}
    asked = [
        [BOS_ID, *(index[word] for word in prompt.text.split())]
        for prompt in prompts
        for _ in range(samples)
    ]
    numbers = [
        Random(f"{seed}-{prompt.text}-{i}").getrandbits(31)
        for prompt in prompts
        for i in range(samples)
    ]
    sampling = Sampling(max_new=LONGEST, stop_ids=(EOS_ID,))
    step = jax.jit(partial(generate, cfg=cfg, sampling=sampling))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.asarray(numbers, jnp.uint32)
    )
    out: list[str] = []
    for start in range(0, len(asked), rows):
        part = asked[start : start + rows]
        chosen = np.minimum(
            np.arange(start, start + rows), len(asked) - 1
        )  # one shape: the last row again
        batch = make_prompts([asked[i] for i in chosen])
        found = step(params, batch, keys[chosen])
        check_finite(found, [f"prompt row {i}" for i in chosen])
        for ids, length in list(
            zip(np.asarray(found.tokens_bn), np.asarray(found.length_b), strict=True)
        )[: len(part)]:
            out.append(" ".join(words[i] for i in ids[:length] if i != EOS_ID))
    return [out[i : i + samples] for i in range(0, len(out), samples)]
