"""Ranks the latents of a further dictionary on the evidence of a case's attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.all_scores import evaluated
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.latent_statistics import CodeStatistics, weighted_codes
from sae_attr.attribution.presets import Preset, decoder_rows, preset_ranking
from sae_attr.attribution.ranking import rank
from sae_attr.attribution.score_registry import (
    SCORES,
    Candidates,
    ScoreValue,
    column_of,
    key_of,
)
from sae_attr.sae.model import SAE, encode
from sae_attr.sae.two_models import FINE_TUNED, relative_norms
from sae_attr.study.dictionary_settings import DELTA_NORM, DIFFERENCE, MEAN_CODE, SITE
from sae_attr.study.further_dictionaries import NOT_KNOWN, FurtherDictionary

# Scores of decoder rows alone, which every dictionary of the site has; the others need
# codes of the studied SAE's input, or statistics of ordinary text.
ROW_SCORES = tuple(
    name for name in SCORES if name not in ("encoder", "delta_code", "delta_activation")
)
_CODES = 2**25  # that are alive at a time


@dataclass(frozen=True, eq=False)
class RankedDictionary:
    """The best latents of a further dictionary.

    Args:
      latents_k: numbers in the dictionary, best first.
      scores: name -> score of each of them `[k]`: of their decoder rows by `key_of`,
        and `delta_norm` or `mean_code` where one of these ranks.
      facts: how they were ranked.
    """

    latents_k: np.ndarray
    scores: dict[str, np.ndarray]
    facts: dict[str, Any]


def ranked(
    dictionary: FurtherDictionary,
    evidence: Evidence,
    presets: Sequence[Preset],
    top: int,
    *,
    same_site: bool = True,
) -> RankedDictionary:
    """Ranks a dictionary as its settings say.

    Args:
      evidence: of the case's own SAE; its tokens, gradients and mean are used.
      presets: of the attribution, the primary one first.
      top: latents.
      same_site: the case's SAE reads the site that it writes to, so that the second
        model's activations are those of this site.

    Raises:
      ValueError: a score that cannot be computed of this dictionary, with the reason.
    """
    of_dictionary = _evidence_of(dictionary, evidence)
    scopes = tuple(dict.fromkeys(preset.tokens for preset in presets))
    scores = row_scores(of_dictionary, scopes)
    facts: dict[str, Any] = {}
    if dictionary.by in (DELTA_NORM, MEAN_CODE):
        aligned_kd = evidence.aligned_kd if same_site else None
        acts_kd = evidence.table.acts_kd
        inputs_kd = encoder_inputs(dictionary, acts_kd, aligned_kd)
        sae, codes = dictionary.sae(), None
        if inputs_kd is not None:
            weights_k = evidence.mean_weights(scopes[0])
            codes = pair_codes(dictionary, sae, inputs_kd, weights_k)
        score_n, facts = score_by_codes(dictionary, sae, codes)
        latents_k = rank(dictionary.name, score_n, top).latents_k
    else:
        latents_k = _by_rows(dictionary, of_dictionary, presets, scores, top)
        score_n = None
    columns = _columns(of_dictionary, scopes, scores, latents_k)
    if score_n is not None:
        columns[dictionary.by] = score_n[latents_k].astype(np.float32)
    return RankedDictionary(latents_k, columns, facts)


def _columns(
    evidence: Evidence,
    scopes: Sequence[str],
    scores: Mapping[str, np.ndarray],
    latents_k: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns the scores of some latents by `key_of`; beyond the dense limit those that
    a few latents can have.
    """
    few = Candidates(latents_k, decoder_rows(evidence.decoder, latents_k), scores)
    columns = {}
    for scope in scopes:
        for name in ROW_SCORES:
            key = key_of(name, scope)
            if key in scores:
                columns[key] = scores[key][latents_k]
                continue
            column = column_of(name, scope, evidence, few)
            if column is not None:
                columns[key] = np.asarray(column, np.float32)
    return columns


def _evidence_of(dictionary: FurtherDictionary, evidence: Evidence) -> Evidence:
    """Returns the evidence with another dictionary, of whose codes nothing is known."""
    unknown = CodeStatistics(*[np.zeros(0, np.float32)] * 3, tokens=0)
    return replace(
        evidence,
        decoder=dictionary.decoder,
        sae_cfg=dictionary.cfg,
        load_sae=dictionary.sae,
        codes=unknown,
    )


