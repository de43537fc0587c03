"""The pure parts of the benchmarks of SAEs: matching L0, and the table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sae_published
from benchmarks._sae_match import TRIES, Recipe, matched
from sae_attr.sae.model import SAE, SAEConfig

N = 8
ACTS = np.random.default_rng(0).uniform(size=(4000, N)).astype(np.float32)


def gated_at(threshold: float) -> SAE:
    """An SAE of the coordinates, which are active above a threshold: N (1 - threshold)
    of them on average.
    """
    eye, zeros = np.eye(N, dtype=np.float32), np.zeros(N, np.float32)
    cfg = SAEConfig(d_in=N, d_out=N, n_latents=N, gate="jumprelu")
    return SAE(eye, zeros, eye, zeros, np.full(N, threshold, np.float32), cfg=cfg)


def test_the_knob_is_searched_until_l0_is_the_target() -> None:
    tried = []

    def run(knob: float) -> SAE:
        tried.append(knob)
        return gated_at(1 - 0.05 / knob)  # L0 is 0.4 / knob

    recipe = Recipe("", {}, "sparsity", 0.1)
    _, knob, good = matched(run, "jumprelu", recipe, ACTS, 2.0, recipe.first)
    assert good
    assert knob == pytest.approx(0.2, rel=0.03)
    assert len(tried) <= TRIES
    # Too few tries, and a knob without effect, are no match.
    assert not matched(run, "jumprelu", recipe, ACTS, 2.0, 0.1, tries=1)[2]
    assert not matched(lambda _: gated_at(0.2), "jumprelu", recipe, ACTS, 2.0, 0.2)[2]


def test_one_threshold_is_set_where_k_is_the_knob() -> None:
    sae, _, good = matched(
        lambda _: gated_at(0.9), "matryoshka", Recipe("", {}), ACTS, 3.0, 0.0
    )
    assert good
    assert sae.threshold_n is not None
    assert float(sae.threshold_n[0]) == pytest.approx(1 - 3 / N, abs=0.01)


def test_the_table_has_means_over_seeds_and_says_where_l0_was_missed() -> None:
    first, second = sae_published.arms(16)[:2]
    row = {
        "ev": 0.9,
        "ce": 0.8,
        "l0": 16.0,
        "dead": 0.25,
        "cosine": 0.5,
        "matched": True,
    }
    other = row | {"ev": 0.92}
    done = [(first, [row, other]), (second, [row | {"matched": False}])]
    *_, ours, published = sae_published.table(done)
    assert ours.startswith(
        "| jumprelu | ours | 0.9100 ± 0.0141 | 0.8000 ± 0.0000 | 16.0 |"
    )
    assert published.startswith(
        "| jumprelu | published | 0.9000 | 0.8000 | 16.0 (1 of 1 missed) |"
    )


def test_arms_have_files_of_their_own() -> None:
    stems = [arm.stem for arm in sae_published.arms(16)]
    assert len(set(stems)) == len(stems) == 13
