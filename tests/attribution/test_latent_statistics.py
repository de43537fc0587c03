"""ā, firing rates and mean codes over a corpus of ragged, masked rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.activations import CorpusBatch, measure_corpus
from sae_attr.activations import corpus_pass as corpus_pass_module
from sae_attr.activations.statistics import mean_statistic, norm_statistic
from sae_attr.attribution import (
    firing_rates,
    mean_activation,
    site_acts,
    weighted_codes,
)
from sae_attr.attribution.latent_statistics import firings, latent_statistic
from sae_attr.hooks import Site
from sae_attr.interpret import passage_statistic
from sae_attr.lm import model
from sae_attr.lm.model import Params
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig
from tests.attribution._tiny import VOCAB, llama, off, random_params

pytestmark = pytest.mark.usefixtures("quick")

CFG, SITE = llama(), Site(1)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (8, 12)).astype(np.int32)
VALID = np.arange(12) < RNG.integers(3, 13, (8, 1))
VALID[7] = False  # a row of padding
COUNTED = VALID & (RNG.random((8, 12)) < 0.7)


@pytest.fixture(scope="module")
def acts() -> np.ndarray:
    """Activations of the counted positions `[k, d]`, rows without any mask."""
    step = jax.jit(
        lambda p: site_acts(p, TOKENS, np.ones_like(VALID), cfg=CFG, site=SITE)
    )
    return np.asarray(step(random_params(CFG)))[COUNTED].astype(np.float64)


def work() -> list[CorpusBatch]:
    return [
        CorpusBatch(TOKENS[i : i + 4], VALID[i : i + 4], COUNTED[i : i + 4])
        for i in (0, 4)
    ]


@pytest.fixture(scope="module")
def sae() -> SAE:
    enc, dec = (
        RNG.standard_normal(shape).astype(np.float32) for shape in ((16, 9), (9, 16))
    )
    bias = np.linspace(-4, 4, 9, dtype=np.float32)
    return SAE(
        jnp.asarray(enc),
        jnp.asarray(bias),
        jnp.asarray(dec),
        jnp.zeros(16),
        cfg=SAEConfig(16, 16, 9),
    )


def codes(sae: SAE, acts: np.ndarray) -> np.ndarray:
    return np.maximum(
        acts @ np.asarray(sae.enc_dn, np.float64) + np.asarray(sae.enc_bias_n), 0
    )


def test_mean_activation_over_counted_positions(acts: np.ndarray) -> None:
    got = mean_activation(
        random_params(CFG), work(), cfg=CFG, site=SITE, mesh=make_mesh("data=1")
    )
    assert got.tokens == COUNTED.sum() == len(acts)
    assert off(got.mean_d, acts.mean(0)) < 1e-5
    assert got.norm == pytest.approx(np.linalg.norm(acts, axis=1).mean(), rel=1e-5)


def test_firing_rates(acts: np.ndarray, sae: SAE) -> None:
    rates, tokens = firing_rates(
        random_params(CFG), work(), sae, cfg=CFG, site=SITE, mesh=make_mesh("data=1")
    )
    assert tokens == len(acts)
    np.testing.assert_allclose(rates, (codes(sae, acts) > 0).mean(0), atol=1e-6)
    assert len(np.unique(rates)) > 3


@pytest.mark.parametrize("block", [5, 1000])
def test_weighted_codes(block: int, acts: np.ndarray, sae: SAE) -> None:
    weights = np.random.default_rng(1).standard_normal(len(acts)) * (
        np.arange(len(acts)) % 3 > 0
    )
    encode_fn = lambda a: jax.nn.relu(a @ sae.enc_dn + sae.enc_bias_n)
    got = weighted_codes(encode_fn, acts, weights, block=block)
    assert off(got, weights @ codes(sae, acts)) < 1e-5
    with pytest.raises(ValueError, match=r"no token has a weight"):
        weighted_codes(encode_fn, acts, 0 * weights, block=block)


def test_nothing_to_average() -> None:
    empty = [CorpusBatch(TOKENS, VALID, np.zeros_like(COUNTED))]
    with pytest.raises(
        ValueError, match=r"no corpus position counts towards the mean activation"
    ):
        mean_activation(
            random_params(CFG), empty, cfg=CFG, site=SITE, mesh=make_mesh("data=1")
        )
    params = random_params(CFG)
    broken = {
        **params,
        "embed": {"table": params["embed"]["table"].at[TOKENS[0, 0]].set(jnp.nan)},
    }
    counted = [CorpusBatch(TOKENS, VALID, VALID)]
    with pytest.raises(
        ValueError,
        match=r"activations at layer1.resid_post are NaN or infinite on the corpus",
    ):
        mean_activation(broken, counted, cfg=CFG, site=SITE, mesh=make_mesh("data=1"))


def test_a_pass_feeds_every_statistic_and_a_new_one_is_a_function(
    acts: np.ndarray, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    squares = lambda block: jnp.sum((block.codes_kn * block.counted_k1) ** 2, axis=0)
    statistics = {
        "mean": mean_statistic(SITE),
        "norms": norm_statistic((SITE,)),
        "sae": latent_statistic(sae, {"rate": firings, "square": squares}, site=SITE),
        "passages": passage_statistic(sae, np.arange(9), site=SITE, count=3, window=2),
    }
    traced: list[tuple[int, ...]] = []

    def forward(params: Params, tokens_bt: jax.Array, **options: Any) -> Any:
        traced.append(tokens_bt.shape)
        return model.forward(params, tokens_bt, **options)

    monkeypatch.setattr(corpus_pass_module, "forward", forward)
    batches = iter(work())  # so that it can be read only once
    where: dict[str, Any] = {"cfg": CFG, "mesh": make_mesh("data=1")}
    together = measure_corpus(random_params(CFG), batches, statistics, **where)
    assert traced == [(4, 12)]  # one program, whose forward pass serves all of them
    assert off(together["mean"].mean_d, acts.mean(0)) < 1e-5
    norms_k = np.sort(np.linalg.norm(acts, axis=1))
    assert off(np.sort(together["norms"][SITE]), norms_k) < 1e-5
    means, tokens = together["sae"]
    assert tokens == len(acts)
    np.testing.assert_allclose(means["rate"], (codes(sae, acts) > 0).mean(0), atol=1e-6)
    assert off(means["square"], (codes(sae, acts) ** 2).mean(0)) < 1e-5
    highest = [max((p.code for p in some), default=0) for some in together["passages"]]
    assert off(np.array(highest), codes(sae, acts).max(0)) < 1e-5
