"""Activations of a language model on ordinary text: collected, masked, shuffled,
cached, averaged.
"""

from sae_attr.activations.block_sources import live_blocks
from sae_attr.activations.blocks import (
    ActivationSource,
    CountedTokens,
    collector,
    describe,
    open_source,
)
from sae_attr.activations.cache import cached_blocks, read_index, write_cache
from sae_attr.activations.corpus_pass import CorpusBatch, Statistic, measure_corpus
from sae_attr.activations.shuffle import (
    ActivationBlock,
    BatchFunction,
    BlockStream,
    batch_function,
    inputs,
    permute,
)
from sae_attr.activations.statistics import (
    MeanActivation,
    mean_activation,
    mean_of,
    norm_limits,
    rows_beyond,
    site_acts,
)
from sae_attr.activations.two_models import DIFFERENCE, SIDE_BY_SIDE, joined_collector
from sae_attr.text.masks import Masks

__all__ = [
    "DIFFERENCE",
    "SIDE_BY_SIDE",
    "ActivationBlock",
    "ActivationSource",
    "BatchFunction",
    "BlockStream",
    "CorpusBatch",
    "CountedTokens",
    "Masks",
    "MeanActivation",
    "Statistic",
    "batch_function",
    "cached_blocks",
    "collector",
    "describe",
    "inputs",
    "joined_collector",
    "live_blocks",
    "mean_activation",
    "mean_of",
    "measure_corpus",
    "norm_limits",
    "open_source",
    "permute",
    "read_index",
    "rows_beyond",
    "site_acts",
    "write_cache",
]
