"""One ranking of the latents of several SAEs, from one pass over the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.candidates import Columns, statistics_columns
from sae_attr.attribution.encoder_scores import error_prompt_scores
from sae_attr.attribution.latent_statistics import CodeStatistics
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.prompt_merge import merge, prompt_scores
from sae_attr.attribution.sites import (
    ERROR,
    SiteRanking,
    collect_sites,
    rank_sites,
    score_sites,
)
from sae_attr.attribution.statistics import cluster_statistics
from sae_attr.attribution.token_table import TokenTable
from sae_attr.hooks import Site
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import unembedding
from sae_attr.store import Result
from sae_attr.study.attribution_stages import attribution_stages, run_setup
from sae_attr.study.columns import quoted
from sae_attr.study.setup import Draw, Setup
from sae_attr.study.stages import (
    firing,
    mean_activation,
    norm_limits,
    outliers,
    sae_check,
)
from sae_attr.text.rows import TokenRow
from sae_attr.text.tokenizer import token_strings

# The stages of each SAE; gradients of all sites come from one pass of their own.
STAGES = (
    sae_check.NAME,
    norm_limits.NAME,
    mean_activation.NAME,
    firing.NAME,
    outliers.NAME,
)


@dataclass(frozen=True, eq=False)
class SiteEvidence:
    """One SAE with its tokens and what ordinary text says of it.

    `error_p`: Δ_err within each prompt; None where the error's mean is unknown, or
      there are too many latents for it.
    """

    setup: Setup
    check: Mapping[str, Any]
    mean_d: np.ndarray
    table: TokenTable
    error_p: np.ndarray | None

    @property
    def scope(self) -> str:
        """The primary preset's tokens."""
        return self.setup.settings.presets()[0].tokens


def rank_setups(
    setups: Mapping[Site, Setup],
) -> tuple[SiteRanking, dict[Site, SiteEvidence]]:
    """Ranks the latents of several SAEs of one model together, best first.

    Args:
      setups: by site, of the same model and pairs.

    Raises:
      ValueError: an SAE fails its self-test, and the settings do not trust it.
    """
    evidence = measure_sites(setups)
    first = next(iter(setups.values()))
    scope = first.settings.presets()[0].tokens
    scores = score_sites(
        {site: e.table for site, e in evidence.items()},
        {site: e.setup.decoder for site, e in evidence.items()},
        {site: e.mean_d for site, e in evidence.items()},
        scope=scope,
        exclude=first.exclude,
    )
    ranking = rank_sites(
        "delta_attribution",
        scores,
        first.settings.top,
        errors=site_errors(evidence),
        tokens=scope,
    )
    return ranking, evidence


def measure_sites(setups: Mapping[Site, Setup]) -> dict[Site, SiteEvidence]:
    """Runs the stages of every SAE, then one pass over the pairs for all sites."""
    results = {
        site: run_setup(setup, attribution_stages(setup), only=STAGES)
        for site, setup in setups.items()
    }
    first = next(iter(setups.values()))
    s = first.settings
    tables = collect_sites(
        first.params,
        _shared_rows(setups, results),
        cfg=first.cfg,
        sites={site: setup.read_site for site, setup in setups.items()},
        mesh=first.mesh,
        loss=s.loss,
        batch_size=s.batch_size,
        rules=s.rules,
        remat=s.remat,
    )
    out = {}
    for site, setup in setups.items():
        of_site = results[site]
        mean_d = mean_activation.mean_of(of_site[mean_activation.NAME]).mean_d
        codes = firing.statistics_of(of_site[firing.NAME])
        out[site] = SiteEvidence(
            setup,
            sae_check.check_record(setup, of_site[sae_check.NAME]),
            np.asarray(mean_d),
            tables[site],
            _error_within_prompts(setup, tables[site], codes, np.asarray(mean_d)),
        )
    return out


def _shared_rows(
    setups: Mapping[Site, Setup], results: Mapping[Site, Mapping[str, Result]]
) -> list[TokenRow]:
    """Returns the rows of one pass: a token that is masked at one of the sites counts
    at none.
    """
    rows_by_site = [
        outliers.masked_rows(setup, results[site][outliers.NAME])
        for site, setup in setups.items()
    ]
    shared = []
    for rows in zip(*rows_by_site, strict=True):
        masked = np.any([row.masked for row in rows], axis=0)
        shared.append(replace(rows[0], masked=masked))
    return shared


