"""Δ-attribution: gradients at a site, scores of every latent, rankings with their
uncertainty, exact ablation. Pure method: no settings, no store, no files of a run.

Read in this order: `gradients`, `scores`, `token_table` (weights), `prompt_merge`
(Δ within prompts), `evidence`, `score_registry` (every score), `presets` (rankings).
"""

from sae_attr.activations import MeanActivation, mean_activation, site_acts
from sae_attr.attribution.ablation import Ablation, exact_ablation, row_ablation
from sae_attr.attribution.all_scores import DictionaryScores, score_everything
from sae_attr.attribution.decoder_pass import score_dictionary
from sae_attr.attribution.encoder_scores import (
    attribute_codes,
    encoder_prompt_scores,
    error_prompt_scores,
    error_scores,
)
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.gradients import SiteGradients, act_and_grad
from sae_attr.attribution.integrated import (
    LatentPaths,
    Path,
    integrated_gradients,
    integrated_latents,
)
from sae_attr.attribution.latent_statistics import (
    CodeStatistics,
    code_statistics,
    firing_rates,
    weighted_codes,
)
from sae_attr.attribution.presets import (
    PRESETS,
    Preset,
    baseline_rankings,
    decoder_rows,
    preset_ranking,
)
from sae_attr.attribution.prompt_merge import merge, prompt_scores
from sae_attr.attribution.ranking import (
    Ranking,
    agreement,
    overlap,
    random_matched,
    rank,
)
from sae_attr.attribution.score_registry import SCORES, Score
from sae_attr.attribution.scores import (
    Moment,
    attribute,
    best_direction,
    moment,
    quadratic_form,
    score_moment,
    token_scores,
)
from sae_attr.attribution.sites import (
    SiteLatent,
    SiteRanking,
    collect_sites,
    rank_sites,
    score_sites,
)
from sae_attr.attribution.statistics import (
    ClusterStatistics,
    cluster_statistics,
    split_half_spearman,
)
from sae_attr.attribution.token_table import (
    TokenTable,
    collect,
    table_from_arrays,
    table_moment,
    token_weights,
)

__all__ = [
    "PRESETS",
    "SCORES",
    "Ablation",
    "ClusterStatistics",
    "CodeStatistics",
    "DictionaryScores",
    "Evidence",
    "LatentPaths",
    "MeanActivation",
    "Moment",
    "Path",
    "Preset",
    "Ranking",
    "Score",
    "SiteGradients",
    "SiteLatent",
    "SiteRanking",
    "Skipped",
    "TokenTable",
    "act_and_grad",
    "agreement",
    "attribute",
    "attribute_codes",
    "baseline_rankings",
    "best_direction",
    "cluster_statistics",
    "code_statistics",
    "collect",
    "collect_sites",
    "decoder_rows",
    "encoder_prompt_scores",
    "error_prompt_scores",
    "error_scores",
    "exact_ablation",
    "firing_rates",
    "integrated_gradients",
    "integrated_latents",
    "mean_activation",
    "merge",
    "moment",
    "overlap",
    "preset_ranking",
    "prompt_scores",
    "quadratic_form",
    "random_matched",
    "rank",
    "rank_sites",
    "row_ablation",
    "score_dictionary",
    "score_everything",
    "score_moment",
    "score_sites",
    "site_acts",
    "split_half_spearman",
    "table_from_arrays",
    "table_moment",
    "token_scores",
    "token_weights",
    "weighted_codes",
]
