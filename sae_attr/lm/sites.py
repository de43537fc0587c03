"""Which sites a model has, and what a name of one means for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from sae_attr.hooks import Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.mlp import wide
from sae_attr.lm.params import Params
from sae_attr.site_names import parse_site


def check_site(cfg: LMConfig, site: Site) -> None:
    """Raises ValueError if the model has no such site."""
    if site.layer >= cfg.n_layers:
        raise ValueError(
            f"site {site} lies outside the model, whose layers are "
            f"0..{cfg.n_layers - 1}; choose one of those"
        )
    if site.point == "resid_mid" and cfg.parallel_residual:
        raise ValueError(
            f"site {site}: a {cfg.family} block adds attention and MLP in parallel and "
            "has no resid_mid"
        )
    if site.point == "mlp_hidden" and cfg.n_experts:
        raise ValueError(
            f"site {site}: the hidden units of a {cfg.family} model belong to "
            f"{cfg.n_experts} experts and only some run "
            "for a token; choose mlp_in or mlp_out"
        )


def check_span(
    cfg: LMConfig, sites: set[Site], span: tuple[int, int], entering: Any
) -> None:
    """Raises ValueError for sites that a call of `forward` does not reach, or a start
    in the middle without its residual.

    Args:
      entering: tokens `[b, t]`, or the residual `[b, t, d]` that enters the first
        layer.
    """
    start, stop = span
    for site in sites:
        check_site(cfg, site)
        if not start <= site.layer < stop:
            raise ValueError(
                f"site {site} lies outside the layers {start}..{stop - 1} that this "
                "call runs"
            )
    if entering is None or (start and entering.ndim < 3):
        raise ValueError(
            f"a span that starts at layer {start} needs x_btd, the residual that "
            "enters that layer"
        )


def edited_suffix(
    edits: Mapping[Site, Edit], cfg: LMConfig
) -> tuple[int, dict[Site, Edit]]:
    """Returns the first layer that has to run anew under edits, and the edits as that
    suffix names their sites: a resid_post is the next layer's resid_pre.

    What is before that layer is the same for all rows, and can be run once.
    """
    moved = {suffix_start(site, cfg)[1]: edit for site, edit in edits.items()}
    if len(moved) < len(edits):
        # Both names of one place are edited: their order matters, so nothing is moved.
        moved = dict(edits)
    return min((site.layer for site in moved), default=cfg.n_layers - 1), moved


def suffix_start(site: Site, cfg: LMConfig) -> tuple[int, Site]:
    """Returns the first layer that has to run anew where a site is edited, and the
    site's name in that suffix.

    A resid_post is the next layer's resid_pre, where there is one, so that its own
    block need not run again.
    """
    if site.point == "resid_post" and site.layer + 1 < cfg.n_layers:
        site = replace(site, layer=site.layer + 1, point="resid_pre")
    return site.layer, site


def site_named(cfg: LMConfig, name: str) -> Site:
    """Reads a site's name for this model, where every activation has one name.

    Raises:
      ValueError: no name of a site (`site_names.parse_site`), or none of this model
        (`check_site`).
    """
    site = parse_site(name, norms_behind=cfg.post_norm)
    check_site(cfg, site)
    return site


def norm_gain(params: Params, site: Site, *, cfg: LMConfig) -> jax.Array | None:
    """Returns the gain `[d]`, at least float32, of the RMSNorm whose output the site
    is; None where it is not the output of one.
    """
    if site.point != "mlp_in" or cfg.norm != "rms":
        return None
    gain_d = wide(params["blocks"]["mlp_norm"]["scale"][site.layer])
    return 1 + gain_d if cfg.norm_plus_one else gain_d
