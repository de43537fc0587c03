"""Activations of two models joined token by token, and pairs of models that are not
comparable.
"""

from dataclasses import replace

import numpy as np
import pytest

from sae_attr.activations import DIFFERENCE, SIDE_BY_SIDE, joined_collector
from sae_attr.activations.blocks import CountedTokens
from sae_attr.hooks import Site
from sae_attr.study.two_model_data import check_widths, join_of
from tests.attribution._tiny import llama

SITE = Site(1)


def tokens(places: list[int], scale: float) -> CountedTokens:
    """Token p at row p // 3, with activations p · scale."""
    ids_k2 = np.stack([np.array(places) // 3, np.array(places) % 3], axis=1)
    acts_kd = scale * np.array(places, np.float32)[:, None] * np.ones(2, np.float32)
    counts = {"kept": len(places), "norm_outlier": 0}
    return CountedTokens({SITE: acts_kd}, ids_k2.astype(np.int64), counts)


def test_only_tokens_that_count_in_both_models_are_joined():
    base = lambda index: tokens([0, 2, 3, 5, 7], 1.0)
    tuned = lambda index: tokens([0, 1, 2, 4, 5, 7], 10.0)
    both = joined_collector(base, tuned, SIDE_BY_SIDE)([0])
    assert both.ids_k2.tolist() == [[0, 0], [0, 2], [1, 2], [2, 1]]
    assert both.acts[SITE].tolist() == [[p, p, 10 * p, 10 * p] for p in (0, 2, 5, 7)]
    assert both.counts == {"kept": 4, "norm_outlier": 2}
    difference = joined_collector(base, tuned, DIFFERENCE)([0])
    assert difference.acts[SITE].tolist() == [[9 * p] * 2 for p in (0, 2, 5, 7)]


def test_models_that_are_not_comparable_are_refused():
    cfg = llama()
    with pytest.raises(ValueError, match=r"d_model=.*its own fine-tune"):
        check_widths(replace(cfg, d_model=2 * cfg.d_model), cfg)
    with pytest.raises(ValueError, match="lm_base is unset"):
        join_of("crosscoder", None)
    assert join_of("batch_topk", "base") == DIFFERENCE
    assert join_of("crosscoder_l1", "base") == SIDE_BY_SIDE
    assert join_of("relu", None) == ""
