"""Every score of every latent, in one pass over the dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from sae_attr.attribution.decoder_pass import score_dictionary
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.score_registry import (
    SCORES,
    Derived,
    Form,
    ScoreValue,
    Vector,
    key_of,
)
from sae_attr.attribution.scores import best_direction, quadratic_form
from sae_attr.attribution.statistics import halves
from sae_attr.attribution.token_table import table_moment


class DictionaryScores(NamedTuple):
    """Scores of a whole dictionary.

    `arrays`: `[n]` by `key_of`, beside them `both_prompt_mean`, `both_half0` and
      `both_half1` of the primary scope, and `best_direction_d`.
    `bound`: the highest score that any unit direction could get, and the share of it
      that the best latent has.
    `skipped`: score -> why it is left out; `by_limit`: those of them that candidates
      can have.
    """

    arrays: dict[str, np.ndarray]
    bound: dict[str, float]
    skipped: dict[str, str]
    by_limit: list[str]


def score_everything(
    evidence: Evidence, scopes: Sequence[str], key: jax.Array
) -> DictionaryScores:
    """Computes every score of `SCORES` for every latent, as far as the dense limit
    allows.

    Args:
      scopes: of tokens, the primary one first.
      key: of the split of prompts into halves.
    """
    computed: dict[str, ScoreValue] = {}
    for name, scope in _scored(scopes):
        computed[key_of(name, scope)] = SCORES[name].compute(evidence, scope)
    further = _further_forms(evidence, scopes[0], key)
    arrays = evaluated(evidence, computed, further)
    bound, direction_d = best_direction(evidence.moment(scopes[0]), evidence.mean_d)
    arrays["best_direction_d"] = np.asarray(direction_d)
    best = float(arrays[key_of("both", scopes[0])].max())
    skipped = {k: v for k, v in computed.items() if isinstance(v, Skipped)}
    return DictionaryScores(
        arrays,
        {"bound": float(bound), "best_over_bound": best / float(bound)},
        {k: v.why for k, v in skipped.items()},
        [k for k, v in skipped.items() if v.by_limit],
    )


def _scored(scopes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields every score with each of its scopes, scope by scope, so that a scope's
    tokens are merged once.
    """
    for scope in scopes:
        for name, score in SCORES.items():
            if score.scope == "each":
                yield name, scope
    for name, score in SCORES.items():
        if score.scope != "each":
            yield name, scopes[0]


def evaluated(
    evidence: Evidence,
    computed: Mapping[str, ScoreValue],
    further_forms: Mapping[str, jax.Array] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Scores forms and vectors with one read of the decoder's rows, then adds arrays
    and what is derived from other scores; skipped ones are left out.

    Args:
      further_forms: name -> matrix, scored beside those computed.
    """
    forms = dict(further_forms)
    vectors: dict[str, jax.Array] = {}
    for name, value in computed.items():
        if isinstance(value, Form):
            forms[name] = value.matrix_dd
        elif isinstance(value, Vector):
            vectors[name] = value.vector_d
    arrays = score_dictionary(
        evidence.decoder,
        forms,
        vectors,
        mesh=evidence.mesh,
        progress=evidence.progress,
    )
    for name, value in computed.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
    for name, value in computed.items():
        if isinstance(value, Derived):
            arrays[name] = value.of(arrays)
    return arrays


def _further_forms(
    evidence: Evidence, primary: str, key: jax.Array
) -> dict[str, jax.Array]:
    """Makes the forms of Δ from the prompts' own mean, and from two random halves of
    the prompts, each a mean over its own; no halves of fewer than two prompts.
    """
    prompt_k = np.abs(evidence.weights("prompt"))
    prompt_mean_d = evidence.mean_acts(prompt_k / prompt_k.sum())
    whole = evidence.moment(primary)
    forms = {"both_prompt_mean": quadratic_form(whole, prompt_mean_d)}
    table = evidence.table
    prompts = sorted({row.pair for row in table.rows})
    if len(prompts) < 2:
        return forms
    w_k = evidence.weights(primary)
    first_p = halves(len(prompts), key)
    in_first = dict(zip(prompts, first_p, strict=True))
    first_r = [in_first[row.pair] for row in table.rows]
    first_k = np.repeat(first_r, np.diff(table.start_r))
    for i, (half_k, half_p) in enumerate(((first_k, first_p), (~first_k, ~first_p))):
        moment = table_moment(table, np.where(half_k, w_k, 0) / half_p.mean())
        forms[f"both_half{i}"] = quadratic_form(moment, evidence.mean_d)
    return forms
