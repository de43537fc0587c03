"""A sweep that steers named latents: its inputs looked at, the unit of strength, the
completions, and what they add up to.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from sae_attr.activations import CorpusBatch, mean_activation, norm_limits
from sae_attr.files.vectors import read_vectors
from sae_attr.lm.draw import Sampling
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE, unit_decoder
from sae_attr.site_names import parse_site
from sae_attr.steering.interventions import INTERVENTIONS
from sae_attr.steering.plan import Plan, every_condition
from sae_attr.steering.sweep import SampledRow, Sampler, sample_batches, sample_rows
from sae_attr.steering.sweep_export import SweepExport
from sae_attr.store import Computed, Progress, Result, digest, fingerprint
from sae_attr.study.attribution_stages import ordinary_mean
from sae_attr.study.sample_sources import declared_engine, from_files
from sae_attr.study.setup import Setup
from sae_attr.study.steering_settings import SteerSettings
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
        **declared_engine(settings),
    }
    inputs = {
        "lm": setup.lm_key,
        "vectors": job.origin,
        "prompts": digest(job.prompts),
    }
    run = partial(_sampled_records, job, unit)
    return setup.stage("completions", fields, inputs, run, version=VERSION)


def _sampled_records(job: SteeringJob, unit: float, progress: Progress) -> Computed:
    if job.settings.sweeps_by == "export":
        workdir = epath.Path(job.setup.store.root).parent
        sample = from_files(export_of(job, unit), workdir, "steer")
    else:
        sample = partial(sample_batches, sampler_of(job, unit))
    rows = sample_rows(job.plan.rows, sample, progress, bar=job.setup.progress)
    return {}, {"rows": [completion_record(job, row) for row in rows]}


def sampler_of(job: SteeringJob, unit: float) -> Sampler:
    """Returns what samples the plan's rows; loads the weights."""
    setup, settings = job.setup, job.settings
    across = setup.mesh.shape["data"]
    return Sampler(
        params=setup.params,
        prompts=job.prompts,
        vectors=steered_by(job),
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


def steered_by(job: SteeringJob) -> SAE | dict[int, np.ndarray]:
    """Returns the directions that are steered, or the SAE whose latents are set."""
    if INTERVENTIONS[job.settings.mode].of_latents:
        return job.setup.sae
    return job.vectors


def export_of(job: SteeringJob, unit: float) -> SweepExport:
    """Returns the plan's rows as another engine takes them; loads no weights of the
    model.
    """
    setup, settings = job.setup, job.settings
    return SweepExport(
        job.plan.rows,
        job.prompts,
        steered_by(job),
        setup.tokenizer,
        setup.key(0),
        job.sampling,
        setup.site,
        settings.mode,
        unit,
        settings.skip,
        os.path.basename(setup.settings.lm),
    )


def completion_record(job: SteeringJob, sampled: SampledRow) -> dict[str, Any]:
    """Returns a completion as completions.jsonl has it; with prompt_ids, ids and
    sampler it can become one side of a pair.
    """
    drawn = len(sampled.ids) + sampled.stopped
    # Another engine's completions come without log-probabilities.
    has_logp = math.isfinite(sampled.logp)
    return {
        "id": sampled.row.id,
        **sampled.row.record(),
        "text": decode(job.setup.tokenizer, sampled.ids),
        "ids": list(sampled.ids),
        "prompt_ids": job.prompts[sampled.row.prompt],
        "stopped": sampled.stopped,
        "logp": sampled.logp if has_logp else None,
        "nats_per_token": -sampled.logp / drawn if has_logp else None,
        "sampler": job.setup.lm_key,
    }
