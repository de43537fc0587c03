"""Generation under an intervention: one jitted function, rows with latents and
strengths of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.hooks import Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import Completions, check_finite
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.prompts import (
    Prompts,
    check_prompts,
    make_prompts,
    prompt_lengths,
    prompt_width,
)
from sae_attr.lm.sample import generate
from sae_attr.lm.sites import check_site
from sae_attr.parallel import to_host
from sae_attr.sae.model import SAE
from sae_attr.steering.coordinates import Coordinates, by_site, site_coordinates
from sae_attr.steering.interventions import intervention, scope


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
        stated once, shapes that do not fit, a latent that the SAE lacks; token ids that
        the embedding lacks, logits that are not finite (with row and step).
    """
    at_sites = by_site(directions, site, strengths=strengths, unit=unit)
    if not isinstance(prompts, Prompts):
        prompts = _padded(prompts, cfg, sampling)
    rows = len(prompts.tokens_bt)
    coordinates = {}
    for at, (of_site, strength, of_unit) in at_sites.items():
        check_site(cfg, at)
        coordinates[at] = site_coordinates(
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
    done = to_host(done)
    if names is None:
        names = [f"row {b}" for b in range(rows)]
    check_finite(done, names)
    return done


@partial(jax.jit, static_argnames=("cfg", "mode", "sampling"))
def _steered(
    params: Params,
    prompts: Prompts,
    coordinates: Mapping[Site, Coordinates],
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


def _padded(
    rows: Sequence[Sequence[int]], cfg: LMConfig, sampling: Sampling
) -> Prompts:
    lengths = [len(row) for row in rows]
    table = make_prompts(rows, width=prompt_width(lengths, cfg=cfg, sampling=sampling))
    check_prompts(cfg, table)
    return table
