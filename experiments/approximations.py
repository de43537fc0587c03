"""How well each approximation stands in for exact ablation, side by side; see
configs/approximations.py for the command.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from sae_attr import parallel
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
from sae_attr.attribution.corpus import CodeStatistics
from sae_attr.attribution.encoder import code_scores, contributions
from sae_attr.attribution.table import side_weights
from sae_attr.hooks import Add, Edit, SetProjection
from sae_attr.lm.lrp import LRP, PLAIN, RULES, Rules
from sae_attr.lm.model import Params, forward
from sae_attr.report.tables import json_text, text_table
from sae_attr.sae.model import code_rows
from sae_attr.store import Store, write_atomic
from sae_attr.study.attribution_stages import firing_stage, gradient_stage, mean_stage
from sae_attr.study.candidates import ablated_rows, decoder_rows
from sae_attr.study.outcome import choices
from sae_attr.study.setup import Setup
from sae_attr.text.batching import RowBatch

from . import _common
from ._config import settings_of
from ._flags import CONFIG

OUT = flags.DEFINE_string(
    "out", None, "JSON file for the numbers; stages are stored beside it."
)

Method = Callable[[Params, RowBatch, Any], jax.Array]
"""(params, batch, where_bt) -> per row and chosen latent the effect of all positions
`where_bt` together, `[b, k]`.
"""


@dataclasses.dataclass(frozen=True)
class Compare:
    """What is compared; see configs/approximations.py."""

    latents: int
    random: int
    rows: int
    steps: int
    latent_steps: int
    top: int
    bfloat16: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """The latents that are compared, with what every method needs of them; and the rows
    they are compared on.
    """

    setup: Setup
    codes: CodeStatistics
    latents: np.ndarray
    dec_kd: jax.Array
    mean_d: jax.Array
    rows: list[Any]

    @property
    def place(self) -> dict[str, Any]:
        """Where the model is read, and which loss it has: keywords of every method."""
        return {
            "cfg": self.setup.cfg,
            "site": self.setup.site,
            "loss": self.setup.settings.loss,
        }


def choose(setup: Setup, compare: Compare) -> Chosen:
    """The best latents by plain Δ over the primary scope, and random ones of like
    firing rate.
    """
    mean, mean_result = mean_stage(setup)
    table, _ = gradient_stage(setup, mean, mean_result.key)
    codes, _ = firing_stage(setup)
    weights_k = token_weights(
        table.rows, setup.settings.presets()[0].tokens, setup.exclude
    )
    scores_n = score_moment(
        table_moment(table, weights_k),
        jnp.asarray(mean.mean_d, jnp.float32),
        setup.decoder,
    )
    best = rank("plain", scores_n, compare.latents).latents_k
    others = random_matched(
        "random", codes.rate_n, best, compare.random, setup.key(6)
    ).latents_k
    latents = np.concatenate([best, others])
    rows = ablated_rows(setup.rows, compare.rows)
    mean_d = jnp.asarray(mean.mean_d, setup.cfg.resid_dtype)
    return Chosen(
        setup, codes, latents, decoder_rows(setup.decoder, latents), mean_d, rows
    )


# ---- the methods ---------------------------------------------------------------------


def exact(
    c: Chosen, params: Params, batch: RowBatch, where: Any, *, code: bool = False
) -> jax.Array:
    """ΔL of putting a latent back to its mean at all positions: its projection, or
    (`code`) what the SAE's code adds.
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


def _codes(c: Chosen, params: Params, batch: RowBatch) -> jax.Array:
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
    c: Chosen, params: Params, batch: RowBatch, where: Any, *, rules: Rules = PLAIN
) -> jax.Array:
    """Σ_t δ with plain gradients, or with backward rules."""
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


def encoder_true(c: Chosen, params: Params, batch: RowBatch, where: Any) -> jax.Array:
    """Σ_t δ′."""
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
    c: Chosen, params: Params, batch: RowBatch, where: Any, *, steps: int
) -> jax.Array:
    """Σ_t δ with gradients averaged on the line that all coordinates move along
    together.
    """
    out = integrated_gradients(params, batch, c.mean_d, where, steps=steps, **c.place)
    site = c.setup.site
    return attribute(
        out.acts[site], out.grads[site], where.astype(jnp.float32), c.dec_kd, c.mean_d
    )


