"""Dense latents of a synthetic SAE with one of each class built in, beside two hundred
sparse ones; and the passes that measure them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_attr.activations import CorpusBatch, measure_corpus
from sae_attr.analyses.dense_classes import (
    antipodality,
    class_aucs,
    component_cosines,
    first_class,
    first_component,
    latent_classes,
    letter_shares,
    null_energy,
    position_correlations,
)
from sae_attr.analyses.dense_settings import CLASSES, DenseSettings, RetrainingSettings
from sae_attr.analyses.dense_statistics import (
    covariance_statistic,
    distances_since,
    places_statistic,
    read_words,
    vocabulary_of,
    word_classes,
)
from sae_attr.attribution.latent_statistics import codes_statistic
from sae_attr.hooks import Site
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import forward
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig, encode
from tests.attribution._tiny import llama, random_params

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, SPARSE, TOKENS, NULL = 48, 200, 3000, 2
# The planted latents; the principal component has a pair.
PLANTED = ("position", "null_space", "alphabet", "principal", "principal", "word")
SETTINGS = DenseSettings(null_directions=NULL, letter_tokens=20)


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def planted() -> dict[str, Any]:
    """An SAE's rows, activations of a sample, and a vocabulary, with each class in one
    latent (`PLANTED`, in front of the sparse ones).
    """
    rng = np.random.default_rng(3)
    words = [f"{'abcdefghijklmnop'[i % 16]}{i}" for i in range(400)]
    words += [f"q{i}" for i in range(40)]
    table_vd = rng.standard_normal((len(words), WIDTH))
    q_d = unit(rng.standard_normal(WIDTH))
    table_vd[400:] += 6 * q_d
    null_dn = np.linalg.qr(rng.standard_normal((WIDTH, NULL)))[0]
    table_vd -= 0.99 * (table_vd @ null_dn) @ null_dn.T
    dec_nm = unit(rng.standard_normal((len(PLANTED) + SPARSE, WIDTH)))
    dec_nm[1] = null_dn @ [0.6, 0.8]
    dec_nm[2] = unit(table_vd[400:].mean(0))
    component_d = unit(rng.standard_normal(WIDTH))
    dec_nm[3], dec_nm[4] = component_d, -component_d
    enc_nd = dec_nm + 0.01 * rng.standard_normal(dec_nm.shape)
    distance_x = np.arange(TOKENS) % 50
    class_x = rng.integers(0, 3, TOKENS) - 1  # −1: of no class
    codes_xk = np.maximum(rng.standard_normal((TOKENS, len(dec_nm))) - 2, 0)
    codes_xk[:, :6] = np.abs(rng.standard_normal((TOKENS, 6)))
    codes_xk[:, 0] += 0.1 * distance_x
    codes_xk[:, 5] += 3 * (class_x == 1)
    x_xd = rng.standard_normal((TOKENS, WIDTH))
    x_xd += 4 * rng.standard_normal((TOKENS, 1)) * component_d
    return {
        "words": words,
        "table_vd": table_vd,
        "dec_nm": dec_nm,
        "enc_nd": enc_nd,
        "codes_xk": codes_xk,
        "distances": {"sentence": distance_x, "context": np.zeros(TOKENS)},
        "class_x": class_x,
        "covariance_dd": np.cov(x_xd.T),
    }


def test_each_planted_latent_is_of_its_class_and_no_sparse_one_is_of_any() -> None:
    p = planted()
    component_d, share = first_component(p["covariance_dd"])
    assert 0.1 < share < 0.5
    by_start = position_correlations(p["codes_xk"], p["distances"])
    assert np.isnan(by_start["context"]).all()  # the same on all tokens
    ids_kc, _ = nearest_tokens(p["dec_nm"], p["table_vd"], count=20)
    share_k, letters = letter_shares(np.asarray(ids_kc), p["words"])
    aucs = class_aucs(p["codes_xk"], p["class_x"], ("noun", "verb"))
    np.testing.assert_allclose(aucs["noun"], 1 - aucs["verb"], atol=1e-12)
    measures = {
        "position": np.abs(by_start["sentence"]),
        "null_space": null_energy(p["dec_nm"], p["table_vd"], NULL),
        "alphabet": share_k,
        "principal": np.abs(component_cosines(p["dec_nm"], component_d)),
        "word": aucs["verb"],
    }
    classes = list(map(first_class, latent_classes(measures, SETTINGS)))
    assert tuple(classes[: len(PLANTED)]) == PLANTED
    assert set(classes[len(PLANTED) :]) == {"none"}
    assert letters[2] == "q"
    rate_k = (p["codes_xk"] > 0).mean(0)
    dense_k = np.flatnonzero(rate_k > SETTINGS.dense)
    np.testing.assert_array_equal(dense_k, np.arange(len(PLANTED)))


def test_a_pair_is_the_antipode_of_each_other_whatever_the_chunk() -> None:
    p = planted()
    latents = np.arange(len(p["dec_nm"]))
    whole = antipodality(p["enc_nd"], p["dec_nm"], latents)
    e_nd, d_nm = unit(p["enc_nd"]), unit(p["dec_nm"])
    product = (e_nd @ e_nd.T) * (d_nm @ d_nm.T)
    np.fill_diagonal(product, -np.inf)
    np.testing.assert_array_equal(whole.partner_k, product.argmax(1))
    np.testing.assert_allclose(whole.score_k, product.max(1), atol=1e-6)
    pairs = np.flatnonzero((whole.score_k > 0.9) & (whole.cosine_k < 0))
    np.testing.assert_array_equal(pairs, [3, 4])
    some = np.array([4, 100, 3])
    chunked = antipodality(p["enc_nd"], p["dec_nm"], some, chunk=7)
    np.testing.assert_array_equal(chunked.partner_k, whole.partner_k[some])
    np.testing.assert_allclose(chunked.cosine_k, whole.cosine_k[some], atol=1e-6)
    with pytest.raises(ValueError, match="encoder has 5 latents and the decoder 206"):
        antipodality(p["enc_nd"][:5], p["dec_nm"], some)


def test_words_and_places_of_tokens() -> None:
    tokens = ["<s>", "The", " river", " runs", ".", "\n", "ning", ' end."', " run", "x"]
    words = {"river": "noun", "run": "verb", "runs": "verb", "ning": "noun"}
    vocabulary = vocabulary_of(tokens, words)
    ends = [tokens[i] for i in np.flatnonzero(vocabulary.ends_sentence_v)]
    assert ends == [".", "\n", ' end."']
    assert vocabulary.classes == ("noun", "verb")
    tokens_bt = np.array([[0, 1, 2, 8, 6, 4, 2, 3], [2, 5, 1, 8, 7, 2, 2, 8]])
    # " run" before "ning" is a part of a word, and "ning" begins none.
    expected = [[-1, -1, 0, -1, -1, -1, 0, 1], [0, -1, -1, 1, -1, 0, 0, 1]]
    np.testing.assert_array_equal(word_classes(tokens_bt, vocabulary), expected)
    since = distances_since(vocabulary.ends_sentence_v[tokens_bt])
    expected = [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 0, 1, 2, 0, 1, 2]]
    np.testing.assert_array_equal(since, expected)


def test_one_pass_gives_the_covariance_the_activations_and_their_places() -> None:
    cfg, site = llama(), Site(1)
    params = random_params(cfg)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    d, n = cfg.d_model, 12
    sae_cfg = SAEConfig(d, d, n, gate="topk", k=4)
    sae = SAE(draw(d, n), draw(n), draw(n, d), draw(d), cfg=sae_cfg)
    tokens_bt = rng.integers(3, cfg.vocab, (4, 9), np.int32)
    counted_bt = rng.random(tokens_bt.shape) < 0.7
    valid_bt = np.ones(tokens_bt.shape, bool)
    batch = CorpusBatch(tokens_bt, valid_bt, counted_bt)
    halves = [CorpusBatch(*(x[rows] for x in batch[:3])) for rows in ([0, 1], [2, 3])]
    latents = np.array([7, 2])
    vocabulary = vocabulary_of([f" t{i}" for i in range(cfg.vocab)])
    centre_d = np.full(cfg.d_model, 0.5)
    measured = measure_corpus(
        params,
        halves,
        {
            "covariance": covariance_statistic(site, centre_d),
            "codes": codes_statistic(sae, latents, site=site),
            "places": places_statistic(vocabulary),
        },
        cfg=cfg,
        mesh=make_mesh("data=1"),
    )
    acts = forward(params, tokens_bt, cfg=cfg, keep=(site,)).acts[site]
    x_xd = np.asarray(acts)[counted_bt]
    expected = np.cov(x_xd.T, bias=True)
    np.testing.assert_allclose(measured["covariance"], expected, atol=1e-5)
    codes_xk = np.asarray(encode(sae, acts))[counted_bt][:, latents]
    assert (codes_xk != 0).any()
    np.testing.assert_allclose(measured["codes"], codes_xk, atol=1e-5)
    places_x = np.broadcast_to(np.arange(9), (4, 9))[counted_bt]
    np.testing.assert_array_equal(measured["places"].distances["context"], places_x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("river noun\nrun verb rare\n", r"words\.txt:2 has 3 fields; write a word and"),
        ("run verb\nRun noun\n", r"words\.txt:2: 'run' is noun here and verb before"),
        ("river noun\n", "has 1 classes; a class is told from the others"),
    ],
)
def test_a_file_of_words_that_cannot_be(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "words.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_words(file)


def test_input_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"words .* is not there"):
        read_words(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="none of the 1 words with a class is a token"):
        vocabulary_of([" a", " b"], {"river": "noun"})
    with pytest.raises(ValueError, match="null_directions is 48, but the residual str"):
        null_energy(np.eye(48), np.ones((60, 48)), 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": 0.0}, "dense is 0.0; it must be between 0 and 1"),
        ({"most": 0}, "most is 0; it must be at least 1"),
        ({"order": CLASSES[1:]}, "give each of position, null_space, .* once"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseSettings(**change)
    with pytest.raises(ValueError, match="rate is 1; it must be a share"):
        RetrainingSettings(rate=1)
