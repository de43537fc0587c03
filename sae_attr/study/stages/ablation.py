"""Stage `ablation`: exact mean ablation of the best candidates and of random latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.attribution.ablation import Ablation, exact_ablation, row_ablation
from sae_attr.attribution.ablation_table import FIELDS, first_prompts
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.ranking import random_matched
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Computed, Progress, Stage
from sae_attr.study.finished_parts import agreed, shard_name
from sae_attr.study.setup import Draw, Setup
from sae_attr.study.stages import firing, mean_activation, outliers, rankings
from sae_attr.study.stages.context import Context, Inputs
from sae_attr.text.rows import TokenRow, scope_mask

NAME = "ablation"
VERSION = 1  # raised when the stage gives other numbers than before


class Ablated(NamedTuple):
    """Holds what is ablated on which rows.

    `latents_k`: the best candidates, then random latents of like firing rate.
    """

    rows: list[TokenRow]
    latents_k: np.ndarray
    dec_kd: jax.Array
    mean_d: jax.Array
    scope: str


def stage(c: Context) -> Stage:
    """Makes the stage: `joint_*` `[rows, latents]` and `single_*` `[positions]` of all
    fields of `Ablation`, and `latents_k`; nothing with `ablate=0`.
    """
    setup, s = c.setup, c.setup.settings

    def run(inputs: Inputs, progress: Progress) -> Computed:
        if not s.ablate:
            return {}, {"skipped": "ablate=0"}
        ranking = next(
            iter(rankings.rankings_of(setup, inputs[rankings.NAME]).values())
        )
        best = ranking.latents_k[: s.ablate]
        control = random_matched(
            "control",
            firing.statistics_of(inputs[firing.NAME]).rate_n,
            best,
            s.ablate,
            setup.key(Draw.CONTROL),
            avoid=ranking.latents_k,
        )
        latents = np.concatenate([best, control.latents_k])
        rows = outliers.masked_rows(setup, inputs[outliers.NAME])
        mean = mean_activation.mean_of(inputs[mean_activation.NAME])
        ablated = Ablated(
            first_prompts(rows, s.ablate_rows),
            latents,
            decoder_rows(setup.decoder, latents),
            jnp.asarray(mean.mean_d, jnp.float32),
            s.presets()[0].tokens,
        )
        arrays = {
            **_joint(setup, ablated, progress),
            **_single(setup, ablated),
            "latents_k": latents,
        }
        meta = {
            "candidates": len(best),
            "matched": control.options["matched"],
            "rows": len(ablated.rows),
        }
        return arrays, meta

    fields = {
        **c.site_fields(),
        "masks": c.mask_fields(),
        "loss": s.loss,
        "scope": s.presets()[0].tokens,
        "candidates": s.ablate,
        "rows_at_most": s.ablate_rows,
        "positions": s.ablate_positions,
        "seed": s.seed,
    }
    return c.stage(
        NAME,
        run,
        version=VERSION,
        fields=fields,
        needs=(outliers.NAME, mean_activation.NAME, firing.NAME, rankings.NAME),
        files=("lm", "sae"),
        pairs=True,
    )


def _joint(setup: Setup, ablated: Ablated, progress: Progress) -> dict[str, np.ndarray]:
    """Ablates each latent at all positions of the scope; goes on at the next batch
    after a kill.
    """
    cfg, site, loss = setup.cfg, setup.site, setup.settings.loss
    step = jax.jit(
        lambda p, b, d, m, w: exact_ablation(
            p, b, d, m, w, cfg=cfg, site=site, loss=loss
        )
    )
    rows = ablated.rows
    where = setup.where(rows, ablated.scope)
    shape = (len(rows), len(ablated.dec_kd))
    out = {f"joint_{name}": np.zeros(shape, np.float32) for name in FIELDS}
    work = setup.batched(rows)
    names = [shard_name(batch.tokens_bt.shape, i) for i, (batch, _) in enumerate(work)]
    done = agreed(progress.done(), names)
    bar = tqdm(work, desc="exact ablation", unit="batch", disable=not setup.progress)
    for name, (batch, row_b) in zip(names, bar, strict=True):
        if name in done:
            arrays, _ = progress.get(name)
        else:
            where_bt = where(batch, row_b)
            result = step(
                setup.params,
                *shard_batch((batch,), setup.mesh),
                ablated.dec_kd,
                ablated.mean_d,
                where_bt,
            )
            arrays = _on_host(result)
            progress.add(name, arrays)
        for field in FIELDS:
            out[f"joint_{field}"][row_b[row_b >= 0]] = arrays[field][row_b >= 0]
    return out


def _single(setup: Setup, ablated: Ablated) -> dict[str, np.ndarray]:
    """Ablates one latent at one position, ΔL_{i,t}, for sampled triples of (row,
    position, latent): each is a row of its own in the batch.
    """
    row_s, latent_s, pos_s = _triples(setup, ablated)
    cfg, site, loss = setup.cfg, setup.site, setup.settings.loss
    step = jax.jit(
        lambda p, b, d, m, w: row_ablation(p, b, d, m, w, cfg=cfg, site=site, loss=loss)
    )
    out = {f"single_{name}": np.zeros(len(row_s), np.float32) for name in FIELDS}
    work = setup.batched([ablated.rows[r] for r in row_s])
    bar = tqdm(work, desc="single positions", unit="batch", disable=not setup.progress)
    for batch, index_b in bar:
        used = index_b >= 0
        where_bt = np.zeros(batch.tokens_bt.shape, bool)
        where_bt[used, pos_s[index_b[used]]] = True
        result = step(
            setup.params,
            *shard_batch((batch,), setup.mesh),
            ablated.dec_kd[latent_s[index_b]],
            ablated.mean_d,
            where_bt,
        )
        arrays = _on_host(result)
        for name in FIELDS:
            out[f"single_{name}"][index_b[used]] = arrays[name][used]
    return {
        **out,
        "single_row": row_s,
        "single_latent": latent_s,
        "single_position": pos_s,
    }


def _on_host(result: Ablation) -> dict[str, np.ndarray]:
    """Returns the fields of a batch's ablations."""
    return to_host({name: getattr(result, name) for name in FIELDS})


def _triples(setup: Setup, ablated: Ablated) -> tuple[Any, Any, np.ndarray]:
    """Draws rows, latents and counted positions."""
    count = setup.settings.ablate_positions
    seed = np.asarray(jax.random.key_data(setup.key(Draw.POSITIONS))).ravel()
    generator = np.random.default_rng(seed)
    row_s = generator.integers(len(ablated.rows), size=count)
    latent_s = generator.integers(len(ablated.dec_kd), size=count)
    positions_r = [
        np.flatnonzero(scope_mask(row, ablated.scope, exclude=setup.exclude))
        for row in ablated.rows
    ]
    pos_s = np.array([generator.choice(positions_r[r]) for r in row_s], int)
    return row_s, latent_s, pos_s
