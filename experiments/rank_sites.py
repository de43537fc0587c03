"""Ranks the latents of several SAEs together; see configs/rank_sites.py for the
command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.attribution import (
    TokenTable,
    cluster_statistics,
    collect_sites,
    merge,
    prompt_scores,
    rank_sites,
    score_sites,
)
from sae_attr.attribution.corpus import CodeStatistics
from sae_attr.attribution.encoder import error_prompt_scores
from sae_attr.attribution.sites import ERROR, SiteRanking
from sae_attr.hooks import Site
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import unembedding
from sae_attr.report.tables import csv_text, json_text, text_table
from sae_attr.store import Store, own_workdir, write_atomic
from sae_attr.study.attribution_stages import check_sae, firing_stage, mean_stage
from sae_attr.study.candidates import decoder_rows
from sae_attr.study.columns import quoted, written
from sae_attr.study.setup import Setup
from sae_attr.text.rows import TokenRow
from sae_attr.text.tokenizer import token_strings

from . import _common
from ._flags import CONFIG, WORKDIR

PLAIN = (
    "mesh",
    "batch_size",
    "corpus_batch",
    "remat",
    "trust_sae",
)  # where and how fast, not what


def parse_entry(text: str) -> tuple[str, dict[str, str]]:
    """`SAE?site=layer2.mlp_out&site_in=layer2.mlp_in` as path and sites; ValueError for
    another key.
    """
    path, _, query = text.partition("?")
    sites = dict(parse_qsl(query, keep_blank_values=True))
    if (query and not sites) or set(sites) - {"site", "site_in"}:
        raise ValueError(
            f"{text!r} is not understood; write SAE, or "
            "SAE?site=layer2.mlp_out&site_in=layer2.mlp_in"
        )
    return path, sites


def setups_of(config: ConfigDict, store: Store, mesh: Any) -> dict[Site, Setup]:
    """One setup per SAE, in the order given, sharing the model and the rows.

    Raises:
      ValueError: no SAE, two of one site, or SAEs that were trained on different tokens
        where nothing is said about it.
    """
    named = [
        parse_entry(text.strip())
        for text in str(config.saes).split(",")
        if text.strip()
    ]
    if not named:
        raise ValueError("the config names no SAE; add --config.saes=SAE1,SAE2")
    paths = [path for path, _ in named]
    values = {**config.to_dict(), "sae": paths[0]}
    del values["saes"]
    settings = _common.settings_of(ConfigDict(values))
    first = Setup(settings, store, mesh, parallel.is_main())
    setups: dict[Site, Setup] = {}
    for path, sites in named:
        setup = first.beside(path, **sites)
        if setup.site in setups:
            raise ValueError(
                f"{path} and {setups[setup.site].settings.sae} are both of "
                f"{setup.site}; give one a site"
            )
        for name, example in (("exclude", "\"('special',)\""), ("prepend_bos", "True")):
            theirs, ours = (
                str(getattr(x, name) or "nothing").removeprefix("frozenset")
                for x in (setup, first)
            )
            if ours != theirs:
                raise ValueError(
                    f"{name} would be {theirs} for {path} and {ours} for {paths[0]}, "
                    "but one pass has one set of rows; "
                    f"say which, for instance --config.{name}={example}"
                )
        setups[setup.site] = setup
    return setups


def columns_of(
    ranking: SiteRanking,
    setups: Mapping[Site, Setup],
    tables: Mapping[Site, TokenTable],
    means: Mapping[Site, np.ndarray],
    errors_p: Mapping[Site, np.ndarray],
) -> dict[str, np.ndarray]:
    """One entry per place of the ranking: Δ with its error over prompts, and the tokens
    that the latent writes.
    """
    count = len(ranking.entries)
    floats = {
        name: np.full(count, np.nan)
        for name in ("delta", "se", "low", "high", "consistency")
    }
    tokens = np.full(count, "", object)
    for site, setup in setups.items():
        at = np.array([i for i, e in enumerate(ranking.entries) if e.site == site], int)
        latents = ranking.latents(site)
        own = np.array([i for i in at if ranking.entries[i].latent != ERROR], int)
        scores_pk = np.zeros((len(setup.pairs), 0))
        if len(latents):
            dec_kd = decoder_rows(setup.decoder, latents)
            merged = merge(
                tables[site], setup.settings.presets()[0].tokens, setup.exclude
            )
            scores_pk = prompt_scores(
                merged, dec_kd, jnp.asarray(means[site], jnp.float32)
            )
            if setup.cfg.width(site.point) == setup.cfg.d_model:
                ids, _ = nearest_tokens(
                    dec_kd, unembedding(setup.params, cfg=setup.cfg)
                )
                tokens[own] = [
                    quoted(token_strings(setup.tokenizer, row))
                    for row in np.asarray(ids)
                ]
        if len(at) > len(own):  # the reconstruction error, which is one entry
            scores_pk = np.concatenate([scores_pk, errors_p[site][:, None]], axis=1)
            own = np.concatenate([own, np.setdiff1d(at, own)])
        if len(own):
            found = cluster_statistics(
                scores_pk, setup.key(3), resamples=setup.settings.bootstrap
            )
            names = {
                "delta": "mean_k",
                "se": "se_k",
                "low": "low_k",
                "high": "high_k",
                "consistency": "consistency_k",
            }
            for name, field in names.items():
                floats[name][own] = getattr(found, field)
    return {
        "rank": np.arange(1, count + 1),
        "site": np.array([str(e.site) for e in ranking.entries]),
        "latent": np.array(
            ["error" if e.latent == ERROR else str(e.latent) for e in ranking.entries]
        ),
        **floats,
        "tokens": tokens.astype(str),
    }


def table_text(columns: Mapping[str, np.ndarray], count: int = 20) -> str:
    """Returns the first places as a table."""
    titles = {
        "rank": "rank",
        "site": "site",
        "latent": "latent",
        "delta": "Δ",
        "se": "± se",
        "consistency": "signs",
        "tokens": "nearest tokens",
    }
    shown = {title: columns[name][:count] for name, title in titles.items()}
    formats = {"Δ": ".3g", "± se": ".2g", "signs": ".0%"}
    return text_table(shown, formats, right=("latent",))


def shared_rows(setups: Mapping[Site, Setup]) -> list[TokenRow]:
    """Rows of one pass: a token that is masked at one of the sites counts at none."""
    of_sites = zip(*(setup.rows for setup in setups.values()), strict=True)
    return [
        replace(rows[0], masked=np.any([row.masked for row in rows], axis=0))
        for rows in of_sites
    ]


def errors_of(
    setup: Setup, table: TokenTable, codes: CodeStatistics, mean_d: np.ndarray
) -> np.ndarray | None:
    """Δ_err within each prompt, or None where its mean is unknown or there are too many
    codes.
    """
    merged = merge(table, setup.settings.presets()[0].tokens, setup.exclude)
    cost = setup.sae_cfg.n_latents * len(merged.acts_jd)
    if not codes.tokens or cost > setup.settings.dense_limit:
        return None
    return error_prompt_scores(merged, setup.sae, codes.error_m, mean_d)[:, 0]


def run(setups: Mapping[Site, Setup]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Everything from the SAE checks to the table; the columns, and what result.json
    holds beside them.
    """
    first = next(iter(setups.values()))
    checks = {str(site): check_sae(setup)[0] for site, setup in setups.items()}
    means = {
        site: np.asarray(mean_stage(setup)[0].mean_d) for site, setup in setups.items()
    }
    s, scope = first.settings, first.settings.presets()[0].tokens
    reads = {site: setup.read_site for site, setup in setups.items()}
    tables = collect_sites(
        first.params,
        shared_rows(setups),
        cfg=first.cfg,
        sites=reads,
        mesh=first.mesh,
        loss=s.loss,
        batch_size=s.batch_size,
        rules=s.rules,
        remat=s.remat,
    )
    decoders = {site: setup.decoder for site, setup in setups.items()}
    scores = score_sites(tables, decoders, means, scope=scope, exclude=first.exclude)
    found = {
        site: errors_of(setup, tables[site], firing_stage(setup)[0], means[site])
        for site, setup in setups.items()
    }
    errors_p = {site: values for site, values in found.items() if values is not None}
    errors = {site: float(values.mean()) for site, values in errors_p.items()}
    ranking = rank_sites(
        "delta_attribution", scores, s.top, errors=errors, tokens=scope
    )
    columns = columns_of(ranking, setups, tables, means, errors_p)
    places = {str(site): len(ranking.latents(site)) for site in setups}
    return columns, {
        "sites": {
            str(site): {"sae": setup.settings.sae, "reads": str(reads[site])}
            for site, setup in setups.items()
        },
        "latents_in_top": places,
        "reconstruction_error": {str(site): value for site, value in errors.items()},
        "sae_check": checks,
        "choices": {
            "tokens": scope,
            "sides": "both",
            "settings": {**vars(s), "sae": None},
        },
        "versions": _common.versions(),
    }


def start(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Checks every input, runs under the workdir's lock, prints the table and writes
    latents.csv and result.json.
    """
    _common.fix_day(config, workdir)
    mesh = parallel.make_mesh(str(config.mesh))
    setups = setups_of(
        config, Store(workdir / "store", writer=parallel.is_main()), mesh
    )
    for setup in setups.values():
        setup.check(weights=False)
    with own_workdir(
        workdir, config.to_dict(), ignore=PLAIN, writer=parallel.is_main()
    ):
        columns, result = run(setups)
        if parallel.is_main():
            write_atomic(workdir / "latents.csv", csv_text(written(columns)))
            write_atomic(workdir / "result.json", json_text(result))
            print(table_text(columns))
            for site, count in result["latents_in_top"].items():
                print(f"{site}: {count} of the top {len(columns['rank'])}")
            print(f"\nwrote to {workdir}: latents.csv, result.json")
    return result


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
