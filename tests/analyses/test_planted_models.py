"""Crosscoders trained on two models whose features are planted."""

import numpy as np
import pytest

from sae_attr.analyses.latent_scaling import SpecificitySettings
from sae_attr.analyses.planted_models import (
    PlantedSettings,
    matched_features,
    planted_models,
    planted_rows,
)

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.slow
def test_batchtopk_recovers_what_is_the_fine_tunes_own_and_l1_takes_baits():
    batch_topk, l1 = planted_rows(PlantedSettings(), SpecificitySettings(), 0)
    for row in (batch_topk, l1):
        assert row["nu_precision"] >= 0.8
        assert row["nu_recall"] >= 0.8
        assert row["nu_baits"] == 0
    assert batch_topk["norm_precision"] >= 0.8
    assert l1["norm_baits"] > batch_topk["norm_baits"]


def test_planted_features_are_where_their_kind_says():
    settings = PlantedSettings(tokens=64, rate=0.3)
    models = planted_models(settings, 1)
    kinds = np.array(models.kinds)
    lengths_mn = np.linalg.norm(models.rows_mnd, axis=-1)
    for kind, lengths in {"ft_only": (0, 1), "shrinkage": (0.25, 1)}.items():
        np.testing.assert_allclose(lengths_mn[:, kinds == kind].T, [lengths] * 6)
    assert models.batch(0).shape == (64, 2, 32)
    np.testing.assert_array_equal(models.batch(3), models.batch(3))
    rows_nd = np.stack([3 * models.rows_mnd[1, 0], -models.rows_mnd[1, 1]])
    assert matched_features(rows_nd, models.rows_mnd[1], 0.9).tolist() == [0, -1]
