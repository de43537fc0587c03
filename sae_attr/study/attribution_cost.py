"""The cost of an attribution's stages before it is run, from counts of tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_attr.sae_check.measure import LOSS_TOKENS, TRIAL
from sae_attr.study.cost import StageCost
from sae_attr.study.setup import Setup
from sae_attr.study.stages import (
    ablation,
    aligned_activations,
    candidate_codes,
    firing,
    gradients,
    mean_activation,
    norm_limits,
    outliers,
    sae_check,
    scores,
)
from sae_attr.text.rows import TokenRow

_LOSSES = 4  # of the SAE check: plain, with the SAE, with the mean, with nothing
_VARIANTS = 15  # of the SAE that the check compares, about
_CODES = 4  # codes and products of all latents at each token of the pairs, about
_MOMENTS = 6  # products of the whole dictionary with a d × d matrix, about


@dataclass(frozen=True)
class RowCounts:
    """The completions that are attributed, in numbers.

    Args:
      rows: prompts with their completion.
      tokens: of all rows.
      scored: tokens of their completions.
    """

    rows: int
    tokens: int
    scored: int


def counted_rows(rows: Sequence[TokenRow]) -> RowCounts:
    """Counts rows that are there already."""
    tokens = sum(len(row.ids) for row in rows)
    prompts = sum(row.n_prompt for row in rows)
    return RowCounts(len(rows), tokens, tokens - prompts)


def attribution_costs(
    setup: Setup, rows: RowCounts, *, prefix: str = ""
) -> list[StageCost]:
    """Returns the costs of the stages that run the model or the whole dictionary; the
    others take seconds.

    Args:
      prefix: of the stages' names.
    """
    costs = [*_corpus_costs(setup), *_pair_costs(setup, rows)]
    named = []
    for cost in costs:
        named.append(StageCost(**{**vars(cost), "stage": prefix + cost.stage}))
    return named


def _corpus_costs(setup: Setup) -> list[StageCost]:
    s, layers = setup.settings, setup.cfg.n_layers
    to_site, coded = setup.site.layer + 1, _code_flops(setup)
    checked = s.sae_check_tokens
    losses = _LOSSES * min(LOSS_TOKENS, checked)
    variants = _VARIANTS * min(TRIAL, checked)
    positions = setup.firing_positions
    if positions < firing.LEAST:
        positions = 0
    median = 0 if setup.masks.outlier is None else norm_limits.TOKENS
    return [
        StageCost(
            sae_check.NAME,
            read=(checked + losses) * layers,
            heads=losses,
            flops=2 * coded * (checked + variants),
        ),
        StageCost(norm_limits.NAME, read=min(median, s.corpus_tokens) * to_site),
        StageCost(mean_activation.NAME, read=s.corpus_tokens * to_site),
        StageCost(firing.NAME, read=positions * to_site, flops=2 * coded * positions),
    ]


def _pair_costs(setup: Setup, rows: RowCounts) -> list[StageCost]:
    s, layers = setup.settings, setup.cfg.n_layers
    to_site, coded = setup.site.layer + 1, _code_flops(setup)
    above = layers - setup.site.layer
    passes = s.gradient_steps if s.gradient == "integrated" else 1
    second = 0 if setup.no_second_model else rows.tokens * to_site
    dense = rows.tokens * setup.sae_cfg.n_latents <= s.dense_limit
    coded_tokens = _CODES * rows.tokens if dense else 0
    moments = _MOMENTS * coded * setup.sae_cfg.d_out
    left_out = setup.firing_positions < firing.LEAST and s.firing_tokens
    return [
        StageCost(
            outliers.NAME,
            read=0 if setup.masks.outlier is None else rows.tokens * to_site,
        ),
        StageCost(
            gradients.NAME,
            read=passes * rows.tokens * (layers + above),
            heads=2 * passes * rows.scored,
        ),
        StageCost(aligned_activations.NAME, read=second),
        StageCost(scores.NAME, flops=coded * coded_tokens + moments),
        StageCost(
            candidate_codes.NAME, read=s.firing_tokens * to_site if left_out else 0
        ),
        _ablation_cost(setup, rows, above),
    ]


def _ablation_cost(setup: Setup, rows: RowCounts, above: int) -> StageCost:
    """Returns the cost of exact ablation: of the candidates and as many random latents
    on every row, and of single positions.
    """
    s = setup.settings
    if not (s.ablate and rows.rows):
        return StageCost(ablation.NAME)
    used = min(s.ablate_rows or rows.rows, rows.rows)
    on_rows = 2 * s.ablate * used + s.ablate_positions
    width, scored = rows.tokens / rows.rows, rows.scored / rows.rows
    below = (used + s.ablate_positions) * setup.site.layer
    return StageCost(
        ablation.NAME,
        read=width * (on_rows * above + below),
        heads=scored * on_rows,
    )


def _code_flops(setup: Setup) -> int:
    """Returns the operations of one token's product with the encoder or decoder."""
    return 2 * setup.sae_cfg.n_latents * setup.sae_cfg.d_in
