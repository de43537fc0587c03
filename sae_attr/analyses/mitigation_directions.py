"""The stage of a mitigation study that measures every layer: mean-difference direction,
mean and largest norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sae_attr.analyses.directions import mean_difference, side_sums
from sae_attr.analyses.layer_facts import LayerFacts, layer_facts
from sae_attr.analyses.mitigation_case import Mitigation
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
        setup = m.case.setup
        facts = layer_facts(setup, setup.params, sites, m.settings.layer_tokens)
        directions = _directions(m, facts.limits)
        arrays = {}
        for i, site in enumerate(sites):
            arrays[f"direction.{i}"] = directions[site]
            arrays[f"mean.{i}"] = facts.means[site]
        norms = [facts.limits.get(site, np.inf) for site in sites]
        arrays["limit_s"] = np.array(norms)
        return arrays, {"sites": [str(site) for site in sites]}

    fields = {
        "layer_tokens": m.settings.layer_tokens,
        "pair": m.result("pair").key,
        "norm_limits": m.result(norm_limits.NAME).key,
    }
    name = m.stage_name("directions")
    return Stage(name, run, fields, version=VERSION)


def _directions(m: Mitigation, limits: Mapping[Site, float]) -> dict[Site, np.ndarray]:
    """Returns site -> mean-difference direction of the pairs' completions."""
    setup, rows = m.case.setup, m.case.setup.encoded.rows
    directions: dict[Site, np.ndarray] = {}
    # The SAE's site by itself: it may have another width than the residual stream.
    for sites in (m.layers, (setup.site,)):
        sums = side_sums(
            setup.params,
            rows,
            setup.batched(rows),
            cfg=setup.cfg,
            sites=sites,
            limits=limits,
        )
        difference_sd = mean_difference(sums)
        directions |= dict(zip(sites, difference_sd, strict=True))
    return directions


@dataclass(frozen=True, eq=False)
class Layers(LayerFacts):
    """Holds what the stage `directions` measured, by site."""

    directions: Mapping[Site, np.ndarray]


def layers_of(m: Mitigation, result: Result) -> Layers:
    """Reads the result of the stage `directions`."""
    directions, means, limits = {}, {}, {}
    for i, site in enumerate((*m.layers, m.case.setup.site)):
        directions[site] = np.asarray(result.arrays[f"direction.{i}"])
        means[site] = np.asarray(result.arrays[f"mean.{i}"])
        limit = float(result.arrays["limit_s"][i])
        if np.isfinite(limit):
            limits[site] = limit
    return Layers(means, limits, directions)
