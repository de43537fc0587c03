"""The dry run of a case study: what each case needs, and what all stages cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from etils import epath

from sae_attr.attribution.score_registry import SCORES
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.sample import prompt_width
from sae_attr.organism.recipe import Recipe
from sae_attr.report.numbers import duration
from sae_attr.report.tables import text_table
from sae_attr.store import stage_statuses
from sae_attr.study.attribution_cost import RowCounts, attribution_costs
from sae_attr.study.case import Case
from sae_attr.study.case_checks import check_case
from sae_attr.study.case_study import CaseStudy, judge_spec
from sae_attr.study.cost import Reading, StageCost, case_costs, cost_table
from sae_attr.study.dry_run.judge_trial import try_judge
from sae_attr.study.dry_run.memory import (
    Held,
    backward_bytes,
    cache_bytes,
    sae_bytes,
    weight_bytes,
)
from sae_attr.study.dry_run.prompts import ends_text, example_text, prompts_table
from sae_attr.study.dry_run.rates import Rates
from sae_attr.study.dry_run.report import (
    DryRun,
    memory_text,
    models_table,
    saes_table,
)
from sae_attr.study.setup import Setup
from sae_attr.study.stages import firing

RatesOf = Callable[[LMConfig, int, str], Rates]
"""(model, rows of a batch of completions, dtype) -> how fast it computes."""

_ASSUMED = (
    "every answer has all its new tokens; the work of matrix products alone, without "
    "compiling, loading, judges and statistics"
)


def case_study_dry_run(study: CaseStudy, rates_of: RatesOf) -> DryRun:
    """Finds out what a study needs; no weights are loaded and nothing is written.

    Args:
      rates_of: called once for every architecture.
    """
    report = DryRun()
    costs: list[StageCost] = []
    seconds: dict[str, float] = {}
    known: dict[LMConfig, Rates] = {}
    for case in study.cases:
        if not _is_there(case):
            costs += case_costs(case)
            continue
        if not _checked(case, report):
            continue
        _add_case(case, report)
        of_case = whole_costs(case)
        costs += of_case
        cfg = case.setup.cfg
        if cfg not in known:
            known[cfg] = rates_of(cfg, study.runtime.batch_size, study.settings.dtype)
        for cost in of_case:
            seconds[cost.stage] = known[cfg].seconds(cost)
    if study.recipe is not None:
        report.add("organism", _organism_text(study.recipe))
    _add_judges(study, report)
    _add_costs(study, costs, seconds, list(known.values()), report)
    return report


def whole_costs(case: Case) -> list[StageCost]:
    """Returns the costs of all stages of a case that take long, in their order."""
    setup, max_new = case.setup, case.study.sampling.max_new
    lengths = [len(ids) for ids in case.prompt_ids("pairs").values()]
    rows = 2 * case.settings.per_side * min(case.settings.pairs, len(lengths))
    counts = RowCounts(
        rows, int(rows * (median(lengths) + max_new)) if lengths else 0, rows * max_new
    )
    layers = setup.cfg.n_layers
    reading = Reading(layers, layers - setup.site.layer, _widths(case))
    sampling = case_costs(case, reading)
    costs = [*sampling, *attribution_costs(setup, counts, prefix=f"{case.name}.")]
    return [*costs, _passages_cost(case)]


def _passages_cost(case: Case) -> StageCost:
    """Returns the cost of the search for passages."""
    study, setup = case.study, case.setup
    tokens = study.passage_tokens if study.passages and study.interpreted else 0
    flops = 2 * setup.sae_cfg.n_latents * setup.sae_cfg.d_in * tokens
    read = tokens * (setup.read_site.layer + 1)
    return StageCost(f"{case.name}.interpret", read=read, flops=flops)


def _widths(case: Case) -> dict[str, int]:
    """Returns split -> tokens of a prompt in a batch of completions."""
    widths = {}
    for split in case.split_prompts:
        lengths = [len(ids) for ids in case.prompt_ids(split).values()]
        widths[split] = prompt_width(
            lengths, cfg=case.setup.cfg, sampling=case.sampling
        )
    return widths


# ---- a case --------------------------------------------------------------------------


def _is_there(case: Case) -> bool:
    """Returns whether the files of a case exist: the organism's are made by the run."""
    return not case.file_stages or epath.Path(case.files.lm).exists()


def _checked(case: Case, report: DryRun) -> bool:
    """Runs the checks of a case; returns whether enough can be read to go on."""
    try:
        check_case(case)
    except (ValueError, OSError) as error:
        report.add_fault(f"case {case.name}: {error}")
    try:
        _ = case.setup.sae_cfg, case.stop_ids, _widths(case)
    except (ValueError, OSError) as error:
        report.add_fault(f"case {case.name}: {error}")
        return False
    return True


