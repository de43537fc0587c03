"""How well each approximation of Δ stands in for exact ablation (docs/method.md,
Ablation and approximations).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution import (
    act_and_grad,
    agreement,
    attribute,
    integrated_gradients,
    integrated_latents,
    overlap,
    random_matched,
    rank,
    score_moment,
    table_moment,
    token_weights,
)
from sae_attr.attribution.ablation import run_prefix, suffix_loss
from sae_attr.attribution.ablation_table import first_prompts
from sae_attr.attribution.encoder_scores import code_scores, contributions
from sae_attr.attribution.latent_statistics import CodeStatistics
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.token_table import TokenTable, side_weights
from sae_attr.hooks import Add, Edit, SetProjection, Site
from sae_attr.lm.lrp import LRP, PLAIN, RULES, Rules
from sae_attr.lm.model import Params, forward
from sae_attr.sae.model import code_rows
from sae_attr.study.attribution_stages import attribution_stages, run_setup
from sae_attr.study.ranking_notes import choices
from sae_attr.study.setup import Draw, Setup
from sae_attr.study.stages import firing, norm_limits
from sae_attr.study.stages.evidence import MEASURED, measured_tokens
from sae_attr.text.batching import RowBatch
from sae_attr.text.rows import TokenRow

Method = Callable[[Params, RowBatch, Any], jax.Array]
"""(params, batch, where_bt) -> per row and chosen latent the effect of all positions
`where_bt` together, `[b, k]`.
"""


@dataclass(frozen=True)
class Compare:
    """Sets what is compared; see configs/approximations.py."""

    latents: int
    random: int
    rows: int
    steps: int
    latent_steps: int
    top: int
    bfloat16: bool


@dataclass(frozen=True, eq=False)
class Compared:
    """The latents and rows that are compared, with what every method needs of them."""

    setup: Setup
    codes: CodeStatistics
    latents: np.ndarray
    dec_kd: jax.Array
    mean_d: jax.Array
    rows: list[TokenRow]
    limits: Mapping[Site, float]

    @property
    def place(self) -> dict[str, Any]:
        """The model's config, the site and the loss: keywords of every method."""
        return {
            "cfg": self.setup.cfg,
            "site": self.setup.site,
            "loss": self.setup.settings.loss,
        }


def choose(setup: Setup, compare: Compare) -> Compared:
    """Takes the best latents by plain Δ over the primary scope, and random ones of like
    firing rate.
    """
    stages = attribution_stages(setup)
    results = run_setup(setup, stages, only=(*MEASURED, firing.NAME))
    table, mean = measured_tokens(setup, results)
    codes = firing.statistics_of(results[firing.NAME])
    best = rank("plain", plain_scores(setup, table, mean), compare.latents).latents_k
    control = random_matched(
        "random", codes.rate_n, best, compare.random, setup.key(Draw.CONTROL)
    )
    latents = np.concatenate([best, control.latents_k])
    return Compared(
        setup,
        codes,
        latents,
        decoder_rows(setup.decoder, latents),
        jnp.asarray(mean.mean_d, setup.cfg.resid_dtype),
        first_prompts(table.rows, compare.rows),
        norm_limits.limits_of(results[norm_limits.NAME]),
    )


def plain_scores(setup: Setup, table: TokenTable, mean: MeanActivation) -> np.ndarray:
    """Scores every latent by Δ over the primary scope, `[n]`."""
    scope = setup.settings.presets()[0].tokens
    weights_k = token_weights(table.rows, scope, setup.exclude)
    mean_d = jnp.asarray(mean.mean_d, jnp.float32)
    return np.asarray(
        score_moment(table_moment(table, weights_k), mean_d, setup.decoder)
    )


# ---- the methods ---------------------------------------------------------------------


