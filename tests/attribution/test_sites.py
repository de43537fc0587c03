"""Several sites from one backward pass, one ranking of them all, and the input of
transcoders.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.attribution import (
    collect,
    collect_sites,
    rank_sites,
    score_moment,
    score_sites,
    table_moment,
    token_weights,
)
from sae_attr.attribution.sites import ERROR, SiteLatent, after_gain, read_site
from sae_attr.hooks import Site
from sae_attr.lm.model import forward
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig, encode
from tests.attribution._tiny import llama, neox, off, ragged_rows, random_params

pytestmark = pytest.mark.usefixtures("quick")

ROWS = ragged_rows(5)[:6]


def test_one_pass_gives_what_one_pass_a_site_gives() -> None:
    cfg, mesh = llama(), make_mesh("data=1")
    params, rng = random_params(cfg), np.random.default_rng(0)
    sites = {
        Site(0): Site(0),
        Site(1, "attn_out"): Site(1, "attn_out"),
        Site(2, "mlp_out"): Site(2, "mlp_in"),
    }
    decoders = {
        site: jnp.asarray(rng.standard_normal((5 + k, 16)), jnp.float32)
        for k, site in enumerate(sites)
    }
    means = {site: rng.standard_normal(16) for site in sites}
    tables = collect_sites(params, ROWS, cfg=cfg, sites=sites, mesh=mesh)
    scores = score_sites(tables, decoders, means)
    for site, read in sites.items():
        alone = collect(params, ROWS, cfg=cfg, site=site, mesh=mesh, read=read)
        assert off(tables[site].acts_kd, alone.acts_kd) < 1e-5
        assert off(tables[site].grads_kd, alone.grads_kd) < 1e-5
        assert off(tables[site].reads_kd, alone.reads_kd) < 1e-5
        m = table_moment(alone, token_weights(ROWS, "prompt"))
        assert (
            off(
                scores[site],
                score_moment(m, jnp.asarray(means[site], jnp.float32), decoders[site]),
            )
            < 1e-4
        )
    assert tables[Site(0)].inputs_kd is None
    ranking = rank_sites("all", scores, 6, errors={Site(0): 1e9})
    assert ranking.entries[0] == SiteLatent(Site(0), ERROR)
    flat = sorted(
        (float(v), site, i)
        for site, values in scores.items()
        for i, v in enumerate(values)
    )[::-1]
    assert list(ranking.entries[1:]) == [(site, i) for _, site, i in flat[:5]]
    assert (np.diff(ranking.scores_k) <= 0).all()
    per_site = [i for s in sites for i in ranking.latents(s)]
    assert len(per_site) == 5
    with pytest.raises(
        ValueError, match=r"site layer0.resid_post has gradients but no mean"
    ):
        score_sites(tables, decoders, {})


def test_nan_is_never_ranked() -> None:
    ranking = rank_sites("some", {Site(0): [np.nan, -1.0], Site(1): [0.5, np.nan]}, 10)
    assert list(ranking.entries) == [(Site(1), 0), (Site(0), 1)]
    with pytest.raises(ValueError, match="no finite score at any of its 1 sites"):
        rank_sites("none", {Site(0): [np.nan]}, 3)


@pytest.mark.parametrize("plus_one", [False, True])
def test_an_encoder_before_the_gain_reads_after_it(plus_one: bool) -> None:
    cfg = llama(norm_plus_one=plus_one)
    params, rng = random_params(cfg), np.random.default_rng(0)
    names = {
        "enc_dn": (16, 9),
        "enc_bias_n": (9,),
        "dec_nm": (9, 16),
        "dec_bias_m": (16,),
    }
    sae = SAE(
        **{
            k: jnp.asarray(rng.standard_normal(s), jnp.float32)
            for k, s in names.items()
        },
        cfg=SAEConfig(16, 16, 9),
    )
    mid, site = Site(1, "resid_mid"), Site(1, "mlp_in")
    acts = forward(params, jnp.arange(3, 10)[None], cfg=cfg, keep=(mid, site)).acts
    x = acts[mid] / jnp.sqrt(jnp.mean(acts[mid] ** 2, -1, keepdims=True) + cfg.norm_eps)
    assert (
        off(encode(after_gain(sae, params, 1, cfg=cfg), acts[site]), encode(sae, x))
        < 1e-4
    )
    assert read_site("blocks.1.ln2.hook_normalized") == (site, True)
    assert read_site("blocks.1.mlp.hook_in") == (site, False)
    assert read_site("blocks.1.hook_mlp_in") == (
        mid,
        False,
    )  # TransformerLens copies the residual stream there
    with pytest.raises(ValueError, match="LayerNorm may or may not have been folded"):
        after_gain(sae, params, 1, cfg=neox())