def row_scores(evidence: Evidence, scopes: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the scores of every decoder row by `key_of`, as far as the dense limit
    allows.
    """
    computed: dict[str, ScoreValue] = {}
    for scope in scopes:
        for name in ROW_SCORES:
            # Of a score that has no scope, or one alone, that of the primary preset.
            if SCORES[name].scope == "each" or scope == scopes[0]:
                computed[key_of(name, scope)] = SCORES[name].compute(evidence, scope)
    values = {}
    for key, value in computed.items():
        if not isinstance(value, Skipped):
            values[key] = value
    return evaluated(evidence, values)


def _by_rows(
    dictionary: FurtherDictionary,
    evidence: Evidence,
    presets: Sequence[Preset],
    scores: Mapping[str, np.ndarray],
    top: int,
) -> np.ndarray:
    """Returns the best latents by a method of studies, applied to decoder rows."""
    by, primary = dictionary.by, presets[0]
    of_methods = {"delta_attribution": primary}
    for preset in presets:
        of_methods.setdefault(preset.name, preset)
    if by in of_methods:
        return preset_ranking(evidence, of_methods[by], scores, top).latents_k
    key = key_of(by, primary.tokens) if by in SCORES else by
    if key not in scores:
        raise ValueError(
            f"{dictionary.where}.by is {by}, which is no score of decoder rows for the "
            "presets of this case; set "
            f"--{dictionary.where}.by=delta_attribution or gradient"
        )
    return rank(by, scores[key], top).latents_k


# ---- codes on the pairs --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PairCodes:
    """A dictionary on the pairs' counted tokens, each prompt as much as another.

    `mean_n`: mean latent activation. `rate_n`: share of tokens on which it is not 0.
    """

    mean_n: np.ndarray
    rate_n: np.ndarray


def encoder_inputs(
    dictionary: FurtherDictionary, acts_kd: np.ndarray, aligned_kd: np.ndarray | None
) -> np.ndarray | None:
    """Returns what a dictionary encodes, `[k, d]`, of a crosscoder both models side by
    side `[k, 2d]`; None where that is not known.

    Args:
      acts_kd: activations of the studied model.
      aligned_kd: of the model without the behaviour on the same tokens and at the same
        site; None where there is none.
    """
    if dictionary.reads == SITE:
        return acts_kd
    if dictionary.reads == NOT_KNOWN or aligned_kd is None:
        return None
    if dictionary.reads == DIFFERENCE:
        return np.asarray(acts_kd, np.float32) - np.asarray(aligned_kd, np.float32)
    models = [aligned_kd, acts_kd]
    if dictionary.cfg.stream != FINE_TUNED:
        models.reverse()
    return np.concatenate(models, axis=1)


def pair_codes(
    dictionary: FurtherDictionary,
    sae: SAE,
    inputs_kd: np.ndarray,
    weights_k: np.ndarray,
) -> PairCodes:
    """Encodes the tokens of pairs, once for both numbers.

    Args:
      sae: the whole dictionary.
      inputs_kd: what the dictionary encodes.
      weights_k: of every token in the mean.

    Raises:
      ValueError: a dictionary whose codes depend on other tokens.
    """
    if dictionary.cfg.gate == "temporal":
        raise ValueError(
            f"{dictionary.where}: a temporal SAE's codes depend on earlier tokens; set "
            f"--{dictionary.where}.by=delta_attribution"
        )
    block = max(1, min(4096, _CODES // (2 * sae.cfg.n_latents)))

    def codes_and_firing(x_kd: jax.Array) -> jax.Array:
        codes_kn = encode(sae, _streams_apart(sae, x_kd))
        return jnp.concatenate([codes_kn, codes_kn != 0], axis=1)

    both_m = weighted_codes(codes_and_firing, inputs_kd, weights_k, block=block)
    return PairCodes(*np.split(both_m, 2))


def _streams_apart(sae: SAE, x_kd: jax.Array) -> jax.Array:
    if sae.cfg.streams == 1:
        return x_kd
    return x_kd.reshape(len(x_kd), sae.cfg.streams, sae.cfg.d_in)


def score_by_codes(
    dictionary: FurtherDictionary, sae: SAE, codes: PairCodes | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns Δ_norm or the mean latent activation of every latent, NaN for those that
    fire on no token of the pairs; and how many these are, None where it is not known.
    """
    if dictionary.by == MEAN_CODE:
        if codes is None:
            raise ValueError(
                f"{dictionary.where}: what it encodes is not known on the pairs, since "
                "the case's SAE reads another site than it writes to, or has no codes; "
                f"set --{dictionary.where}.by=delta_attribution"
            )
        score_n = codes.mean_n
    else:
        score_n = relative_norms(sae)
        if dictionary.cfg.stream != FINE_TUNED:
            score_n = 1 - score_n
    if codes is None:
        return score_n, {"silent": None}
    # Rows of a latent that never fires are where training left them: their lengths say
    # nothing of the models.
    silent_n = codes.rate_n == 0
    return np.where(silent_n, np.nan, score_n), {"silent": int(silent_n.sum())}
