"""Generation under an intervention: one jitted function, rows with latents and
strengths of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.sample import (
    Completions,
    Prompts,
    check_finite,
    check_prompts,
    generate,
    make_prompts,
    prompt_lengths,
    prompt_width,
)
from sae_attr.lm.sites import check_site
from sae_attr.parallel import to_host
from sae_attr.sae.model import SAE, code_rows, unit_decoder
from sae_attr.steering.interventions import intervention, intervention_named, scope

_Coordinates = tuple[jax.Array, jax.Array, SAE | None, jax.Array | None]
"""Directions `[b, m, d]` and strengths `[b, m]` at a site; an SAE and its latents
`[b, m]`, of modes that read them."""


def steer(
    params: Params,
    prompts: Prompts | Sequence[Sequence[int]],
    directions: Any,
    strengths: Any,
    keys: jax.Array,
    *,
    cfg: LMConfig,
    site: Site | None = None,
    mode: str = "add",
    tokens: str = "all",
    sampling: Sampling = Sampling(),
    unit: Any = 1.0,
    skip: int = 0,
    sae: SAE | None = None,
    names: Sequence[str | None] | None = None,
) -> Completions:
    """Samples one steered completion of every prompt; new prompts, latents, strengths
    and scopes do not trigger recompilation.

    Args:
      prompts: `Prompts`, or token lists.
      directions: `[d]`, `[b, d]` or, m at once in every row, `[b, m, d]`. With `sae`
        also latents, integers `[]`, `[b]` or `[b, m]`, which stand for their decoder
        rows at unit length (at their own in mode clamp); -1 leaves the row alone. To
        steer at several sites at once, a mapping from sites to any of these.
      strengths: `[]`, `[b]` or `[b, m]`, in multiples of `unit`; see `interventions`
        for what they mean. Strength 0 (mode add), and a zero direction or latent -1 (set,
        clamp), leave a row exactly unsteered. A mapping where sites differ in it.
      keys: typed random keys `[b]`, or one, of which row i takes `fold_in(key, i)`.
      site: of `directions` that are no mapping.
      mode: of `interventions.INTERVENTIONS`.
      tokens: all | prompt | generated; see `scope` for the positions.
      unit: what one unit of strength is, for instance `MeanActivation.norm`. A mapping
        where sites differ in it.
      skip: positions at the start of every row that are never changed.
      sae: whose latents they are.
      names: of the rows, for messages; None for a row that only fills the batch.

    Returns:
      arrays on the host.

    Raises:
      ValueError: a mode, token scope or site that does not exist, sites that are not
        stated once, shapes that do not fit, a latent that the SAE lacks; token ids that the embedding lacks, logits
        that are not finite (with row and step).
    """
    at_sites = _by_site(directions, site, strengths=strengths, unit=unit)
    if not isinstance(prompts, Prompts):
        prompts = _padded(prompts, cfg, sampling)
    rows = len(prompts.tokens_bt)
    coordinates = {}
    for at, (of_site, strength, of_unit) in at_sites.items():
        check_site(cfg, at)
        coordinates[at] = _coordinates(
            of_site, strength, of_unit, rows, cfg.width(at.point), mode, sae
        )
    if jnp.ndim(keys) == 0:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(rows))
    done = _steered(
        params,
        prompts,
        coordinates,
        keys,
        scope(tokens, prompt_lengths(prompts), skip=skip),
        cfg=cfg,
        mode=mode,
        sampling=sampling,
    )
    done = jax.tree.map(to_host, done)
    if names is None:
        names = [f"row {b}" for b in range(rows)]
    check_finite(done, names)
    return done


@partial(jax.jit, static_argnames=("cfg", "mode", "sampling"))
def _steered(
    params: Params,
    prompts: Prompts,
    coordinates: Mapping[Site, _Coordinates],
    keys_b: jax.Array,
    scope_b: tuple[jax.Array, jax.Array],
    *,
    cfg: LMConfig,
    mode: str,
    sampling: Sampling,
) -> Completions:
    edits = {}
    for site, (directions_bmd, strengths_bm, sae, latents_bm) in coordinates.items():
        edit = intervention(
            directions_bmd, strengths_bm, mode=mode, sae=sae, latents_bm=latents_bm
        )
        edits[site] = Within(edit, *scope_b)
    return generate(params, prompts, keys_b, cfg=cfg, sampling=sampling, edits=edits)


def _by_site(
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


def _coordinates(
    directions: Any,
    strengths: Any,
    unit: Any,
    rows: int,
    width: int,
    mode: str,
    sae: SAE | None,
) -> _Coordinates:
    """Returns what is moved at one site; the SAE only where it is read, since it may be
    large.
    """
    directions_bmd, latents_bm = _directions(directions, rows, width, sae)
    strengths_bm = _strengths(strengths, rows, directions_bmd.shape[1]) * unit
    if not intervention_named(mode).of_latents:
        return directions_bmd, strengths_bm, None, None
    if latents_bm is None:
        raise ValueError(
            f"mode {mode} takes latents, not directions; pass integers and sae="
        )
    return directions_bmd, strengths_bm, sae, latents_bm


def _padded(
    rows: Sequence[Sequence[int]], cfg: LMConfig, sampling: Sampling
) -> Prompts:
    lengths = [len(row) for row in rows]
    table = make_prompts(rows, width=prompt_width(lengths, cfg=cfg, sampling=sampling))
    check_prompts(cfg, table)
    return table


def _directions(
    directions: Any, rows: int, width: int, sae: SAE | None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns directions `[b, m, d]`, and latents `[b, m]` where those stand for directions."""
    directions, latents_bm = jnp.asarray(directions), None
    if jnp.issubdtype(directions.dtype, jnp.integer):
        latents_bm = _latents(directions, rows, sae)
        assert sae is not None  # _latents
        unit_bmd = unit_decoder(code_rows(sae)[jnp.maximum(latents_bm, 0)])
        directions = jnp.where(latents_bm[..., None] >= 0, unit_bmd, 0)
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
    return jnp.broadcast_to(full, (rows, *full.shape[1:])), latents_bm


def _latents(latents: jax.Array, rows: int, sae: SAE | None) -> jax.Array:
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
    return jnp.broadcast_to(full, (rows, full.shape[1]))


def _strengths(strengths: Any, rows: int, m: int) -> jax.Array:
    """Returns strengths `[b, m]`."""
    strengths = jnp.asarray(strengths, jnp.float32)
    full = strengths
    if strengths.ndim < 2:
        full = strengths.reshape(*strengths.shape, *(1,) * (2 - strengths.ndim))
    if full.ndim != 2 or full.shape[0] not in (1, rows) or full.shape[1] not in (1, m):
        raise ValueError(
            f"strengths of shape {strengths.shape} do not fit {rows} rows of {m} "
            "latents; give [], [b] or [b, m]"
        )
    return jnp.broadcast_to(full, (rows, m))
