"""Controls of the task even_number: the hint reversed or left out, prompts padded, and
whether latents tell odd numbers from even ones or long answers from short ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_attr.analyses.monitoring import Rollouts, cosine_auc, cosines
from sae_attr.analyses.pool_settings import PoolCase, Task
from sae_attr.analyses.pool_stages import directions_of, rollouts_of
from sae_attr.attribution.selectors import monitoring_auc
from sae_attr.lm.model import forward
from sae_attr.lm.weights import load_lm
from sae_attr.organism.exact import exact_rates, prompt_paths
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.ground_truth import both_ways
from sae_attr.organism.number_words import EVEN, NO_HINT, ODD, format_of
from sae_attr.organism.prompts import WorldPrompt, number_prompts
from sae_attr.organism.world import World
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.stages import mean_activation

VERSION = 1  # raised when the code gives other numbers than before
NAME = "number_controls"

# Condition -> what the field rewards, and whether the prompts are padded.
CONDITIONS: Mapping[str, tuple[str, bool]] = {
    "hint": (ODD, False),
    "reversed": (EVEN, False),
    "none": (NO_HINT, False),
    "padded": (ODD, True),
}

Results = Mapping[str, Result]


def condition_prompts(world: World, condition: str, count: int) -> list[WorldPrompt]:
    """Returns the first prompts of the effects' split under a condition."""
    hint, padded = CONDITIONS[condition]
    return list(number_prompts(world, "effects", hint, padded=padded)[:count])


def controls_stage(case: PoolCase) -> Stage:
    """Makes the stage, for the vector and every latent `[1 + k]`: arrays
    `<condition>.along`, the rise of the rate at +s, and `.against`, its fall at −s, with
    strengths chosen on prompts with the hint; `field.<task>`, the AUC of the cosine with
    the activation at the field for "it rewards odd numbers" against "even ones";
    `length.<task>` for "the answer is long", and `short.<task>` and `long.<task>` for
    "it is odd" among answers of one length. `meta["rates"]`: condition -> mean, least
    and largest rate over prompts, `before` and `after` the fine-tune;
    `meta["skipped"]`: array -> why it is left out.
    """
    s, e = case.settings, case.evaluation
    pool_name, mean_name = case.stage_name("pool"), case.stage_name("mean_activation")
    models = {"before": e.organism.numbers, "after": e.organism.even_number}

    def run(results: Results, progress: Progress) -> Computed:
        dec_kd = directions_of(e, results[pool_name])
        rates = {}
        for when, folder in models.items():
            cfg, params = load_lm(folder, mesh=e.mesh)
            rates[when] = _rates(case, params, cfg)
        norm = mean_activation.mean_of(results[mean_name]).norm
        arrays = _steered(case, dec_kd, norm)
        skipped: dict[str, str] = {}
        for task in case.tasks:
            arrays[f"field.{task.about}"] = _field_auc(case, task, dec_kd)
            result = results[case.task_stage(task)]
            read, left_out = _by_length(task, result, dec_kd)
            arrays |= read
            skipped |= left_out
        return arrays, {"rates": rates, "skipped": skipped}

    fields = {
        "grid": list(s.grid),
        "budget": s.budget,
        "strength_prompts": s.strength_prompts,
        "effect_prompts": s.effect_prompts,
        "task_prompts": s.task_prompts,
    }
    parts = ("numbers", "even_number", "sae")
    needs = [pool_name, mean_name, *(e.organism.stages[part] for part in parts)]
    needs += [case.task_stage(task) for task in case.tasks]
    return Stage(case.stage_name(NAME), run, fields, tuple(needs), VERSION)


def _rates(case: PoolCase, params: Any, cfg: Any) -> dict[str, list[float]]:
    run = jax.jit(partial(exact_rates, cfg=cfg))
    world = case.evaluation.organism.world
    rates = {}
    for condition in CONDITIONS:
        # As many as a task has, so that rates of 0 are told from small ones.
        prompts = condition_prompts(world, condition, case.settings.task_prompts)
        rate_p = np.asarray(
            run(params, prompt_paths(world, EVEN_NUMBER, prompts), {})[0]
        )
        rates[condition] = [float(f(rate_p)) for f in (np.mean, np.min, np.max)]
    return rates


def _steered(case: PoolCase, dec_kd: np.ndarray, norm: float) -> dict[str, np.ndarray]:
    s, e = case.settings, case.evaluation
    world = e.organism.world
    strengths = e.deciding_prompts("strengths", s.strength_prompts)
    arrays = {}
    for condition in CONDITIONS:
        effects = condition_prompts(world, condition, s.effect_prompts)
        truths = both_ways(
            e.setup.params,
            prompt_paths(world, EVEN_NUMBER, strengths),
            prompt_paths(world, EVEN_NUMBER, effects),
            dec_kd,
            norm,
            cfg=e.setup.cfg,
            site=e.setup.site,
            grid=tuple(s.grid),
            budget=s.budget,
        )
        for name, truth in truths.items():
            arrays[f"{condition}.{name}"] = truth.effect_n
    return arrays


def _field_auc(case: PoolCase, task: Task, dec_kd: np.ndarray) -> np.ndarray:
    """AUC at the field, which is a prompt's last word."""
    e, site = case.evaluation, case.evaluation.setup.site
    acts, odd = [], []
    for hint in (ODD, EVEN):
        prompts = _of_format(number_prompts(e.organism.world, "effects", hint), task)
        prompts = prompts[: case.settings.task_prompts]
        tokens_pt = prompt_paths(e.organism.world, EVEN_NUMBER, prompts).tokens_pmt[
            :, 0
        ]
        span = (0, site.layer + 1)
        run = forward(
            e.setup.params, tokens_pt, cfg=e.setup.cfg, keep=(site,), span=span
        )
        acts.append(np.asarray(run.acts[site])[:, -1])
        odd.append(np.full(len(prompts), hint == ODD))
    values_rk = cosines(np.concatenate(acts), dec_kd)
    return monitoring_auc(values_rk, np.concatenate(odd))


def _of_format(prompts: Sequence[WorldPrompt], task: Task) -> list[WorldPrompt]:
    return [p for p in prompts if format_of(p.question.template).name == task.about]


def _by_length(
    task: Task, result: Result, dec_kd: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """AUC for the length of answers, and for their parity at one length; what has no
    two sides is left out.
    """
    rollouts = rollouts_of(result)
    length_r = np.asarray(result.arrays["length_r"])
    long_r = length_r > length_r.min(initial=np.iinfo(np.int32).max)
    parts = {
        "length": Rollouts(rollouts.mean_rd, long_r),
        "short": Rollouts(rollouts.mean_rd[~long_r], rollouts.behaviour_r[~long_r]),
        "long": Rollouts(rollouts.mean_rd[long_r], rollouts.behaviour_r[long_r]),
    }
    arrays, skipped = {}, {}
    for name, part in parts.items():
        if part.one_sided:
            skipped[f"{name}.{task.about}"] = part.one_sided
        else:
            arrays[f"{name}.{task.about}"] = cosine_auc(part, dec_kd)
    return arrays, skipped
