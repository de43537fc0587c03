"""Δ-attribution: gradients at a site, scores of every latent, rankings with their uncertainty, exact ablation.

What a script needs is here; the stages of a whole run are in `stages`, and what is printed beside Δ in `candidates`.
"""

from sae_attr.activations import MeanActivation, mean_activation, site_acts
from sae_attr.attribution.ablation import Ablation, exact_ablation, row_ablation
from sae_attr.attribution.corpus import firing_rates, weighted_codes
from sae_attr.attribution.gradients import SiteGradients, act_and_grad
from sae_attr.attribution.ranking import Ranking, agreement, overlap, random_matched, rank
from sae_attr.attribution.scores import (
    Moment,
    attribute,
    best_direction,
    moment,
    quadratic_form,
    score_dictionary,
    score_moment,
    token_scores,
)
from sae_attr.attribution.settings import PRESETS, Preset, Settings
from sae_attr.attribution.statistics import ClusterStatistics, cluster_statistics, split_half_spearman
from sae_attr.attribution.table import (
    TokenTable,
    collect,
    merge,
    prompt_scores,
    table_from_arrays,
    table_moment,
    token_weights,
)

__all__ = [
    "PRESETS",
    "Ablation",
    "ClusterStatistics",
    "MeanActivation",
    "Moment",
    "Preset",
    "Ranking",
    "Settings",
    "SiteGradients",
    "TokenTable",
    "act_and_grad",
    "agreement",
    "attribute",
    "best_direction",
    "cluster_statistics",
    "collect",
    "exact_ablation",
    "firing_rates",
    "mean_activation",
    "merge",
    "moment",
    "overlap",
    "prompt_scores",
    "quadratic_form",
    "random_matched",
    "rank",
    "row_ablation",
    "score_dictionary",
    "score_moment",
    "site_acts",
    "split_half_spearman",
    "table_from_arrays",
    "table_moment",
    "token_scores",
    "token_weights",
    "weighted_codes",
]
