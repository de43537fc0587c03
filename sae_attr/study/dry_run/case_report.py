"""The dry run of a case study: what each case needs, and what all stages cost."""

from __future__ import annotations

from statistics import median

from etils import epath

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.sample import prompt_width
from sae_attr.organism.recipe import Recipe
from sae_attr.report.tables import text_table
from sae_attr.store import stage_statuses
from sae_attr.study.attribution_cost import RowCounts, attribution_costs
from sae_attr.study.case import Case
from sae_attr.study.case_checks import check_case
from sae_attr.study.case_study import CaseStudy, judge_spec
from sae_attr.study.cost import Reading, StageCost, case_costs, longest_answer
from sae_attr.study.dry_run.judge_trial import try_judge
from sae_attr.study.dry_run.memory import Held, sampling_memory
from sae_attr.study.dry_run.prompts import ends_text, example_text, prompts_table
from sae_attr.study.dry_run.rates import Rates, RatesOf
from sae_attr.study.dry_run.report import DryRun, models_table
from sae_attr.study.dry_run.setup_report import (
    add_inputs,
    attribution_memory,
    lasting_memory,
)


def case_study_dry_run(study: CaseStudy, rates_of: RatesOf) -> DryRun:
    """Finds out what a study needs; no weights are loaded and nothing is written.

    Args:
      rates_of: called once for every architecture.
    """
    report = DryRun()
    costs: list[StageCost] = []
    rates: dict[str, Rates] = {}
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
        rates |= {cost.stage: known[cfg] for cost in of_case}
    if study.recipe is not None:
        report.add("organism", _organism_text(study.recipe))
    _add_judges(study, report)
    statuses = stage_statuses(study.runtime.store, study.stages)
    report.add_stages(costs, rates, statuses)
    return report


def whole_costs(case: Case) -> list[StageCost]:
    """Returns the costs of all stages of a case that take long, in their order."""
    setup, longest = case.setup, longest_answer(case)
    lengths = [len(ids) for ids in case.prompt_ids("pairs").values()]
    rows = 2 * case.settings.per_side * min(case.settings.pairs, len(lengths))
    counts = RowCounts(
        rows, int(rows * (median(lengths) + longest)) if lengths else 0, rows * longest
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
    of = f"case {case.name}"
    if case.settings.organism is None:
        report.attempt(lambda: check_case(case), of)
    return report.attempt(lambda: (case.setup.sae_cfg, _widths(case)), of)


def _add_case(case: Case, report: DryRun) -> None:
    setup, prefix = case.setup, f"{case.name}: "
    add_inputs(report, [setup], prefix)
    prompts = {split: case.prompt_ids(split) for split in case.split_prompts}
    max_new = case.study.sampling.max_new
    lines = [
        prompts_table(prompts, max_new=max_new, context=setup.cfg.max_len),
        example_text(prompts, setup.tokenizer),
        ends_text(case.stop_ids, setup.ends, setup.tokenizer),
    ]
    report.add(f"{prefix}prompts through the chat template", "\n".join(lines))
    report.add_memory(f"{prefix}memory", case_memory(case), case.runtime.mesh)


def case_memory(case: Case) -> list[Held]:
    """Returns what a case holds on each device, and while what."""
    setup, max_new = case.setup, case.study.sampling.max_new
    width = max(_widths(case).values(), default=0)
    sampled = sampling_memory(
        setup.cfg,
        case.runtime.mesh,
        case.study.dtype,
        rows=case.runtime.batch_size,
        slots=width + max_new,
    )
    answer = longest_answer(case)
    longest = min(width + answer, setup.context)
    rows = 2 * case.settings.per_side * case.settings.pairs
    attributed = attribution_memory(setup, longest, answer, rows)
    return [*lasting_memory([setup]), *sampled, *attributed]


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
