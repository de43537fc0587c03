"""Numbers, names and rankings of the latents of further dictionaries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_attr.attribution.plane import z_scores
from sae_attr.attribution.presets import decoder_rows
from sae_attr.files.row_source import RowSource
from sae_attr.sae.crosscoder_export import save_crosscoder
from sae_attr.sae.export import save_saelens
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.study.dictionary_ranking import (
    encoder_inputs,
    pair_codes,
    score_by_codes,
)
from sae_attr.study.dictionary_settings import dictionaries_from
from sae_attr.study.further_dictionaries import (
    FurtherDictionary,
    StudyLatents,
    further_dictionaries,
)
from sae_attr.study.latent_scores import LatentScores

D, N = 6, 4
SITE = "blocks.1.hook_resid_post"


def written(folder: Path, streams: int, site: str | None = SITE) -> Path:
    """An SAE or crosscoder that reads coordinate i by latent i; row i of its last stream
    is i + 1 long, of the first 1.
    """
    enc_dn = np.tile(np.eye(D, N), (streams, 1))
    lengths_sn = np.ones((streams, N))
    lengths_sn[-1] = 1 + np.arange(N)
    dec_nm = np.concatenate(
        [lengths[:, None] * np.eye(N, D) for lengths in lengths_sn], 1
    )
    cfg = SAEConfig(D, D, N, streams=streams, site=site)
    parts = [enc_dn, np.zeros(N), dec_nm, np.zeros(streams * D)]
    arrays: Any = [np.asarray(part, np.float32) for part in parts]
    save = save_saelens if streams == 1 else save_crosscoder
    save(folder, SAE(*arrays, cfg=cfg))
    return folder


def opened(**fields: dict[str, Any]) -> tuple[FurtherDictionary, ...]:
    settings = dictionaries_from(fields, where="config.cases.a.dictionaries")
    return further_dictionaries(settings, "a")


def test_numbers_follow_those_of_the_sae_and_readers_see_names(tmp_path: Path) -> None:
    own_nd = np.random.default_rng(0).standard_normal((10, D)).astype(np.float32)
    setup: Any = SimpleNamespace(decoder=RowSource(own_nd))
    path = str(written(tmp_path / "cross", 2))
    further = opened(
        first={"sae": path}, second={"sae": path, "sae_options": {"model": 0}}
    )
    latents = StudyLatents(setup, further)
    assert latents.numbers("second", np.array([0, 3])).tolist() == [14, 17]
    labels = [9, "first:0", "first:3", "second:0", "second:3"]
    numbers = np.array([9, 10, 13, 14, 17])
    assert latents.labels(numbers.tolist()) == labels
    assert latents.of_sae(numbers).tolist() == [9]
    rows_kd = np.asarray(decoder_rows(latents, numbers))
    np.testing.assert_array_equal(rows_kd[:1], decoder_rows(setup.decoder, numbers[:1]))
    np.testing.assert_array_equal(rows_kd[1:], np.eye(D)[[0, 3, 0, 3]])
    # Lengths tell the models apart: the second one's rows by default.
    assert np.linalg.norm(latents.rows(13, 14)) == 4
    assert np.linalg.norm(latents.rows(17, 18)) == 1
    assert StudyLatents(setup).label(9) == 9


@pytest.mark.parametrize("stream", [0, 1])
def test_a_crosscoder_ranks_by_norm_those_that_fire_on_either_model(
    tmp_path: Path, stream: int
) -> None:
    options = {"model": stream}
    (cross,) = opened(
        cross={"sae": str(written(tmp_path / "cross", 2)), "sae_options": options}
    )
    assert (cross.by, cross.reads) == ("delta_norm", "both models")
    acts_kd = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, -1, 0, 0]], np.float32)
    aligned_kd = np.array([[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], np.float32)
    inputs_kd = encoder_inputs(cross, acts_kd, aligned_kd)
    assert inputs_kd is not None
    first = inputs_kd[:, :D]
    np.testing.assert_array_equal(first, aligned_kd if stream else acts_kd)
    codes = pair_codes(cross, cross.sae(), inputs_kd, np.array([0.75, 0.25]))
    np.testing.assert_allclose(codes.mean_n, [0.75, 0.25, 0.75, 0])
    np.testing.assert_allclose(codes.rate_n, [0.75, 0.25, 0.75, 0])
    score_n, facts = score_by_codes(cross, cross.sae(), codes)
    longer_n = 1 - 0.5 / (1 + np.arange(N))
    norm_n = longer_n if stream else 1 - longer_n
    np.testing.assert_allclose(score_n, [*norm_n[:3], np.nan])
    assert facts == {"silent": 1}
    # Without a second model nobody knows which fire.
    assert encoder_inputs(cross, acts_kd, None) is None
    np.testing.assert_allclose(score_by_codes(cross, cross.sae(), None)[0], norm_n)


def test_an_sae_of_the_difference_ranks_by_its_mean_code(tmp_path: Path) -> None:
    path = str(written(tmp_path / "diff", 1, site=None))
    silent, diff = opened(
        silent={"sae": path},
        diff={"sae": path, "by": "mean_code", "reads": "difference"},
    )
    assert (silent.by, silent.reads) == ("delta_attribution", "not known")
    assert encoder_inputs(silent, np.ones((2, D)), np.ones((2, D))) is None
    acts_kd = np.array([[5, 1, 0, 2, 0, 0]], np.float32)
    aligned_kd = np.array([[5, 0, 1, 0, 0, 0]], np.float32)
    inputs_kd = encoder_inputs(diff, acts_kd, aligned_kd)
    assert inputs_kd is not None
    sae = diff.sae()
    score_n, facts = score_by_codes(
        diff, sae, pair_codes(diff, sae, inputs_kd, np.ones(1))
    )
    np.testing.assert_allclose(score_n, [np.nan, 1, np.nan, 2])
    assert facts == {"silent": 2}
    with pytest.raises(ValueError, match="what it encodes is not known on the pairs"):
        score_by_codes(diff, sae, None)


def test_scores_of_both_dictionaries_by_number() -> None:
    of_sae = {"both_all": np.arange(3, dtype=np.float32), "firing_rate": np.ones(3)}
    of_further = {
        "latents_k": np.array([7, 4]),
        "score.both_all": np.array([0.5, -1], np.float32),
    }
    scores = LatentScores(of_sae, of_further)
    both = scores.of("both_all", np.array([2, 4, 7, 9]))
    np.testing.assert_array_equal(both, [2, -1, 0.5, np.nan])
    rates = scores.of("firing_rate", np.array([0, 4]))
    np.testing.assert_array_equal(rates, [1, np.nan])
    alone = LatentScores(of_sae).of("both_all", np.array([2, 0]))
    np.testing.assert_array_equal(alone, of_sae["both_all"][[2, 0]])


def test_coordinates_of_other_latents_are_in_deviations_over_the_sae() -> None:
    own_n = np.array([1.0, 2.0, 3.0, np.nan])
    other_k = np.array([3.0, np.nan, 12.0])
    spread = np.sqrt(2 / 3)
    np.testing.assert_allclose(
        z_scores(other_k, own_n), [1 / spread, np.nan, 10 / spread]
    )
    np.testing.assert_array_equal(z_scores(own_n, own_n), z_scores(own_n))
