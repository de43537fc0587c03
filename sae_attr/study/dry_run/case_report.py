"""The dry run of a case study: what each case needs, and what all stages cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

from sae_attr.lm.config import LMConfig
from sae_attr.lm.prompts import prompt_width
from sae_attr.organism.build import stage_names
from sae_attr.store import stage_statuses
from sae_attr.study.attribution_cost import RowCounts, attribution_costs, shape_of
from sae_attr.study.case import Case
from sae_attr.study.case_checks import (
    check_case,
    check_dictionaries,
    has_files,
    measured_by,
)
from sae_attr.study.case_study import CaseStudy
from sae_attr.study.continuation_texts import prompt_texts
from sae_attr.study.cost import Reading, StageCost, case_costs
from sae_attr.study.dry_run.judge_trial import Trial
from sae_attr.study.dry_run.memory import Held, exact_memory, sampling_memory
from sae_attr.study.dry_run.organism_report import (
    WIDTH,
    organism_cfg,
    organism_costs,
    organism_text,
    unbuilt_case_costs,
)
from sae_attr.study.dry_run.prompts import ends_text, example_text, prompts_table
from sae_attr.study.dry_run.rates import Batch, Rates, RatesOf
from sae_attr.study.dry_run.report import DryRun
from sae_attr.study.dry_run.server_trial import try_servers
from sae_attr.study.dry_run.setup_report import (
    add_inputs,
    attribution_memory,
    lasting_memory,
)
from sae_attr.study.judges import judge_spec


def case_study_dry_run(study: CaseStudy, rates_of: RatesOf) -> DryRun:
    """Finds out what a study needs; no weights are loaded and nothing is written.

    Args:
      rates_of: called once for every architecture.
    """
    report = DryRun()
    costs: list[StageCost] = []
    rates: dict[str, Rates] = {}
    rates_by_cfg: dict[LMConfig, Rates] = {}
    servers: dict[str, Trial] = {}

    def of_cfg(cfg: LMConfig, width: int) -> Rates:
        slots = width + study.settings.sampling.max_new
        batch = Batch(study.runtime.batch_size, slots)
        if cfg not in rates_by_cfg:
            rates_by_cfg[cfg] = rates_of(cfg, batch, study.settings.dtype)
        return rates_by_cfg[cfg]

    def add_costs(added: list[StageCost], cfg: LMConfig, width: int) -> None:
        costs.extend(added)
        rates.update(dict.fromkeys([cost.stage for cost in added], of_cfg(cfg, width)))

    for case in study.cases:
        if case.dictionaries:
            of = f"case {case.name}"
            report.attempt(partial(check_dictionaries, case), of)
        if study.recipe is not None and not has_files(case):
            of_case = unbuilt_case_costs(case, study.recipe)
            add_costs(of_case, organism_cfg(study.recipe), WIDTH)
            continue
        if not _checked(case, report):
            continue
        _add_case(case, report)
        servers |= {f"{case.name}: {k}": v for k, v in try_servers(case).items()}
        add_costs(whole_costs(case), case.setup.cfg, max(_widths(case).values()))
    if study.recipe is not None:
        report.add("organism", organism_text(study.recipe))
        of_organism = organism_costs(study.recipe, stage_names(study.recipe))
        add_costs(of_organism, organism_cfg(study.recipe), WIDTH)
    _add_judges(study, costs, report)
    report.add_trials("server", servers)
    statuses = stage_statuses(study.runtime.store, study.stages)
    report.add_stages(costs, rates, statuses)
    return report


def whole_costs(case: Case) -> list[StageCost]:
    """Returns the costs of all stages of a case that take long, in their order."""
    layers = case.setup.cfg.n_layers
    reading = Reading(layers, layers - case.setup.site.layer, _widths(case))
    costs = case_costs(case, reading)
    costs += attribution_costs(
        shape_of(case.setup), pair_counts(case), prefix=f"{case.name}."
    )
    return [*costs, _passages_cost(case)]


def pair_counts(case: Case) -> RowCounts:
    """Returns the completions of the pairs in numbers, as far as they can be known: as
    many as the settings take, each as long as it may be.
    """
    prompts, prompt_ids = case.prompts("pairs"), case.prompt_ids("pairs")
    scored = []
    for prompt in prompts:
        longest = case.study.sampling.max_new
        if case.study.pairs_by == "continuations":
            longest = max(len(ids) for ids in prompt_texts(case, prompt).ids)
        scored.append(longest)
    if not prompts:
        return RowCounts(0, 0, 0)
    rows = 2 * case.settings.per_side * min(case.settings.pairs, len(prompts))
    of_answer = median(scored)
    of_prompt = median([len(ids) for ids in prompt_ids.values()])
    return RowCounts(rows, int(rows * (of_prompt + of_answer)), int(rows * of_answer))


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


def _checked(case: Case, report: DryRun) -> bool:
    """Runs the checks of a case; returns whether enough can be read to go on."""
    of = f"case {case.name}"
    if case.settings.organism is None:
        report.attempt(lambda: check_case(case), of)
    return report.attempt(
        lambda: (case.setup.sae_cfg, _widths(case), _new_tokens(case)), of
    )


def _add_case(case: Case, report: DryRun) -> None:
    setup, prefix = case.setup, f"{case.name}: "
    add_inputs(report, [setup], prefix)
    prompts = {split: case.prompt_ids(split) for split in case.split_prompts}
    lines = [
        prompts_table(prompts, max_new=_new_tokens(case), context=setup.cfg.max_len),
        example_text(prompts, setup.tokenizer),
        ends_text(case.stop_ids, setup.ends, setup.tokenizer),
    ]
    report.add(f"{prefix}prompts through the chat template", "\n".join(lines))
    report.add_memory(f"{prefix}memory", case_memory(case), case.runtime.mesh)


def _new_tokens(case: Case) -> dict[str, int]:
    """Returns split -> tokens that may follow its prompts: answers, or texts."""
    new = {}
    for split in case.split_prompts:
        new[split] = case.study.sampling.max_new
        if measured_by(case.study, split) != "samples":
            texts = [prompt_texts(case, prompt).ids for prompt in case.prompts(split)]
            new[split] = max((len(ids) for of in texts for ids in of), default=0)
    return new


def case_memory(case: Case) -> list[Held]:
    """Returns what a case holds on each device, and while what."""
    setup, study, mesh = case.setup, case.study, case.runtime.mesh
    widths, new = _widths(case), _new_tokens(case)
    size = case.runtime.batch_size
    parts = lasting_memory([setup])
    if any(cost.samples for cost in case_costs(case)):
        slots = max(widths.values()) + study.sampling.max_new
        parts += sampling_memory(setup.cfg, mesh, study.dtype, rows=size, slots=slots)
    by = {split: measured_by(study, split) for split in widths}
    slots = [widths[split] + new[split] for split in widths if by[split] != "samples"]
    if slots:
        parts += exact_memory(setup.cfg, mesh, study.dtype, rows=size, slots=max(slots))
    longest = min(widths["pairs"] + new["pairs"], setup.context)
    rows = pair_counts(case).rows
    return [*parts, *attribution_memory(setup, longest, new["pairs"], rows)]


# ---- the whole study -----------------------------------------------------------------


def _add_judges(study: CaseStudy, costs: Sequence[StageCost], report: DryRun) -> None:
    """Asks the judge of every case one question, where something is graded."""
    if not any(cost.judged for cost in costs):
        return
    specs = {
        f"case {case.name}": judge_spec(case.settings) for case in study.real_cases
    }
    report.add_judges(specs, study.runtime.mesh)
