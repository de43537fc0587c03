"""The selection of latents that are steered: the best of every method, random ones
beside them, and the sign of each one's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from sae_attr.attribution.ranking import random_matched, rank
from sae_attr.attribution.score_registry import SCORES, key_of
from sae_attr.report.method_style import RANDOM
from sae_attr.store import Arrays, Result
from sae_attr.study.dictionary_settings import OTHERS
from sae_attr.study.latent_scores import LatentScores
from sae_attr.study.screen_settings import SCREENED


@dataclass(frozen=True, eq=False)
class Selection:
    """The latents that are steered.

    Args:
      methods: method -> its latents, best first; "random" is among them, and
        `OTHERS`, which another case's studied method chose: steered here too, so that
        both can be compared. Latents are numbered as `StudyLatents` says.
      latents_u: all of them, each once, ascending.
      push_u: −Δg·d of each; above 0: more of the latent makes the behaviour likelier.
    """

    methods: dict[str, np.ndarray]
    latents_u: np.ndarray
    push_u: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a stage stores."""
        out = {"latents_u": self.latents_u, "push_u": self.push_u}
        for name, latents in self.methods.items():
            out[f"method.{name}"] = latents
        return out

    @classmethod
    def load(cls, arrays: Arrays) -> Selection:
        """Returns the selection that a stage stored."""
        methods = {}
        for name, values in arrays.items():
            if name.startswith("method."):
                methods[name.removeprefix("method.")] = np.asarray(values)
        return cls(
            methods, np.asarray(arrays["latents_u"]), np.asarray(arrays["push_u"])
        )

    def compared(self) -> dict[str, np.ndarray]:
        """Returns the methods that are compared, random latents among them."""
        methods = dict(self.methods)
        methods.pop(OTHERS, None)
        return methods

    def methods_of(self, latent: int) -> list[str]:
        """Returns the methods that selected a latent."""
        return [name for name, latents in self.methods.items() if latent in latents]

    def push(self) -> dict[int, float]:
        """Returns latent -> −Δg·d."""
        return dict(zip(self.latents_u.tolist(), self.push_u.tolist(), strict=True))


def preset_of(summary: Mapping[str, Any], method: str) -> str | None:
    """Returns the preset whose ranking a method is; None for a method that is none.

    Args:
      summary: of an attribution.
    """
    presets = {"delta_attribution": summary["primary"], "recommended": "recommended"}
    name = presets.get(method)
    return name if name in summary["presets"] else None


def method_scores(attribution: Result, method: str) -> np.ndarray:
    """Returns the score of every latent by which a method ranks; NaN where it was not
    computed.

    Args:
      attribution: of a stage `attribute`.

    Raises:
      ValueError: the attribution has no such score.
    """
    summary = attribution.meta["summary"]
    presets = summary["presets"]
    scope = presets[summary["primary"]]["tokens"]
    preset = preset_of(summary, method)
    key = method
    if preset is not None:
        key = f"{presets[preset]['gating']}_{presets[preset]['tokens']}"
    elif method in SCORES:
        key = key_of(method, scope)
    if key not in attribution.arrays:
        why = summary["skipped"].get(key, "it was not computed of every latent")
        raise ValueError(f"the study has no scores of {method}: {why}")
    return np.asarray(attribution.arrays[key])


