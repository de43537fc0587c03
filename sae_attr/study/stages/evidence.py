"""The evidence of an attribution, from the results of the stages that measured it."""

from __future__ import annotations

from sae_attr.activations import MeanActivation
from sae_attr.attribution.evidence import Evidence
from sae_attr.attribution.token_table import TokenTable
from sae_attr.study.setup import Setup
from sae_attr.study.stages import (
    aligned_activations,
    firing,
    gradients,
    mean_activation,
    norm_limits,
    outliers,
)
from sae_attr.study.stages.context import Inputs

# What `measured_tokens` reads, with what that needs.
MEASURED = (
    norm_limits.NAME,
    outliers.NAME,
    mean_activation.NAME,
    gradients.NAME,
)
NEEDS = (
    outliers.NAME,
    gradients.NAME,
    mean_activation.NAME,
    firing.NAME,
    aligned_activations.NAME,
)


def measured_tokens(setup: Setup, inputs: Inputs) -> tuple[TokenTable, MeanActivation]:
    """Returns the tokens of all completions, and ā."""
    rows = outliers.masked_rows(setup, inputs[outliers.NAME])
    table = gradients.table_of(rows, inputs[gradients.NAME])
    return table, mean_activation.mean_of(inputs[mean_activation.NAME])


def evidence_of(setup: Setup, inputs: Inputs) -> Evidence:
    """Makes the evidence of a setup from the results of the stages `NEEDS`."""
    table, mean = measured_tokens(setup, inputs)
    return Evidence(
        table=table,
        mean=mean,
        codes=firing.statistics_of(inputs[firing.NAME]),
        decoder=setup.decoder,
        sae_cfg=setup.sae_cfg,
        load_sae=setup.sae_of,
        exclude=setup.exclude,
        aligned_kd=inputs[aligned_activations.NAME].arrays.get("acts_kd"),
        no_second_model=setup.no_second_model,
        dense_limit=setup.settings.dense_limit,
        mesh=setup.mesh,
        progress=setup.progress,
    )
