"""A sweep that steers named latents: its inputs looked at, the unit of strength, the
completions, and what they add up to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, mean_activation, norm_limits
from sae_attr.files.vectors import read_vectors
from sae_attr.lm.draw import Sampling
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE, unit_decoder
from sae_attr.site_names import parse_site
from sae_attr.steering.interventions import INTERVENTIONS
from sae_attr.steering.plan import NO_LATENT, Plan, every_condition
from sae_attr.steering.sweep import SampledRow, Sampler, sample_batches, sample_rows
from sae_attr.store import Computed, Progress, Result, digest, fingerprint
from sae_attr.study.attribution_stages import ordinary_mean
from sae_attr.study.setup import Setup
from sae_attr.study.steering_settings import SteerSettings
from sae_attr.text.chat import options_read
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import read_prompts
from sae_attr.text.rows import corpus_mask
from sae_attr.text.tokenizer import decode

# Raised when the same inputs give other completions, or another norm, than before.
VERSION, NORM_VERSION = 2, 1


@dataclass(frozen=True, eq=False)
class SteeringJob:
    """A sweep with all that it needs, checked; nothing is computed yet.

    Args:
      settings: what is steered, and how strongly.
      setup: the model and, where one is given, its SAE.
      vectors: unit direction of every latent of the plan.
      origin: fingerprint of the SAE or of the file of vectors.
      prompts: token ids by id.
      plan: the completions.
      sampling: of all of them.
    """

    settings: SteerSettings
    setup: Setup
    vectors: dict[int, np.ndarray]
    origin: str
    prompts: dict[str, list[int]]
    plan: Plan
    sampling: Sampling


# ---- inputs --------------------------------------------------------------------------


def setup_of_vectors(setup: Setup) -> Setup:
    """Returns the setup of a file of vectors, which takes the place of an SAE.

    Raises:
      ValueError: settings without a site, which a file of vectors does not name.
    """
    site = setup.settings.site
    if not site:
        raise ValueError(
            "a file of vectors does not say where they belong; add "
            "--config.site=layer2.resid_post"
        )
    width = setup.cfg.width(parse_site(site).point)
    return replace(setup, stated_sae=SAEConfig(width, width, 1))


def open_job(settings: SteerSettings, setup: Setup, sampling: Sampling) -> SteeringJob:
    """Looks at every input; weights are loaded only when something has to be computed.

    Raises:
      ValueError: latents or vectors that do not exist or fit the site, prompts that
        cannot be read or are too long, two conditions that are the same.
    """
    vectors = unit_vectors(settings, setup)
    prompts = {}
    for prompt in read_prompts(str(settings.prompts)):
        prompts[prompt.id] = encode_prompt(
            prompt, setup.tokenizer, prepend_bos=setup.prepend_bos
        )
    check_lengths(prompts, setup.context, sampling.max_new)
    conditions = every_condition(
        list(vectors), settings.strengths, tokens=settings.tokens
    )
    plan = Plan(conditions, tuple(prompts), settings.samples)
    origin = fingerprint(settings.vectors) if settings.vectors else setup.sae_key
    return SteeringJob(settings, setup, vectors, origin, prompts, plan, sampling)


def check_lengths(prompts: dict[str, list[int]], context: int, max_new: int) -> None:
    """Raises ValueError for a prompt whose longest completion would exceed the
    context.
    """
    longest = max(prompts, key=lambda name: len(prompts[name]))
    tokens = len(prompts[longest])
    if tokens + max_new > context:
        raise ValueError(
            f"prompt {longest!r} has {tokens} tokens, which with sampling.max_new="
            f"{max_new} are {tokens + max_new}, longer than the context of {context}; "
            "shorten the prompt, or lower it: "
            f"--config.sampling.max_new={max(1, context - tokens)}"
        )


def unit_vectors(settings: SteerSettings, setup: Setup) -> dict[int, np.ndarray]:
    """Returns unit directions by latent: decoder rows of the SAE, read without the rest
    of it, or vectors of the file.

    Raises:
      ValueError: latents that do not exist, vectors of another width than the site's,
        or of zeros.
    """
    if settings.vectors:
        source = settings.vectors
        rows_nd = stacked_vectors(source)
        count, width = rows_nd.shape
        row = lambda latent: rows_nd[latent]
    else:
        source, decoder = setup.settings.sae, setup.decoder
        count, width = decoder.shape
        row = lambda latent: np.asarray(decoder.rows(latent, latent + 1), np.float32)[0]
    latents = settings.latents
    if latents is None:
        latents = tuple(range(count)) if settings.vectors else ()
    in_range = [isinstance(k, int) and 0 <= k < count for k in latents]
    if not latents or not all(in_range):
        raise ValueError(
            f"latents is {latents}; name some of 0..{count - 1}, which {source} has: "
            "--config.latents=77,12"
        )
    site_width = setup.cfg.width(setup.site.point)
    if width != site_width:
        raise ValueError(
            f"{source} has vectors of width {width}, but {setup.site} has {site_width}"
        )
    units = {}
    for latent in latents:
        vector_d = row(latent)
        if not vector_d.any():
            raise ValueError(
                f"{source}: vector {latent} is all zeros and has no direction; leave "
                "it out of latents"
            )
        units[latent] = np.asarray(unit_decoder(jnp.asarray(vector_d[None])))[0]
    return units


def stacked_vectors(path: str) -> np.ndarray:
    """Returns all vectors of a file `[n, d]`, in the order of their names."""
    named = read_vectors(path)
    widths = {name: vector.shape[-1] for name, vector in named.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{path} has vectors of different widths: {widths}")
    return np.concatenate([np.atleast_2d(named[name]) for name in sorted(named)])


# ---- the unit of strength ------------------------------------------------------------


def unit_of(job: SteeringJob) -> dict[str, Any]:
    """Returns what one unit of strength is, and where it comes from: "given", or the
    mean length at the site over the "corpus" or the "prompts".
    """
    if job.settings.unit is not None:
        return {"value": job.settings.unit, "over": "given"}
    if not INTERVENTIONS[job.settings.mode].in_norms:
        return {"value": 1.0, "over": "given"}
    if job.setup.settings.corpus:
        mean = ordinary_mean(job.setup)
        return {"value": mean.norm, "over": "corpus", "tokens": mean.tokens}
    fields = {
        **job.setup.model_fields(),
        "masks": job.setup.masks.to_dict(),
        "prompts": digest(list(job.prompts.values())),
    }
    meta = job.setup.stage(
        "prompt-norm",
        fields,
        {"lm": job.setup.lm_key},
        partial(_prompt_norm, job),
        version=NORM_VERSION,
    ).meta
    return {"value": meta["norm"], "over": "prompts", "tokens": meta["tokens"]}


def _prompt_norm(job: SteeringJob, progress: Progress) -> Computed:
    """The mean length at the site over the prompts."""
    setup, batches = job.setup, _prompt_batches(job)
    limits = norm_limits(
        setup.params,
        batches,
        setup.masks.outlier,
        sites=(setup.site,),
        cfg=setup.cfg,
        mesh=setup.mesh,
    )
    mean = mean_activation(
        setup.params,
        batches,
        site=setup.site,
        limits=limits,
        cfg=setup.cfg,
        mesh=setup.mesh,
    )
    return {}, {"norm": mean.norm, "tokens": mean.tokens}


def _prompt_batches(job: SteeringJob) -> list[CorpusBatch]:
    """The prompts as a corpus: each alone in its row, rows of no tokens up to what the
    mesh can split.
    """
    setup, rows = job.setup, list(job.prompts.values())
    rows += [[]] * (-len(rows) % setup.mesh.shape["data"])
    length_b = np.array([len(row) for row in rows])
    valid_bt = np.arange(length_b.max()) < length_b[:, None]
    tokens_bt = np.zeros(valid_bt.shape, np.int32)
    tokens_bt[valid_bt] = np.concatenate(rows)
    special_ids = sorted(setup.tokenizer.special_ids)
    special_bt = np.isin(tokens_bt, special_ids) & valid_bt
    counted_bt = corpus_mask(
        tokens_bt, valid_bt, special_bt, setup.tokenizer, masks=setup.masks
    )
    return [CorpusBatch(tokens_bt, valid_bt, counted_bt)]


# ---- completions ---------------------------------------------------------------------


def completions(job: SteeringJob, unit: float) -> Result:
    """Samples every row of the plan, and goes on with what is left after a kill; the
    result's meta holds the records.
    """
    setup, settings = job.setup, job.settings
    fields = {
        **setup.model_fields(),
        "mode": settings.mode,
        "skip": settings.skip,
        "seed": setup.settings.seed,
        "sampling": asdict(job.sampling),
        "unit": unit,
        "rows": digest([row.id for row in job.plan.rows]),
    }
    inputs = {
        "lm": setup.lm_key,
        "vectors": job.origin,
        "prompts": digest(job.prompts),
    }
    run = partial(_sampled_records, job, unit)
    return setup.stage("completions", fields, inputs, run, version=VERSION)


def _sampled_records(job: SteeringJob, unit: float, progress: Progress) -> Computed:
    sampler = sampler_of(job, unit)
    rows = sample_rows(
        job.plan.rows,
        partial(sample_batches, sampler),
        progress,
        bar=job.setup.progress,
    )
    return {}, {"rows": [completion_record(job, row) for row in rows]}


def sampler_of(job: SteeringJob, unit: float) -> Sampler:
    """Returns what samples the plan's rows; loads the weights."""
    setup, settings = job.setup, job.settings
    across = setup.mesh.shape["data"]
    vectors: SAE | dict[int, np.ndarray] = job.vectors
    if INTERVENTIONS[settings.mode].of_latents:
        vectors = setup.sae
    return Sampler(
        params=setup.params,
        prompts=job.prompts,
        vectors=vectors,
        key=setup.key(0),
        cfg=setup.cfg,
        site=setup.site,
        mesh=setup.mesh,
        batch_size=-(-settings.batch_size // across) * across,
        mode=settings.mode,
        sampling=job.sampling,
        unit=unit,
        skip=settings.skip,
    )


def completion_record(job: SteeringJob, sampled: SampledRow) -> dict[str, Any]:
    """Returns a completion as completions.jsonl has it; with prompt_ids, ids and
    sampler it can become one side of a pair.
    """
    drawn = len(sampled.ids) + sampled.stopped
    return {
        "id": sampled.row.id,
        **sampled.row.record(),
        "text": decode(job.setup.tokenizer, sampled.ids),
        "ids": list(sampled.ids),
        "prompt_ids": job.prompts[sampled.row.prompt],
        "stopped": sampled.stopped,
        "logp": sampled.logp,
        "nats_per_token": -sampled.logp / drawn,
        "sampler": job.setup.lm_key,
    }


# ---- what is shown -------------------------------------------------------------------


def shown_completions(job: SteeringJob, records: list[dict[str, Any]]) -> str:
    """Returns the unsteered completion of every prompt and sample as text, and the
    steered ones below it.
    """
    by_sample: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["prompt"], record["sample"])
        by_sample.setdefault(key, []).append(record)
    lines = []
    for (prompt, sample), of_sample in by_sample.items():
        text = decode(job.setup.tokenizer, job.prompts[prompt])
        lines.append(f"\n{prompt}, sample {sample}: {text!r}")
        for record in of_sample:
            lines.append(f"  {_condition_text(record):<28} {record['text']!r}")
    return "\n".join(lines)


