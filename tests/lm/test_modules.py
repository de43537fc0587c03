"""Module paths, in every family with another order of norms, against forward hooks of
transformers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_attr.hooks import Replace, Site
from sae_attr.lm.model import forward
from sae_attr.lm.sites import site_named
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.site_names import lens_name, parse_site
from tests.lm.make_module_goldens import (
    FAMILIES,
    GOLDENS,
    LAYER,
    TOKENS,
    paths_of,
    record,
    write_family,
)

pytestmark = pytest.mark.usefixtures("quick")


def ours(folder: Path, family: str) -> dict[str, np.ndarray]:
    """Path below the layer -> activation."""
    cfg, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    sites = {
        path: site_named(cfg, f"model.layers.{LAYER}.{path}".removesuffix("."))
        for path in paths_of(family)
    }
    acts = forward(params, TOKENS, cfg=cfg, keep=tuple(set(sites.values()))).acts
    return {path: np.asarray(acts[site]) for path, site in sites.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_the_module(tmp_path: Path, family: str) -> None:
    goldens = np.load(GOLDENS)
    got = ours(write_family(tmp_path, family), family)
    for path in paths_of(family):
        np.testing.assert_allclose(
            got[path], goldens[f"{family}/{path}"], atol=2e-5, err_msg=path
        )
    apart = np.abs(got["mlp"] - goldens[f"{family}/"]).max()
    assert apart > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_goldens_are_what_transformers_gives(tmp_path: Path, family: str) -> None:
    pytest.importorskip("transformers")
    goldens = np.load(GOLDENS)
    for path, value in record(family, write_family(tmp_path, family)).items():
        np.testing.assert_allclose(
            value, goldens[f"{family}/{path}"], atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_the_sublayers_own_output_differs_from_what_is_added(
    tmp_path: Path, family: str
) -> None:
    cfg, params = load_lm(
        str(write_family(tmp_path, family)), mesh=make_mesh("data=1"), progress=False
    )
    for raw, out in (("mlp_raw", "mlp_out"), ("attn_raw", "attn_out")):
        sites = (Site(LAYER, raw), Site(LAYER, out))
        acts = forward(params, TOKENS, cfg=cfg, keep=sites).acts
        assert np.abs(acts[sites[0]] - acts[sites[1]]).max() > 0.1
        # An edit before the norm goes through it.
        edited = forward(
            params,
            TOKENS,
            cfg=cfg,
            keep=sites,
            edits={sites[0]: Replace(3 * acts[sites[0]])},
        ).acts
        np.testing.assert_allclose(
            edited[sites[1]], acts[sites[1]], atol=0.02
        )  # but for the norm's epsilon
        assert np.abs(edited[sites[0]] - acts[sites[0]]).max() > 0.1


def test_one_activation_has_one_name_in_a_model_without_norms_behind() -> None:
    assert parse_site("layers.2.mlp") == Site(2, "mlp_raw")
    assert parse_site("layers.2.mlp", norms_behind=True) == Site(2, "mlp_raw")
    assert parse_site("layers.2.mlp", norms_behind=False) == Site(2, "mlp_out")
    assert parse_site("blocks.2.attn.hook_out", norms_behind=False) == Site(
        2, "attn_out"
    )
    assert parse_site("layer2.attn_raw", norms_behind=False) == Site(2, "attn_out")
    for point in ("mlp_raw", "attn_raw", "mlp_in"):
        assert parse_site(lens_name(Site(2, point))) == Site(2, point)


@pytest.mark.parametrize(
    "name", ["post_attention_layernorm", "post_attention_layernorm.input"]
)
def test_a_name_of_two_places_is_asked_about(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is layer2\.attn_\w+ in models with norms behind .* and layer2\.\w+ in the",
    ):
        parse_site(f"model.layers.2.{name}")