def _add_case(case: Case, report: DryRun) -> None:
    setup, files, name = case.setup, case.files, case.name
    models = {files.lm: setup.cfg}
    if files.lm_aligned:
        models[files.lm_aligned] = setup.cfg
    report.add(f"{name}: models", models_table(models, case.study.dtype))
    sites = {files.sae: str(setup.site)}
    report.add(f"{name}: SAE", saes_table({files.sae: setup.sae_cfg}, sites))
    prompts = {split: case.prompt_ids(split) for split in case.split_prompts}
    max_new = case.study.sampling.max_new
    lines = [
        prompts_table(prompts, max_new=max_new, context=setup.cfg.max_len),
        example_text(prompts, setup.tokenizer),
        ends_text(case.stop_ids, setup.ends, setup.tokenizer),
    ]
    report.add(f"{name}: prompts through the chat template", "\n".join(lines))
    text, fault = memory_text(case_memory(case), case.runtime.mesh)
    report.add(f"{name}: memory", text)
    if fault:
        report.add_fault(f"case {name}: {fault}")


def case_memory(case: Case) -> list[Held]:
    """Returns what a case holds on each device, and while what."""
    setup, mesh, dtype = case.setup, case.runtime.mesh, case.study.dtype
    cfg, s, max_new = setup.cfg, setup.settings, case.study.sampling.max_new
    weights = weight_bytes(cfg, mesh, dtype)
    parts = [Held("weights", weights)]
    if case.files.lm_aligned and not setup.no_second_model:
        parts.append(Held("weights of the second model", weights))
    if s.sae_check_tokens or setup.firing_positions >= firing.LEAST:
        for what, count in sae_bytes(setup.sae_cfg).items():
            parts.append(Held(f"SAE {what}", count))
    rows, width = case.runtime.batch_size, max(_widths(case).values(), default=0)
    cache = cache_bytes(cfg, mesh, dtype, rows=rows, slots=width + max_new)
    sampling = "completions are sampled"
    parts.append(Held("keys and values", cache, sampling))
    per_device = max(rows // mesh.shape["data"], 1)
    # Logits, their weights and the sums that a draw compares.
    parts.append(Held("next-token numbers", 3 * 4 * per_device * cfg.vocab, sampling))
    longest = min(width + max_new, setup.context)
    return parts + attribution_memory(setup, longest, max_new, 2 * case.settings.pairs)


def attribution_memory(setup: Setup, width: int, scored: int, rows: int) -> list[Held]:
    """Returns what an attribution holds on each device beside weights and SAE.

    Args:
      width: tokens of its longest row.
      scored: tokens of its longest completion.
      rows: completions.
    """
    cfg, s, mesh = setup.cfg, setup.settings, setup.mesh
    batch = -(-s.batch_size // mesh.shape["data"]) * mesh.shape["data"]
    kept = backward_bytes(
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
    gradients, scores = "gradients are taken", "latents are scored"
    corpus = 4 * s.corpus_batch * setup.corpus_context * d // mesh.shape["data"]
    return [
        Held("products of the backward pass", kept, gradients),
        Held("next-token numbers", 2 * 4 * per_device * scored * cfg.vocab, gradients),
        Held("activations of a corpus batch", corpus, "the corpus is read"),
        Held("moments", 4 * d * d * len(s.presets()), scores),
        Held("activations and gradients of the pairs", 8 * rows * width * d, scores),
        Held("scores", 4 * n * len(SCORES), scores),
    ]


# ---- the whole study -----------------------------------------------------------------


def _organism_text(recipe: Recipe) -> str:
    cfg = config_from_hf(recipe.hf(), "the organism's recipe")
    table = models_table({"each of its four models": cfg}, "float32")
    return (
        f"{table}\nSAE of {recipe.sae.latents:,} latents at {recipe.site}; the run makes "
        "them in its first stages, as far as they are not there"
    )


def _add_judges(study: CaseStudy, report: DryRun) -> None:
    """Asks every case's judge one question."""
    cases, outcomes = [], []
    for case in study.real_cases:
        trial = try_judge(judge_spec(case.settings), study.runtime.mesh)
        cases.append(case)
        outcomes.append(trial)
        if not trial.answered:
            report.add_fault(f"case {case.name}: its judge: {trial.words}")
    if not cases:
        return
    columns = {
        "judge of": [case.name for case in cases],
        "kind": [str(case.settings.judge.get("kind")) for case in cases],
        "state": ["ok" if trial.answered else "error" for trial in outcomes],
        "one question": [trial.words for trial in outcomes],
    }
    report.add("judges", text_table(columns))


def _add_costs(
    study: CaseStudy,
    costs: Sequence[StageCost],
    seconds: Mapping[str, float],
    rates: Sequence[Rates],
    report: DryRun,
) -> None:
    statuses = stage_statuses(study.runtime.store, study.stages)
    states = {status.name: status.state for status in statuses}
    order = {status.name: place for place, status in enumerate(statuses)}
    in_order = sorted(costs, key=lambda cost: order.get(cost.stage, len(order)))
    lines = [cost_table(in_order, states, seconds)]
    for each in rates:
        lines.append(f"rates {each.source}: {_shown(each)}")
    lines.append(f"assumed: {_ASSUMED}")
    counts = {}
    for status in statuses:
        counts[status.state] = counts.get(status.state, 0) + 1
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines.append(f"of {len(statuses)} stages: {summary}")
    report.add("stages", "\n".join(lines))


def _shown(rates: Rates) -> str:
    return (
        f"{rates.read:.1e} s a token and layer, {rates.head:.1e} s a token of the "
        f"vocabulary, {duration(rates.step)} for one more token of a batch"
    )
