"""The dry run of an attribution: model, SAEs, pairs, memory, and the cost of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from sae_attr.attribution.score_registry import SCORES
from sae_attr.hooks import Site
from sae_attr.report.tables import text_table
from sae_attr.store import stage_statuses
from sae_attr.study.attribution_cost import (
    RowCounts,
    attribution_costs,
    counted_rows,
    shape_of,
)
from sae_attr.study.attribution_stages import attribution_stages
from sae_attr.study.cost import StageCost
from sae_attr.study.dry_run.memory import (
    Held,
    backward_bytes,
    sae_bytes,
    weight_bytes,
)
from sae_attr.study.dry_run.prompts import ends_text, shown_ids
from sae_attr.study.dry_run.rates import Batch, RatesOf
from sae_attr.study.dry_run.report import DryRun, models_table, saes_table
from sae_attr.study.setup import Setup
from sae_attr.study.site_ranking import STAGES as SITE_STAGES
from sae_attr.study.stages import firing, gradients, sae_check, scores
from sae_attr.study.stages.context import Context


def attribution_dry_run(setup: Setup, rates_of: RatesOf) -> DryRun:
    """Finds out what an attribution needs; no weights are loaded.

    Raises:
      ValueError: inputs that do not fit each other.
    """
    report = DryRun()
    setup.check(weights=False)
    add_inputs(report, [setup])
    add_pairs(report, setup)
    rows = counted_rows(setup.encoded.rows)
    parts = [*lasting_memory([setup]), *attribution_memory(setup, *row_sizes(setup))]
    report.add_memory("memory", parts, setup.mesh)
    rates = rates_of(setup.cfg, Batch(), setup.settings.dtype)
    statuses = stage_statuses(setup.store, attribution_stages(setup))
    report.add_stages(attribution_costs(shape_of(setup), rows), rates, statuses)
    return report


def sites_dry_run(setups: Mapping[Site, Setup], rates_of: RatesOf) -> DryRun:
    """Finds out what a ranking of several SAEs needs; no weights are loaded.

    Args:
      setups: by site, of one model and one file of pairs.
    """
    report = DryRun()
    first = next(iter(setups.values()))
    for setup in setups.values():
        setup.check(weights=False)
    add_inputs(report, list(setups.values()))
    add_pairs(report, first)
    lowest = min(setups.values(), key=lambda setup: setup.site.layer)
    parts = lasting_memory(list(setups.values()))
    parts += attribution_memory(lowest, *row_sizes(lowest))
    report.add_memory("memory", parts, first.mesh)
    costs, statuses = [], []
    for site, setup in setups.items():
        of_site = attribution_costs(shape_of(setup), counted_rows(setup.encoded.rows))
        # Gradients of all sites come from one pass, down to the lowest.
        kept = {*SITE_STAGES, scores.NAME}
        if setup is lowest:
            kept.add(gradients.NAME)
        costs += [_at(site, cost) for cost in of_site if cost.stage in kept]
        for status in stage_statuses(setup.store, attribution_stages(setup)):
            if status.name in SITE_STAGES:
                statuses.append(replace(status, name=f"{site} {status.name}"))
    rates = rates_of(first.cfg, Batch(), first.settings.dtype)
    report.add_stages(costs, rates, statuses)
    return report


def check_dry_run(setup: Setup, rates_of: RatesOf) -> DryRun:
    """Finds out what the check of an SAE needs; no weights are loaded."""
    report = DryRun()
    setup.corpus.check()
    add_inputs(report, [setup])
    report.add_memory("memory", lasting_memory([setup]), setup.mesh)
    costs = attribution_costs(shape_of(setup), RowCounts(0, 0, 0))
    checked = [cost for cost in costs if cost.stage == sae_check.NAME]
    rates = rates_of(setup.cfg, Batch(), setup.settings.dtype)
    statuses = stage_statuses(setup.store, [sae_check.stage(Context(setup))])
    report.add_stages(checked, rates, statuses)
    return report


def _at(site: Site, cost: StageCost) -> StageCost:
    return replace(cost, stage=f"{site} {cost.stage}")


# ---- sections ------------------------------------------------------------------------


def add_inputs(report: DryRun, setups: Sequence[Setup], prefix: str = "") -> None:
    """Adds the shapes of models and SAEs, and where the SAEs belong.

    Args:
      setups: of one model.
      prefix: of the titles.
    """
    first = setups[0]
    models = {first.settings.lm: first.cfg}
    if first.settings.lm_aligned:
        models[first.settings.lm_aligned] = first.cfg
    report.add(f"{prefix}models", models_table(models, first.settings.dtype))
    saes = [(x.settings.sae, x.sae_cfg, str(x.site)) for x in setups]
    report.add(f"{prefix}SAE", saes_table(saes))


def add_pairs(report: DryRun, setup: Setup) -> None:
    """Adds the tokens of the pairs' rows, one of them as the model reads it, and what
    ends a completion.
    """
    rows = setup.encoded.rows
    lengths = {
        "prompt": [row.n_prompt for row in rows],
        "completion": [len(row.ids) - row.n_prompt for row in rows],
        "both": [len(row.ids) for row in rows],
    }
    columns = {
        "tokens of": list(lengths),
        "rows": [len(rows)] * len(lengths),
        "min": [min(counts) for counts in lengths.values()],
        "median": [int(median(counts)) for counts in lengths.values()],
        "max": [max(counts) for counts in lengths.values()],
        "of context": [None, None, setup.context],
    }
    tok = setup.tokenizer
    ends = tuple(dict.fromkeys(i for ids in setup.ends.values() for i in ids))
    lines = [
        text_table(columns, dict.fromkeys(list(columns)[1:], ",")),
        f"{len(setup.pairs)} pairs; the first row: {shown_ids(rows[0].ids, tok)}",
        ends_text(ends, setup.ends, tok),
    ]
    report.add("pairs through the chat template", "\n".join(lines))


# ---- memory --------------------------------------------------------------------------


def row_sizes(setup: Setup) -> tuple[int, int, int]:
    """Returns tokens of the longest row and of the longest completion, and the number
    of rows.
    """
    rows = setup.encoded.rows
    longest = max(len(row.ids) for row in rows)
    return longest, max(len(row.ids) - row.n_prompt for row in rows), len(rows)


def lasting_memory(setups: Sequence[Setup]) -> list[Held]:
    """Returns weights and SAEs, which stay on the devices once they are loaded.

    Args:
      setups: of one model.
    """
    first = setups[0]
    weights = weight_bytes(first.cfg, first.mesh, first.settings.dtype)
    parts = [Held("weights", weights)]
    if first.settings.lm_aligned and not first.no_second_model:
        parts.append(Held("weights of the second model", weights))
    for setup in setups:
        s = setup.settings
        if not (s.sae_check_tokens or setup.firing_positions >= firing.LEAST):
            continue
        at = f" at {setup.site}" if len(setups) > 1 else ""
        for what, count in sae_bytes(setup.sae_cfg).items():
            parts.append(Held(f"SAE {what}{at}", count))
    return parts


def attribution_memory(setup: Setup, width: int, scored: int, rows: int) -> list[Held]:
    """Returns what an attribution holds on each device beside weights and SAE.

    Args:
      width: tokens of its longest row.
      scored: tokens of its longest completion.
      rows: completions.
    """
    cfg, s, mesh = setup.cfg, setup.settings, setup.mesh
    batch = -(-s.batch_size // mesh.shape["data"]) * mesh.shape["data"]
    products = backward_bytes(
        cfg,
        mesh,
        s.dtype,
        rows=batch,
        width=width,
        layers=cfg.n_layers - setup.site.layer,
        remat=s.remat,
    )
    per_device = batch // mesh.shape["data"]
    d, n = cfg.width(setup.site.point), setup.sae_cfg.n_latents
    taken, scored_now = "gradients are taken", "latents are scored"
    corpus = 4 * s.corpus_batch * setup.corpus_context * d // mesh.shape["data"]
    return [
        Held("products of the backward pass", products, taken),
        Held("next-token numbers", 2 * 4 * per_device * scored * cfg.vocab, taken),
        Held("activations of a corpus batch", corpus, "the corpus is read"),
        Held("moments", 4 * d * d * len(s.presets()), scored_now),
        Held("activations and gradients", 8 * rows * width * d, scored_now, True),
        Held("scores", 4 * n * len(SCORES), scored_now, True),
    ]