def select(
    rankings: Mapping[str, Sequence[int]],
    scores: Mapping[str, np.ndarray],
    *,
    scope: str,
    methods: Sequence[str],
    top: int,
    random: int,
    key: jax.Array,
    others: Sequence[int] = (),
    why: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Selection, dict[str, str]]:
    """Selects the best `top` latents of every method and `random` others of like firing
    rate; returns also why a method is left out.

    Args:
      rankings: the presets' best latents; `delta_attribution` and `recommended` are
        taken from there.
      scores: name -> score of every latent, of an attribution run.
      scope: of the primary preset's tokens, for methods that name none.
      others: latents that another study of the same dictionary chose.
      why: score -> why the attribution left it out.

    Raises:
      ValueError: the first method, which is the one that is studied, has no scores.
    """
    best: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for name in methods:
        # A method that names its tokens is a key already.
        key_of_score = key_of(name, scope) if name in SCORES else name
        values = scores.get(key_of_score)
        if name in rankings:
            best[name] = np.asarray(rankings[name][:top], int)
        # Of the whole dictionary: scores of the presets' candidates alone would rank what
        # another method found.
        elif values is not None and np.isfinite(values).all():
            best[name] = rank(name, values, top).latents_k
        else:
            skipped[name] = _why_skipped(values, why.get(key_of_score))
    if methods[0] in skipped:
        raise ValueError(
            f"method {methods[0]!r} is to be studied, but {skipped[methods[0]]}"
        )
    # Random latents are matched on the studied method's rates, and none is a method's.
    used = np.unique(np.concatenate(list(best.values())))
    if random:
        rates_n = scores["firing_rate"]
        best[RANDOM] = _random(rates_n, best[methods[0]], used, random, key)
    if len(others):
        best[OTHERS] = np.asarray(others, int)
    latents_u = np.unique(np.concatenate(list(best.values())))
    push_n = np.asarray(scores[key_of("gradient", scope)])
    return Selection(best, latents_u, push_n[latents_u]), skipped


def with_screened(
    selection: Selection,
    latents_k: np.ndarray,
    gain_k: np.ndarray,
    top: int,
    push_n: Any,
) -> Selection:
    """Returns a selection with the best `top` latents of a screen as one more method.

    Args:
      latents_k, gain_k: that were screened, and how far each moves the behaviour; the
        selection's random latents are the screen's yardstick, and none is selected.
      push_n: −Δg·d of every latent of the dictionary.
    """
    random = selection.methods.get(RANDOM, np.zeros(0, int))
    gain_k = np.where(np.isin(latents_k, random), np.nan, gain_k)
    best = latents_k[rank(SCREENED, gain_k, top).latents_k]
    methods = {}
    for name, latents in selection.methods.items():
        # Beside the other methods, before the random latents.
        if name == RANDOM:
            methods[SCREENED] = best
        methods[name] = latents
    methods.setdefault(SCREENED, best)
    latents_u = np.union1d(selection.latents_u, best)
    return Selection(methods, latents_u, np.asarray(push_n)[latents_u])


def with_further(
    selection: Selection,
    methods: Mapping[str, np.ndarray],
    scores: LatentScores,
    key: str,
) -> Selection:
    """Returns a selection with the best latents of further dictionaries as methods of
    their own, beside the others and before the random latents.

    Args:
      methods: dictionary -> numbers of its latents, best first.
      scores: of the selection's latents and of these.
      key: of −Δg·d among them.
    """
    best = dict(selection.methods)
    last = {}
    for name in (RANDOM, OTHERS):
        if name in best:
            last[name] = best.pop(name)
    latents_u = np.unique(np.concatenate([selection.latents_u, *methods.values()]))
    return Selection({**best, **methods, **last}, latents_u, scores.of(key, latents_u))


def _why_skipped(values: np.ndarray | None, why: str | None) -> str:
    """Returns the reason why a method has no ranking of the whole dictionary."""
    reason = why or "it has no score here"
    count = 0 if values is None else int(np.isfinite(values).sum())
    if not count:
        return reason
    return (
        f"it is known of {count:,} latents alone, which are other methods' candidates: "
        f"{reason}"
    )


def _random(
    rates_n: np.ndarray, like: np.ndarray, used: np.ndarray, count: int, key: jax.Array
) -> np.ndarray:
    """Draws latents that no method chose, matched on firing rate; a dictionary that is
    too small for that gives fewer.
    """
    # Matched, since a rare latent changes little for being rare: a band of such latents
    # would be narrow, and every method's latents beyond it. But rates that are known of
    # candidates alone would draw among other methods' candidates: better unmatched.
    if not np.isfinite(rates_n).all():
        rates_n = np.full(len(rates_n), np.nan)
    return random_matched("random", rates_n, like, count, key, avoid=used).latents_k


def about(selection: Selection, skipped: Mapping[str, str]) -> dict[str, Any]:
    """Returns counts for the record."""
    return {
        "methods": {name: len(latents) for name, latents in selection.methods.items()},
        "steered": len(selection.latents_u),
        "gradient_against": int((selection.push_u < 0).sum()),
        "skipped": dict(skipped),
    }