def per_latent(
    c: Chosen, params: Params, batch: RowBatch, where: Any, *, steps: int
) -> jax.Array:
    """Σ_t δ with gradients averaged on each latent's own line."""
    return integrated_latents(
        params, batch, c.dec_kd, c.mean_d, where, steps=steps, **c.place
    ).delta_btk.sum(1)


def methods(c: Chosen, compare: Compare) -> dict[str, Method]:
    """Name -> method; the two exact ones first."""
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
            name: partial(first_order, c, rules=chosen)
            for name, chosen in rules.items()
        },
        "lrp: all": partial(first_order, c, rules=LRP),
        "lrp: without attention": partial(first_order, c, rules=LRP - {"attention"}),
    }


# ---- running and comparing -----------------------------------------------------------


def timed(method: Method, c: Chosen) -> tuple[np.ndarray, float]:
    """A method on all rows, `[rows, k]`, and its seconds without compilation."""
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
    """Agreement of two `[rows, k]` arrays: of the paired means per latent, of their
    best `top`, and row by row.

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


def dtypes(setup: Setup, top: int = 100) -> dict[str, Any]:
    """Δ of the whole dictionary with bfloat16 weights (and residual stream) beside
    float32: Spearman and top overlap.
    """
    scores, out = {}, {}
    for name, resid in (
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("bfloat16, residual too", "bfloat16"),
    ):
        settings = dataclasses.replace(
            setup.settings,
            dtype=name.split(",")[0],
            resid_dtype=resid,
            gradient="plain",
        )
        other = dataclasses.replace(setup, settings=settings)
        mean, mean_result = mean_stage(other)
        table, _ = gradient_stage(other, mean, mean_result.key)
        weights_k = token_weights(
            table.rows, settings.presets()[0].tokens, other.exclude
        )
        moment = table_moment(table, weights_k)
        scores[name] = np.asarray(
            score_moment(moment, jnp.asarray(mean.mean_d, jnp.float32), other.decoder)
        )
        if name != "float32":
            a, b = (rank(n, scores[n], top) for n in ("float32", name))
            out[name] = {
                **agreement(scores["float32"], scores[name]),
                "top_overlap": overlap(a, b),
                "top": top,
            }
    return out


def table_text(results: Mapping[str, Mapping[str, float]], top: int) -> str:
    """Returns the comparison as a table, a line per method."""
    titles = {
        "pearson": "Pearson",
        "spearman": "Spearman",
        "top_overlap": f"top {top}",
        "slope": "slope",
        "pearson_rows": "rows",
        "seconds": "seconds",
    }
    columns: dict[str, Any] = {"method": list(results)}
    for key, title in titles.items():
        columns[title] = [numbers.get(key) for numbers in results.values()]
    return text_table(columns, dict.fromkeys(titles.values(), ".3f"))


def run(setup: Setup, compare: Compare) -> dict[str, Any]:
    """Every method against exact joint mean ablation; returns what the JSON holds."""
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
        "dtypes": dtypes(setup) if compare.bfloat16 else {},
        "latents": c.latents,
        "per_latent": {name: weights_r @ v for name, v in values.items()},
        "rows": len(c.rows),
        "choices": {**choices(setup), "compare": dataclasses.asdict(compare)},
        "versions": _common.versions(),
    }


def main(argv: Sequence[str]) -> None:
    """Runs the comparison, prints its tables and writes the numbers."""
    _common.begin(argv, cluster=False)
    config, out = CONFIG.value, epath.Path(str(OUT.value))
    mesh, began = parallel.make_mesh(str(config.mesh)), time.perf_counter()
    store = Store(out.parent / f"{out.stem}_store", writer=True)
    setup = Setup(_common.settings_of(config), store, mesh, progress=False)
    setup.check(weights=True)
    compare = settings_of(Compare, config.compare, where="config.compare")
    result = run(setup, compare)
    result["wall_seconds"] = time.perf_counter() - began
    write_atomic(out, json_text(result))
    print(
        f"{len(result['latents'])} latents, {result['rows']} completions, against "
        "exact joint mean ablation"
    )
    print(table_text(result["against_exact"], compare.top))
    found = {
        "encoder-true, against exact code": result["encoder_true_against_exact_code"],
        **result["dtypes"],
    }
    print(
        "\nencoder-true against what the code adds; Δ of all latents in other "
        f"precisions (top 100)\n{table_text(found, 20)}"
    )
    print(f"\n{result['wall_seconds']:.0f} s; wrote {out}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    _common.run_app(main)
