"""The plane of cause and lever: coordinates and corners."""

from __future__ import annotations

import numpy as np
import pytest

from sae_attr.attribution.plane import CORNERS, PlaneSettings, corner, z_scores

NAN = float("nan")


def test_coordinates_are_standard_deviations_over_what_is_known() -> None:
    z_n = z_scores(np.array([1.0, 3.0, NAN, 5.0]))
    spread = np.std([1.0, 3.0, 5.0])
    np.testing.assert_allclose(z_n[[0, 1, 3]], np.array([-2, 0, 2]) / spread)
    assert np.isnan(z_n[2])
    assert z_scores(np.array([2.0, 2.0])).tolist() == [0, 0]
    assert np.isnan(z_scores(np.array([NAN, NAN]))).all()


def test_every_corner_is_where_its_name_says() -> None:
    settings = PlaneSettings(cause=1.0, lever=2.0)
    places = ((1.0, 2.0), (1.0, 1.9), (0.9, 2.0), (0.9, 1.9))
    assert tuple(corner(*place, settings) for place in places) == CORNERS
    # A latent that is far below the mean neither acted nor steers.
    assert corner(-9.0, -9.0, settings) == "neither"
    assert corner(NAN, 3.0, settings) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, float("inf")])
def test_a_threshold_that_half_a_dictionary_passes_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"plane\.lever is .*standard deviations"):
        PlaneSettings(lever=bad)