def exact(
    c: Compared, params: Params, batch: RowBatch, where: Any, *, code: bool = False
) -> jax.Array:
    """Computes ΔL of putting a latent back to its mean at all positions: its projection,
    or (`code`) the part that the SAE's latent activation adds.
    """
    site, cfg = c.setup.site, c.setup.cfg
    x_btd, _ = run_prefix(params, batch, cfg=cfg, site=site)
    loss = lambda edit: suffix_loss(params, x_btd, batch, edit, **c.place)
    before_b = loss(Add(jnp.zeros(cfg.width(site.point))))

    def projection(direction_d: jax.Array) -> Edit:
        return SetProjection(direction_d, jnp.sum(c.mean_d * direction_d), where)

    def moved(item: tuple[jax.Array, jax.Array]) -> Edit:
        gap_bt, row_d = item
        return Add(gap_bt[..., None] * row_d, 1.0, where)

    if not code:
        return jax.lax.map(lambda d: loss(projection(d)) - before_b, c.dec_kd).T
    gap_btk = c.codes.mean_n[c.latents] - _codes(c, params, batch)
    items = (jnp.moveaxis(gap_btk, -1, 0), code_rows(c.setup.sae)[c.latents])
    return jax.lax.map(lambda item: loss(moved(item)) - before_b, items).T


def _codes(c: Compared, params: Params, batch: RowBatch) -> jax.Array:
    site = c.setup.read_site
    out = forward(
        params,
        batch.tokens_bt,
        cfg=c.setup.cfg,
        valid_bt=batch.valid_bt,
        keep=(site,),
        span=(0, site.layer + 1),
    )
    return contributions(c.setup.sae, out.acts[site], jnp.asarray(c.latents))


def first_order(
    c: Compared, params: Params, batch: RowBatch, where: Any, *, rules: Rules = PLAIN
) -> jax.Array:
    """Computes Σ_t δ with plain gradients, or with backward rules."""
    site = c.setup.site
    out = act_and_grad(
        params,
        batch,
        cfg=c.setup.cfg,
        sites=(site,),
        loss=c.setup.settings.loss,
        rules=rules,
    )
    return attribute(
        out.acts[site], out.grads[site], where.astype(jnp.float32), c.dec_kd, c.mean_d
    )


def encoder_true(c: Compared, params: Params, batch: RowBatch, where: Any) -> jax.Array:
    """Computes Σ_t δ′."""
    site, read = c.setup.site, c.setup.read_site
    out = act_and_grad(
        params,
        batch,
        cfg=c.setup.cfg,
        sites=(site,),
        loss=c.setup.settings.loss,
        read=(read,),
    )
    codes_btk = contributions(c.setup.sae, out.acts[read], jnp.asarray(c.latents))
    rows_kd = code_rows(c.setup.sae)[c.latents]
    mean_k = jnp.asarray(c.codes.mean_n[c.latents])
    return jnp.sum(
        code_scores(codes_btk, out.grads[site], rows_kd, mean_k) * where[..., None],
        axis=1,
    )


def joint(
    c: Compared, params: Params, batch: RowBatch, where: Any, *, steps: int
) -> jax.Array:
    """Computes Σ_t δ with gradients averaged on the line that all coordinates move along
    together.
    """
    out = integrated_gradients(params, batch, c.mean_d, where, steps=steps, **c.place)
    site = c.setup.site
    return attribute(
        out.acts[site], out.grads[site], where.astype(jnp.float32), c.dec_kd, c.mean_d
    )


def per_latent(
    c: Compared, params: Params, batch: RowBatch, where: Any, *, steps: int
) -> jax.Array:
    """Computes Σ_t δ with gradients averaged on each latent's own line."""
    return integrated_latents(
        params, batch, c.dec_kd, c.mean_d, where, steps=steps, **c.place
    ).delta_btk.sum(1)


def methods(c: Compared, compare: Compare) -> dict[str, Method]:
    """Returns name -> method; the two exact ones first."""
    rules = {
        f"lrp: {name}": frozenset({name})
        for name in RULES
        if name != "centre" or c.setup.cfg.norm == "layer"
    }
    return {
        "exact": partial(exact, c),
        "exact, code": partial(exact, c, code=True),
        "plain": partial(first_order, c),
        "encoder-true": partial(encoder_true, c),
        "integrated, joint": partial(joint, c, steps=compare.steps),
        "integrated, per latent": partial(per_latent, c, steps=compare.latent_steps),
        **{
            name: partial(first_order, c, rules=of_name)
            for name, of_name in rules.items()
        },
        "lrp: all": partial(first_order, c, rules=LRP),
        "lrp: without attention": partial(first_order, c, rules=LRP - {"attention"}),
    }


