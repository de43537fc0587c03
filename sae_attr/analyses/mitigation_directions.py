"""The stage of a mitigation study that measures every layer: mean-difference direction,
mean and largest norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.activations import norm_limits as largest_norms
from sae_attr.activations.corpus_pass import measure_corpus
from sae_attr.activations.statistics import mean_statistic
from sae_attr.analyses.mitigation import (
    completion_means,
    mean_difference,
)
from sae_attr.analyses.mitigation_case import Mitigation, stage_name
from sae_attr.hooks import Site
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.stages import norm_limits

VERSION = 1


def direction_stage(m: Mitigation) -> Stage:
    """Returns the stage of what is known of every layer: mean-difference direction,
    mean and largest norm; arrays `[sites]` first, the layers and then the SAE's site.
    """

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        sites = (*m.layers, m.case.setup.site)
        limits = _largest_norms(m, sites)
        directions, means = _directions(m, limits), _means(m, sites, limits)
        arrays = {}
        for i, site in enumerate(sites):
            arrays[f"direction.{i}"] = directions[site]
            arrays[f"mean.{i}"] = means[site]
        norms = [limits.get(site, np.inf) for site in sites]
        arrays["limit_s"] = np.array(norms)
        return arrays, {"sites": [str(site) for site in sites]}

    fields = {
        "layer_tokens": m.settings.layer_tokens,
        "pair": m.result("pair").key,
        "norm_limits": m.result(norm_limits.NAME).key,
    }
    name = stage_name(m.case, "directions")
    return Stage(name, run, fields, version=VERSION)


def _largest_norms(m: Mitigation, sites: Sequence[Site]) -> dict[Site, float]:
    setup = m.case.setup
    return largest_norms(
        setup.params,
        setup.corpus.batches(m.settings.layer_tokens),
        setup.masks.outlier,
        cfg=setup.cfg,
        sites=tuple(dict.fromkeys(sites)),
        mesh=setup.mesh,
    )


def _directions(m: Mitigation, limits: Mapping[Site, float]) -> dict[Site, np.ndarray]:
    """Returns site -> mean-difference direction of the pairs' completions."""
    setup, rows = m.case.setup, m.case.setup.encoded.rows
    side_r = np.array([row.side for row in rows])
    prompt_r = np.array([row.pair for row in rows])
    directions: dict[Site, np.ndarray] = {}
    # The SAE's site by itself: it may have another width than the residual stream.
    for sites in (m.layers, (setup.site,)):
        means_srd = completion_means(
            setup.params,
            setup.batched(rows),
            cfg=setup.cfg,
            sites=sites,
            limits=limits,
        )
        difference_sd = mean_difference(means_srd, side_r, prompt_r)
        directions |= dict(zip(sites, difference_sd, strict=True))
    return directions


def _means(
    m: Mitigation, sites: Sequence[Site], limits: Mapping[Site, float]
) -> dict[Site, np.ndarray]:
    """Returns site -> mean activation over ordinary text."""
    setup = m.case.setup
    measured = measure_corpus(
        setup.params,
        setup.corpus.batches(m.settings.layer_tokens),
        {str(site): mean_statistic(site) for site in sites},
        cfg=setup.cfg,
        mesh=setup.mesh,
        limits=limits,
    )
    return {site: measured[str(site)].mean_d for site in sites}


@dataclass(frozen=True)
class Layers:
    """What the stage `directions` found, by site."""

    directions: Mapping[Site, np.ndarray]
    means: Mapping[Site, np.ndarray]
    limits: Mapping[Site, float]


def layers_of(m: Mitigation, result: Result) -> Layers:
    """Reads the result of the stage `directions`."""
    directions, means, limits = {}, {}, {}
    for i, site in enumerate((*m.layers, m.case.setup.site)):
        directions[site] = np.asarray(result.arrays[f"direction.{i}"])
        means[site] = np.asarray(result.arrays[f"mean.{i}"])
        limit = float(result.arrays["limit_s"][i])
        if np.isfinite(limit):
            limits[site] = limit
    return Layers(directions, means, limits)
