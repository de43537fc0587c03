"""What ordinary text says of every layer: mean activation, and the largest norm that
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.activations import norm_limits
from sae_attr.activations.corpus_pass import measure_corpus
from sae_attr.activations.statistics import mean_statistic
from sae_attr.hooks import Site
from sae_attr.lm.params import Params
from sae_attr.study.setup import Setup


@dataclass(frozen=True, eq=False)
class LayerFacts:
    """Holds facts of several sites on ordinary text.

    Args:
      means: site -> ā.
      limits: site -> largest norm that counts, of sites that have a limit.
    """

    means: Mapping[Site, np.ndarray]
    limits: Mapping[Site, float]


def residual_sites(n_layers: int) -> tuple[Site, ...]:
    """Returns the residual stream after every layer."""
    return tuple(Site(layer) for layer in range(n_layers))


def layer_facts(
    setup: Setup, params: Params, sites: Sequence[Site], tokens: int
) -> LayerFacts:
    """Measures a model on the first tokens of a setup's corpus.

    Args:
      params: of a model of the setup's shape.
    """
    sites = tuple(dict.fromkeys(sites))
    limits = norm_limits(
        params,
        setup.corpus.batches(tokens),
        setup.masks.outlier,
        cfg=setup.cfg,
        sites=sites,
        mesh=setup.mesh,
    )
    measured = measure_corpus(
        params,
        setup.corpus.batches(tokens),
        {str(site): mean_statistic(site) for site in sites},
        cfg=setup.cfg,
        mesh=setup.mesh,
        limits=limits,
    )
    return LayerFacts({site: measured[str(site)].mean_d for site in sites}, limits)