# ---- running and comparing -----------------------------------------------------------


def timed(method: Method, c: Compared) -> tuple[np.ndarray, float]:
    """Runs a method on all rows, `[rows, k]`, and measures its seconds without compilation."""
    setup, programs = c.setup, {}
    where = setup.where(c.rows, setup.settings.presets()[0].tokens)
    work = [
        (batch, row_b, where(batch, row_b)) for batch, row_b in setup.batched(c.rows)
    ]
    for batch, _, where_bt in work:
        if where_bt.shape not in programs:
            programs[where_bt.shape] = (
                jax.jit(method).lower(setup.params, batch, where_bt).compile()
            )
    out, seconds = np.zeros((len(c.rows), len(c.latents))), 0.0
    for batch, row_b, where_bt in work:
        began = time.perf_counter()
        result = np.asarray(programs[where_bt.shape](setup.params, batch, where_bt))
        seconds += time.perf_counter() - began
        out[row_b[row_b >= 0]] = result[row_b >= 0]
    return out, seconds


def compared(
    values: np.ndarray, truth: np.ndarray, weights_r: np.ndarray, top: int
) -> dict[str, float]:
    """Compares two `[rows, k]` arrays: the paired means per latent, their best `top`, and
    row by row.

    `slope` is the least-squares factor by which the method's number must be multiplied
    to give the exact one.
    """
    ours_k, exact_k = weights_r @ values, weights_r @ truth
    both = agreement(ours_k, exact_k)
    return {
        "pearson": both["pearson"],
        "spearman": both["spearman"],
        "top_overlap": overlap(rank("ours", ours_k, top), rank("exact", exact_k, top)),
        "slope": float(ours_k @ exact_k / (ours_k @ ours_k)),
        "pearson_rows": agreement(values, truth)["pearson"],
    }


PRECISIONS = {  # name -> of the weights, of the residual stream
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "bfloat16, residual too": ("bfloat16", "bfloat16"),
}


def precisions(setup: Setup, top: int = 100) -> dict[str, Any]:
    """Compares Δ of the whole dictionary in lower precisions with float32: Spearman and
    overlap of the best.
    """
    out: dict[str, Any] = {}
    exact_n: np.ndarray | None = None
    for name, (dtype, resid_dtype) in PRECISIONS.items():
        settings = replace(
            setup.settings, dtype=dtype, resid_dtype=resid_dtype, gradient="plain"
        )
        other = replace(setup, settings=settings)
        stages = attribution_stages(other)
        results = run_setup(other, stages, only=MEASURED)
        scores_n = plain_scores(other, *measured_tokens(other, results))
        if exact_n is None:
            exact_n = scores_n
            continue
        a, b = rank("float32", exact_n, top), rank(name, scores_n, top)
        out[name] = {
            **agreement(exact_n, scores_n),
            "top_overlap": overlap(a, b),
            "top": top,
        }
    return out


def compare_approximations(setup: Setup, compare: Compare) -> dict[str, Any]:
    """Compares every method with exact joint mean ablation; returns plain values."""
    c = choose(setup, compare)
    _ = setup.sae, setup.params
    weights_r = side_weights(c.rows)
    values, results = {}, {}
    for name, method in methods(c, compare).items():
        values[name], seconds = timed(method, c)
        agreed = (
            {}
            if name == "exact"
            else compared(values[name], values["exact"], weights_r, compare.top)
        )
        results[name] = {**agreed, "seconds": seconds}
    by_code = compared(
        values["encoder-true"], values["exact, code"], weights_r, compare.top
    )
    return {
        "against_exact": results,
        "encoder_true_against_exact_code": by_code,
        "dtypes": precisions(setup) if compare.bfloat16 else {},
        "latents": c.latents,
        "per_latent": {name: weights_r @ v for name, v in values.items()},
        "rows": len(c.rows),
        "choices": {**choices(setup, c.limits), "compare": asdict(compare)},
    }
