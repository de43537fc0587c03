"""The dry run of a sweep that steers named latents."""

from __future__ import annotations

from sae_attr.lm.prompts import prompt_width
from sae_attr.steering.interventions import INTERVENTIONS
from sae_attr.study.cost import StageCost
from sae_attr.study.dry_run.memory import Held, sae_bytes, sampling_memory, weight_bytes
from sae_attr.study.dry_run.prompts import ends_text, example_text, prompts_table
from sae_attr.study.dry_run.rates import Batch, RatesOf
from sae_attr.study.dry_run.report import DryRun, models_table, saes_table
from sae_attr.study.stages import mean_activation
from sae_attr.study.steering_job import SteeringJob


def steer_dry_run(job: SteeringJob, rates_of: RatesOf) -> DryRun:
    """Finds out what a sweep needs; no weights are loaded."""
    report, setup, s = DryRun(), job.setup, job.setup.settings
    cfg, max_new = setup.cfg, job.sampling.max_new
    report.add("models", models_table({s.lm: cfg}, s.dtype))
    if s.sae:
        report.add("SAE", saes_table([(s.sae, setup.sae_cfg, str(setup.site))]))
    prompts = {"the sweep": job.prompts}
    lines = [
        prompts_table(prompts, max_new=max_new, context=setup.context),
        example_text(prompts, setup.tokenizer),
        ends_text(job.sampling.stop_ids, setup.ends, setup.tokenizer),
    ]
    report.add("prompts through the chat template", "\n".join(lines))
    lengths = [len(ids) for ids in job.prompts.values()]
    width = prompt_width(lengths, cfg=cfg, sampling=job.sampling)
    rows = -(-job.settings.batch_size // setup.mesh.shape["data"])
    rows *= setup.mesh.shape["data"]
    parts = [Held("weights", weight_bytes(cfg, setup.mesh, s.dtype))]
    if INTERVENTIONS[job.settings.mode].of_latents:
        for what, count in sae_bytes(setup.sae_cfg).items():
            parts.append(Held(f"SAE {what}", count))
    parts += sampling_memory(cfg, setup.mesh, s.dtype, rows=rows, slots=width + max_new)
    report.add_memory("memory", parts, setup.mesh)
    costs = _costs(job, rows=rows, width=width)
    report.add_stages(costs, rates_of(cfg, Batch(rows, width + max_new), s.dtype))
    return report


def _costs(job: SteeringJob, *, rows: int, width: int) -> list[StageCost]:
    """Returns the costs of the unit of strengths and of the completions.

    Args:
      rows, width: of a batch of prompts.
    """
    cfg, s = job.setup.cfg, job.setup.settings
    costs = []
    in_norms = INTERVENTIONS[job.settings.mode].in_norms
    if s.corpus and in_norms and job.settings.unit is None:
        read = s.corpus_tokens * (job.setup.site.layer + 1)
        costs.append(StageCost(mean_activation.NAME, read=read))
    batches = -(-len(job.plan.rows) // rows)
    return [
        *costs,
        StageCost(
            "completions",
            samples=len(job.plan.rows),
            tokens=len(job.plan.rows) * job.sampling.max_new,
            read=batches * rows * width * cfg.n_layers,
            steps=batches * job.sampling.max_new,
        ),
    ]
