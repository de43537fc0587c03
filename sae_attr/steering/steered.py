"""Generation under an intervention: one jitted function, rows with latents and
strengths of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, check_site
from sae_attr.lm.sample import (
    Completions,
    Prompts,
    Sampling,
    check_finite,
    check_prompts,
    generate,
    make_prompts,
    prompt_lengths,
    prompt_width,
)
from sae_attr.parallel import to_host
from sae_attr.sae.model import SAE, code_rows, unit_decoder
from sae_attr.steering.interventions import MODES, intervention, scope


def steer(
    params: Params,
    prompts: Prompts | Sequence[Sequence[int]],
    directions: Any,
    strengths: Any,
    keys: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    mode: str = "add",
    tokens: str = "all",
    sampling: Sampling = Sampling(),
    unit: Any = 1.0,
    skip: int = 0,
    sae: SAE | None = None,
    names: Sequence[str | None] | None = None,
) -> Completions:
    """One steered completion of every prompt; new prompts, latents, strengths and
    scopes compile nothing.

    Args:
      prompts: `Prompts`, or token lists.
      directions: `[d]`, `[b, d]` or, m at once in every row, `[b, m, d]`. With `sae`
        also latents, integers `[]`, `[b]` or `[b, m]`, which stand for their decoder
        rows at unit length (at their own in mode clamp); -1 leaves the row alone.
      strengths: `[]`, `[b]` or `[b, m]`, in multiples of `unit`; what they mean says
        `intervention`. With mode add 0 is the model as it is, to the bit; with set and
        clamp a direction of zeros or latent -1 is.
      keys: typed random keys `[b]`, or one, of which row i takes `fold_in(key, i)`.
      mode: add | set | project_out | clamp.
      tokens: all | prompt | generated; which positions those are says `scoped`.
      unit: what one unit of strength is, for instance `MeanActivation.norm`.
      skip: positions at the start of every row that are never changed.
      sae: whose latents they are.
      names: of the rows, for messages; None for a row that nobody asked for.

    Returns:
      arrays on the host.

    Raises:
      ValueError: a mode, token scope or site that does not exist, shapes that do not
        fit, a latent that the SAE lacks; token ids that the embedding lacks, logits
        that are not finite (with row and step).
    """
    check_site(cfg, site)
    prompts = (
        prompts if isinstance(prompts, Prompts) else _padded(prompts, cfg, sampling)
    )
    rows = len(prompts.tokens_bt)
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    directions_bmd, latents_bm = _directions(
        directions, rows, cfg.width(site.point), sae, mode
    )
    strengths_bm = _strengths(strengths, rows, directions_bmd.shape[1]) * unit
    keys_b = (
        jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(rows))
        if jnp.ndim(keys) == 0
        else keys
    )
    clamped = (sae, latents_bm) if mode == "clamp" else (None, None)
    done = _steered(
        params,
        prompts,
        directions_bmd,
        strengths_bm,
        keys_b,
        scope(tokens, prompt_lengths(prompts), skip=skip),
        *clamped,
        cfg=cfg,
        site=site,
        mode=mode,
        sampling=sampling,
    )
    done = jax.tree.map(to_host, done)
    check_finite(done, [f"row {b}" for b in range(rows)] if names is None else names)
    return done


@partial(jax.jit, static_argnames=("cfg", "site", "mode", "sampling"))
def _steered(
    params: Params,
    prompts: Prompts,
    directions_bmd: jax.Array,
    strengths_bm: jax.Array,
    keys_b: jax.Array,
    scope_b: tuple[jax.Array, jax.Array],
    sae: SAE | None,
    latents_bm: jax.Array | None,
    *,
    cfg: LMConfig,
    site: Site,
    mode: str,
    sampling: Sampling,
) -> Completions:
    edit = intervention(
        directions_bmd, strengths_bm, mode=mode, sae=sae, latents_bm=latents_bm
    )
    return generate(
        params,
        prompts,
        keys_b,
        cfg=cfg,
        sampling=sampling,
        edits={site: Within(edit, *scope_b)},
    )


def _padded(
    rows: Sequence[Sequence[int]], cfg: LMConfig, sampling: Sampling
) -> Prompts:
    table = make_prompts(
        rows, width=prompt_width([len(row) for row in rows], cfg=cfg, sampling=sampling)
    )
    check_prompts(cfg, table)
    return table


def _directions(
    given: Any, rows: int, width: int, sae: SAE | None, mode: str
) -> tuple[jax.Array, jax.Array | None]:
    """Directions `[b, m, d]`, and latents `[b, m]` where those were given."""
    given, latents_bm = jnp.asarray(given), None
    if jnp.issubdtype(given.dtype, jnp.integer):
        latents_bm = _latents(given, rows, sae)
        assert sae is not None  # _latents
        given = unit_decoder(code_rows(sae)[jnp.maximum(latents_bm, 0)])
        given = jnp.where(latents_bm[..., None] >= 0, given, 0)
    elif mode == "clamp":
        raise ValueError(
            "mode clamp takes latents, not directions; pass integers and sae="
        )
    full = (
        given[None, None]
        if given.ndim == 1
        else given[:, None]
        if given.ndim == 2
        else given
    )
    if full.ndim != 3 or full.shape[0] not in (1, rows) or full.shape[2] != width:
        raise ValueError(
            f"directions of shape {given.shape} do not fit {rows} prompts at a site of "
            f"width {width}; give [d], [b, d] or "
            "[b, m, d]"
        )
    return jnp.broadcast_to(full, (rows, *full.shape[1:])), latents_bm


def _latents(given: jax.Array, rows: int, sae: SAE | None) -> jax.Array:
    """Latents `[b, m]`, -1 for none."""
    if sae is None:
        raise ValueError(
            "directions are integers, which mean latents of an SAE; pass sae=, or "
            "vectors of floats"
        )
    full = (
        given[None, None]
        if given.ndim == 0
        else given[:, None]
        if given.ndim == 1
        else given
    )
    if full.ndim != 2 or full.shape[0] not in (1, rows):
        raise ValueError(
            f"latents of shape {given.shape} do not fit {rows} prompts; give [], [b] "
            "or [b, m]"
        )
    low, high = int(np.min(full)), int(np.max(full))
    if not -1 <= low <= high < sae.cfg.n_latents:
        raise ValueError(
            f"latents reach {low}..{high} but the SAE has {sae.cfg.n_latents}; -1 "
            "stands for none"
        )
    return jnp.broadcast_to(full, (rows, full.shape[1]))


def _strengths(given: Any, rows: int, m: int) -> jax.Array:
    given = jnp.asarray(given, jnp.float32)
    full = (
        given.reshape(*given.shape, *(1,) * (2 - given.ndim))
        if given.ndim <= 2
        else given
    )
    if full.ndim != 2 or full.shape[0] not in (1, rows) or full.shape[1] not in (1, m):
        raise ValueError(
            f"strengths of shape {given.shape} do not fit {rows} rows of {m} latents; "
            "give [], [b] or [b, m]"
        )
    return jnp.broadcast_to(full, (rows, m))