def _condition_text(record: dict[str, Any]) -> str:
    if record["latent"] == NO_LATENT:
        return "unsteered"
    return f"latent {record['latent']}, {record['strength']:+g}, {record['tokens']}"


def summary(job: SteeringJob, unit: dict[str, Any], result: Result) -> dict[str, Any]:
    """Returns what result.json holds beside the config: the files' names by contents,
    counts and what it cost.
    """
    records = result.meta["rows"]
    lengths = {name: len(ids) for name, ids in job.prompts.items()}
    cost = job.plan.cost(lengths, max_new=job.sampling.max_new)
    return {
        "site": str(job.setup.site),
        "unit": unit,
        "latents": sorted(job.vectors),
        "sampling": asdict(job.sampling),
        "template_options": options_read(job.setup.tokenizer),
        "scopes": "prompt: positions of the prompt, its last token's too; generated: "
        "those of drawn tokens; all: both",
        "inputs": {
            "lm": job.setup.lm_key,
            "vectors": job.origin,
            "stage": result.key,
        },
        "completions": len(records),
        "stopped": sum(record["stopped"] for record in records),
        "cost": asdict(cost),
        "nats_per_token": {
            "unsteered": _mean_nats(records, steered=False),
            "steered": _mean_nats(records, steered=True),
        },
    }


def _mean_nats(records: list[dict[str, Any]], *, steered: bool) -> float | None:
    """The mean nats per token of steered or of unsteered completions."""
    nats = []
    for record in records:
        if (record["latent"] != NO_LATENT) == steered:
            nats.append(record["nats_per_token"])
    return float(np.mean(nats)) if nats else None
