"""The cost of an attribution's stages before it is run, from counts of tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_attr.sae_check.measure import LOSS_TOKENS, TRIAL
from sae_attr.study.attribution_settings import Settings
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


@dataclass(frozen=True)
class AttributionShape:
    """Holds what decides the cost of an attribution beside its rows.

    Args:
      settings: of the attribution.
      layers: of the model.
      site_layer: of the studied site.
      n_latents, d_in, d_out: of the SAE.
      firing_positions: of the corpus that are encoded for firing rates.
      second_model: another model runs on the rows too.
      outliers: tokens of large norm are looked for.
    """

    settings: Settings
    layers: int
    site_layer: int
    n_latents: int
    d_in: int
    d_out: int
    firing_positions: int
    second_model: bool
    outliers: bool

    @property
    def to_site(self) -> int:
        """Layers up to the site."""
        return self.site_layer + 1

    @property
    def above(self) -> int:
        """Layers that a backward pass to the site runs through."""
        return self.layers - self.site_layer

    @property
    def code_flops(self) -> int:
        """Operations of one token's product with the encoder or decoder."""
        return 2 * self.n_latents * self.d_in


def shape_of(setup: Setup) -> AttributionShape:
    """Returns the shape of an attribution whose files are there."""
    sae = setup.sae_cfg
    return AttributionShape(
        settings=setup.settings,
        layers=setup.cfg.n_layers,
        site_layer=setup.site.layer,
        n_latents=sae.n_latents,
        d_in=sae.d_in,
        d_out=sae.d_out,
        firing_positions=setup.firing_positions,
        second_model=not setup.no_second_model,
        outliers=setup.masks.outlier is not None,
    )


def attribution_costs(
    shape: AttributionShape, rows: RowCounts, *, prefix: str = ""
) -> list[StageCost]:
    """Returns the costs of the stages that run the model or the whole dictionary; the
    others take seconds.

    Args:
      prefix: of the stages' names.
    """
    costs = [*_corpus_costs(shape), *_pair_costs(shape, rows)]
    return [replace(cost, stage=prefix + cost.stage) for cost in costs]


def _corpus_costs(shape: AttributionShape) -> list[StageCost]:
    s, to_site = shape.settings, shape.to_site
    checked = s.sae_check_tokens
    losses = _LOSSES * min(LOSS_TOKENS, checked)
    variants = _VARIANTS * min(TRIAL, checked)
    positions = shape.firing_positions
    if positions < firing.LEAST:
        positions = 0
    median = norm_limits.TOKENS if shape.outliers else 0
    return [
        StageCost(
            sae_check.NAME,
            read=(checked + losses) * shape.layers,
            heads=losses,
            flops=2 * shape.code_flops * (checked + variants),
        ),
        StageCost(norm_limits.NAME, read=min(median, s.corpus_tokens) * to_site),
        StageCost(mean_activation.NAME, read=s.corpus_tokens * to_site),
        StageCost(
            firing.NAME,
            read=positions * to_site,
            flops=2 * shape.code_flops * positions,
        ),
    ]


def _pair_costs(shape: AttributionShape, rows: RowCounts) -> list[StageCost]:
    s, to_site = shape.settings, shape.to_site
    passes = s.gradient_steps if s.gradient == "integrated" else 1
    dense = rows.tokens * shape.n_latents <= s.dense_limit
    coded_tokens = _CODES * rows.tokens if dense else 0
    moments = _MOMENTS * shape.code_flops * shape.d_out
    left_out = shape.firing_positions < firing.LEAST
    again = s.firing_tokens * to_site if left_out else 0
    second = rows.tokens * to_site if shape.second_model else 0
    return [
        StageCost(outliers.NAME, read=rows.tokens * to_site if shape.outliers else 0),
        StageCost(
            gradients.NAME,
            read=passes * rows.tokens * (shape.layers + shape.above),
            heads=2 * passes * rows.scored,
        ),
        StageCost(aligned_activations.NAME, read=second),
        StageCost(scores.NAME, flops=shape.code_flops * coded_tokens + moments),
        StageCost(candidate_codes.NAME, read=again),
        _ablation_cost(shape, rows),
    ]


def _ablation_cost(shape: AttributionShape, rows: RowCounts) -> StageCost:
    """Returns the cost of exact ablation: of the candidates and as many random latents
    on every row, and of single positions.
    """
    s = shape.settings
    if not (s.ablate and rows.rows):
        return StageCost(ablation.NAME)
    used = min(s.ablate_rows or rows.rows, rows.rows)
    on_rows = 2 * s.ablate * used + s.ablate_positions
    width, scored = rows.tokens / rows.rows, rows.scored / rows.rows
    below = (used + s.ablate_positions) * shape.site_layer
    return StageCost(
        ablation.NAME,
        read=width * (on_rows * shape.above + below),
        heads=scored * on_rows,
    )