def _error_within_prompts(
    setup: Setup, table: TokenTable, codes: CodeStatistics, mean_d: np.ndarray
) -> np.ndarray | None:
    merged = merge(table, setup.settings.presets()[0].tokens, setup.exclude)
    cost = setup.sae_cfg.n_latents * len(merged.acts_jd)
    if not codes.tokens or cost > setup.settings.dense_limit:
        return None
    return error_prompt_scores(merged, setup.sae, codes.error_m, mean_d)[:, 0]


def site_errors(evidence: Mapping[Site, SiteEvidence]) -> dict[Site, float]:
    """Returns Δ_err of the sites where it is known."""
    return {
        site: float(e.error_p.mean())
        for site, e in evidence.items()
        if e.error_p is not None
    }


def ranking_columns(
    ranking: SiteRanking, evidence: Mapping[Site, SiteEvidence]
) -> Columns:
    """Returns the columns of the ranking, one entry per place: Δ with its statistics
    over prompts, and the tokens that the latent writes.
    """
    count = len(ranking.entries)
    statistics = ("delta", "se", "low", "high", "consistency")
    columns: Columns = {name: np.full(count, np.nan) for name in statistics}
    tokens = np.full(count, "", object)
    for site, of_site in evidence.items():
        places = np.array(
            [i for i, entry in enumerate(ranking.entries) if entry.site == site], int
        )
        if not len(places):
            continue
        is_error = np.array([ranking.entries[i].latent == ERROR for i in places])
        # Latents first, in their order; the error is one entry, after them.
        ordered = np.concatenate([places[~is_error], places[is_error]])
        latents = ranking.latents(site)
        scores_pk = _within_prompts(of_site, latents, error=bool(is_error.any()))
        for name, values in _statistics(of_site.setup, scores_pk).items():
            columns[name][ordered] = values
        if len(latents):
            tokens[places[~is_error]] = _nearest(of_site.setup, latents)
    names = ["error" if e.latent == ERROR else str(e.latent) for e in ranking.entries]
    return {
        "rank": np.arange(1, count + 1),
        "site": np.array([str(entry.site) for entry in ranking.entries]),
        "latent": np.array(names),
        **columns,
        "tokens": tokens.astype(str),
    }


def _within_prompts(
    of_site: SiteEvidence, latents: np.ndarray, *, error: bool
) -> np.ndarray:
    """Computes Δ of some latents within each prompt, `[p, k]`; the reconstruction
    error is the last column.
    """
    setup = of_site.setup
    scores_pk = np.zeros((len(setup.pairs), 0))
    if len(latents):
        merged = merge(of_site.table, of_site.scope, setup.exclude)
        dec_kd = decoder_rows(setup.decoder, latents)
        mean_d = jnp.asarray(of_site.mean_d, jnp.float32)
        scores_pk = prompt_scores(merged, dec_kd, mean_d)
    if error and of_site.error_p is not None:
        scores_pk = np.concatenate([scores_pk, of_site.error_p[:, None]], axis=1)
    return scores_pk


def _statistics(setup: Setup, scores_pk: np.ndarray) -> Columns:
    key = setup.key(Draw.BOOTSTRAP)
    resamples = setup.settings.bootstrap
    return statistics_columns(cluster_statistics(scores_pk, key, resamples=resamples))


def _nearest(setup: Setup, latents: np.ndarray) -> list[str]:
    """Returns the tokens nearest to each latent; "" at a site of another width than the
    unembedding.
    """
    if setup.cfg.width(setup.site.point) != setup.cfg.d_model:
        return [""] * len(latents)
    dec_kd = decoder_rows(setup.decoder, latents)
    ids, _ = nearest_tokens(dec_kd, unembedding(setup.params, cfg=setup.cfg))
    return [quoted(token_strings(setup.tokenizer, row)) for row in np.asarray(ids)]


def ranking_summary(
    ranking: SiteRanking, evidence: Mapping[Site, SiteEvidence]
) -> dict[str, Any]:
    """Returns what result.json holds beside versions."""
    first = next(iter(evidence.values()))
    sites, checks, places = {}, {}, {}
    for site, of_site in evidence.items():
        setup = of_site.setup
        sites[str(site)] = {
            "sae": setup.settings.sae,
            "reads": str(setup.read_site),
        }
        checks[str(site)] = of_site.check
        places[str(site)] = len(ranking.latents(site))
    errors = site_errors(evidence)
    return {
        "sites": sites,
        "latents_in_top": places,
        "reconstruction_error": {str(site): x for site, x in errors.items()},
        "sae_check": checks,
        "choices": {
            "tokens": first.scope,
            "gating": "both",
            "settings": {**vars(first.setup.settings), "sae": None},
        },
    }
