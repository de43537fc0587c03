"""What is moved at each site of a steered batch, from what a caller may give: directions
or latents, for all rows or row by row, at one site or at several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Site
from sae_attr.parallel import with_namespace
from sae_attr.sae.model import SAE, code_rows, unit_decoder
from sae_attr.steering.interventions import intervention_named

Coordinates = tuple[Any, Any, SAE | None, Any]
"""Directions `[b, m, d]` and strengths `[b, m]` at a site; an SAE and its latents
`[b, m]`, of modes that read them; numpy where all that was given is on the host."""


def by_site(
    directions: Any, site: Site | None, **common: Any
) -> dict[Site, tuple[Any, ...]]:
    """Returns site -> its directions and its value of each of `common`.

    Raises ValueError where sites are stated twice or not at all, or a value is for
    others.
    """
    if not isinstance(directions, Mapping):
        if site is None:
            raise ValueError(
                "directions need the site that they are for; pass site=, or a mapping "
                "from sites to directions"
            )
        directions = {site: directions}
    elif site is not None or not directions:
        raise ValueError(
            "directions are a mapping, whose keys are the sites; give at least one, and "
            "leave out site="
        )
    for name, value in common.items():
        if isinstance(value, Mapping) and value.keys() != directions.keys():
            raise ValueError(
                f"{name} are for the sites {', '.join(map(str, value))}, directions for "
                f"{', '.join(map(str, directions))}; give both for the same"
            )
    at_sites = {}
    for at, of_site in directions.items():
        values = []
        for value in common.values():
            values.append(value[at] if isinstance(value, Mapping) else value)
        at_sites[at] = (of_site, *values)
    return at_sites


def site_coordinates(
    directions: Any,
    strengths: Any,
    unit: Any,
    rows: int,
    width: int,
    mode: str,
    sae: SAE | None,
) -> Coordinates:
    """Returns what is moved at one site; the SAE only where it is read, since it may be
    large.
    """
    directions_bmd, latents_bm = _directions(directions, rows, width, sae)
    strengths_bm = _strengths(strengths, unit, rows, directions_bmd.shape[1])
    if not intervention_named(mode).of_latents:
        return directions_bmd, strengths_bm, None, None
    if latents_bm is None:
        raise ValueError(
            f"mode {mode} takes latents, not directions; pass integers and sae="
        )
    return directions_bmd, strengths_bm, sae, latents_bm


def _directions(
    directions: Any, rows: int, width: int, sae: SAE | None
) -> tuple[Any, Any]:
    """Returns directions `[b, m, d]`, and latents `[b, m]` where those stand for directions."""
    (xp, directions), latents_bm = with_namespace(directions), None
    if jnp.issubdtype(directions.dtype, jnp.integer):
        latents_bm = _latents(directions, rows, sae)
        assert sae is not None  # _latents
        directions, xp = _rows_of(sae, latents_bm), jnp
    full = directions
    if directions.ndim == 1:
        full = directions[None, None]
    elif directions.ndim == 2:
        full = directions[:, None]
    if full.ndim != 3 or full.shape[0] not in (1, rows) or full.shape[2] != width:
        raise ValueError(
            f"directions of shape {directions.shape} do not fit {rows} prompts at a "
            f"site of width {width}; give [d], [b, d] or [b, m, d]"
        )
    return xp.broadcast_to(full, (rows, *full.shape[1:])), latents_bm


@jax.jit
def _rows_of(sae: SAE, latents_bm: jax.Array) -> jax.Array:
    """Returns unit decoder rows of latents, zeros for -1."""
    unit_bmd = unit_decoder(code_rows(sae)[jnp.maximum(latents_bm, 0)])
    return jnp.where(latents_bm[..., None] >= 0, unit_bmd, 0)


def _latents(latents: Any, rows: int, sae: SAE | None) -> Any:
    """Returns latents `[b, m]`, -1 for none."""
    if sae is None:
        raise ValueError(
            "directions are integers, which mean latents of an SAE; pass sae=, or "
            "vectors of floats"
        )
    full = latents
    if latents.ndim == 0:
        full = latents[None, None]
    elif latents.ndim == 1:
        full = latents[:, None]
    if full.ndim != 2 or full.shape[0] not in (1, rows):
        raise ValueError(
            f"latents of shape {latents.shape} do not fit {rows} prompts; give [], [b] "
            "or [b, m]"
        )
    low, high = int(np.min(full)), int(np.max(full))
    if not -1 <= low <= high < sae.cfg.n_latents:
        raise ValueError(
            f"latents reach {low}..{high} but the SAE has {sae.cfg.n_latents}; -1 "
            "stands for none"
        )
    return np.broadcast_to(full, (rows, full.shape[1]))


def _strengths(strengths: Any, unit: Any, rows: int, m: int) -> Any:
    """Returns strengths `[b, m]`, times their unit."""
    xp, strengths, unit = with_namespace(strengths, unit)
    strengths = strengths.astype(xp.float32)
    full = strengths
    if strengths.ndim < 2:
        full = strengths.reshape(*strengths.shape, *(1,) * (2 - strengths.ndim))
    if full.ndim != 2 or full.shape[0] not in (1, rows) or full.shape[1] not in (1, m):
        raise ValueError(
            f"strengths of shape {strengths.shape} do not fit {rows} rows of {m} "
            "latents; give [], [b] or [b, m]"
        )
    with np.errstate(over="ignore"):  # infinite, as jax has it
        return xp.broadcast_to(full, (rows, m)) * unit.astype(xp.float32)
