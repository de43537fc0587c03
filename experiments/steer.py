"""Completions with chosen latents steered, beside those without; see configs/steer.py
for the command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.activations import CorpusBatch, mean_activation, norm_limits
from sae_attr.files.vectors import read_vectors
from sae_attr.lm.ends import ending_ids
from sae_attr.lm.sample import Sampling
from sae_attr.report.tables import json_text
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE, unit_decoder
from sae_attr.settings import check_numbers
from sae_attr.site_names import parse_site
from sae_attr.steering import (
    INTERVENTIONS,
    NO_LATENT,
    TOKENS,
    Plan,
    SampledRow,
    Sampler,
    every_condition,
    sample_batches,
    sample_rows,
)
from sae_attr.store import (
    Progress,
    Result,
    Store,
    digest,
    fingerprint,
    own_workdir,
    write_atomic,
)
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.attribution_stages import mean_stage
from sae_attr.study.setup import Setup
from sae_attr.text.chat import options_read
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import read_prompts
from sae_attr.text.rows import corpus_mask
from sae_attr.text.tokenizer import decode

from . import _common
from ._config import part_of
from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR

VERSION, NORM_VERSION = (
    1,
    1,
)  # raised when the same inputs give other completions, or another norm, than before
PLAIN = ("mesh", "batch_size")  # where and how fast, not what
# Keys of a sweep whose names an attribution has for something else.
UNSTUDIED = {"tokens": None, "batch_size": 8}


@dataclass(frozen=True, eq=False)
class Job:
    """A sweep with all that it needs, checked: nothing of it was computed yet.

    Args:
      vectors: unit direction of every latent of the plan.
      origin: fingerprint of the SAE or of the file of vectors.
      prompts: token ids by id.
    """

    study: Setup
    config: Mapping[str, Any]
    vectors: dict[int, np.ndarray]
    origin: str
    prompts: dict[str, list[int]]
    plan: Plan
    sampling: Sampling


def study_of(config: ConfigDict, store: Store) -> Setup:
    """The model and, where one is given, its SAE; a file of vectors stands in the place
    of an SAE that says nothing.
    """
    absent = [name for name in ("lm", "prompts") if not config[name]]
    if absent or bool(config.sae) == bool(config.vectors):
        need = [
            *absent,
            *(["sae or vectors"] if bool(config.sae) == bool(config.vectors) else []),
        ]
        raise ValueError(
            f"the config must have {', '.join(need)} (of sae and vectors exactly one); "
            "add --config.NAME=PATH"
        )
    settings = part_of(
        Settings,
        config,
        sae=config.sae or "",
        pairs="",
        corpus=config.corpus or "",
        **UNSTUDIED,
    )
    study = Setup(
        settings, store, parallel.make_mesh(str(config.mesh)), parallel.is_main()
    )
    if not config.vectors:
        return study
    if not config.site:
        raise ValueError(
            "a file of vectors does not say where they belong; add "
            "--config.site=layer2.resid_post"
        )
    width = study.cfg.width(parse_site(config.site).point)
    return replace(study, stated_sae=SAEConfig(width, width, 1))


def vectors_of(config: ConfigDict, study: Setup) -> dict[int, np.ndarray]:
    """Unit directions by latent: decoder rows of the SAE, read without the rest of it,
    or vectors of the file.
    """
    if config.sae:
        count, width = study.decoder.shape
        rows = lambda latent: np.asarray(
            study.decoder.rows(latent, latent + 1), np.float32
        )[0]
        where = config.sae
    else:
        named = read_vectors(config.vectors)
        widths = {name: vector.shape[-1] for name, vector in named.items()}
        if len({*widths.values()}) > 1:
            raise ValueError(
                f"{config.vectors} has vectors of different widths: {widths}"
            )
        stacked = np.concatenate([np.atleast_2d(named[name]) for name in sorted(named)])
        (count, width), rows, where = (
            stacked.shape,
            lambda latent: stacked[latent],
            config.vectors,
        )
    latents = (
        tuple(config.latents)
        if config.latents is not None
        else tuple(range(count))
        if config.vectors
        else ()
    )
    if not latents or not all(isinstance(k, int) and 0 <= k < count for k in latents):
        raise ValueError(
            f"latents is {latents}; name some of 0..{count - 1}, which {where} has: "
            "--config.latents=77,12"
        )
    if width != study.cfg.width(study.site.point):
        raise ValueError(
            f"{where} has vectors of width {width}, but {study.site} has "
            f"{study.cfg.width(study.site.point)}"
        )
    given = {latent: rows(latent) for latent in latents}
    if zero := [latent for latent, vector in given.items() if not vector.any()]:
        raise ValueError(
            f"{where}: vector {zero[0]} is all zeros and has no direction; leave it "
            "out of latents"
        )
    return {
        latent: np.asarray(unit_decoder(jnp.asarray(vector[None])))[0]
        for latent, vector in given.items()
    }


def job_of(config: ConfigDict, store: Store) -> Job:
    """Looks at every input; weights are loaded only when something has to be computed."""
    for what, values, known in (
        ("mode", [config.mode], INTERVENTIONS),
        ("tokens", list(config.tokens), TOKENS),
    ):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(
                f"{what} {unknown[0]!r} is unknown; choose of {', '.join(known)}"
            )
    for name, least in (("batch_size", 1), ("skip", 0)):
        if config[name] < least:
            raise ValueError(f"{name} is {config[name]}; it must be at least {least}")
    if INTERVENTIONS[config.mode].of_latents and not config.sae:
        raise ValueError(
            f"mode {config.mode} needs an SAE, whose latent activations it changes; give "
            "sae instead of vectors"
        )
    study = study_of(config, store)
    if config.unit is not None and not np.isfinite(config.unit):
        raise ValueError(
            f"unit is {config.unit}; give a finite length, or leave it out for the "
            "site's mean"
        )
    check_numbers(config.strengths, float, "config.strengths")
    stops = ending_ids(study.ends, config.sampling.stop_ids, vocab=study.cfg.vocab)
    sampling = part_of(Sampling, config.sampling, stop_ids=stops)
    vectors = vectors_of(config, study)
    prompts = {
        p.id: encode_prompt(p, study.tokenizer, prepend_bos=study.prepend_bos)
        for p in read_prompts(config.prompts)
    }
    longest = max(prompts, key=lambda name: len(prompts[name]))
    if (length := len(prompts[longest]) + sampling.max_new) > study.context:
        raise ValueError(
            f"prompt {longest!r} has {len(prompts[longest])} tokens, which with "
            "sampling.max_new="
            f"{sampling.max_new} are {length}, longer than the context of "
            f"{study.context}; shorten the prompt, or lower it: "
            f"--config.sampling.max_new={max(1, study.context - len(prompts[longest]))}"
        )
    conditions = every_condition(
        list(vectors), config.strengths, tokens=tuple(config.tokens)
    )
    plan = Plan(conditions, tuple(prompts), config.samples)
    origin = study.sae_key if config.sae else fingerprint(config.vectors)
    return Job(study, config.to_dict(), vectors, origin, prompts, plan, sampling)


def unit_of(job: Job) -> dict[str, Any]:
    """What one unit of strength is, and where it comes from."""
    study, config = job.study, job.config
    if config["unit"] is not None:
        return {"value": config["unit"], "over": "given"}
    if not INTERVENTIONS[config["mode"]].in_norms:
        return {"value": 1.0, "over": "given"}
    if config["corpus"]:  # the study's corpus, read as every command reads one
        mean, _ = mean_stage(study)
        return {"value": mean.norm, "over": "corpus", "tokens": mean.tokens}

    def measure(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        where: dict[str, Any] = {"cfg": study.cfg, "mesh": study.mesh}
        limits = norm_limits(
            study.params,
            _prompt_work(job),
            study.masks.outlier,
            sites=(study.site,),
            **where,
        )
        mean = mean_activation(
            study.params, _prompt_work(job), site=study.site, limits=limits, **where
        )
        return {}, {"norm": mean.norm, "tokens": mean.tokens}

    fields = {
        **study.model_fields(),
        "masks": study.masks.to_dict(),
        "prompts": digest(list(job.prompts.values())),
    }
    meta = study.stage(
        "prompt-norm", fields, {"lm": study.lm_key}, measure, version=NORM_VERSION
    ).meta
    return {"value": meta["norm"], "over": "prompts", "tokens": meta["tokens"]}


def _prompt_work(job: Job) -> list[CorpusBatch]:
    """The prompts as a corpus: each alone in its row, rows of no tokens up to what the
    mesh can split.
    """
    tok, rows = job.study.tokenizer, list(job.prompts.values())
    rows += [[]] * (-len(rows) % job.study.mesh.shape["data"])
    length_b = np.array([len(row) for row in rows])
    valid_bt = np.arange(length_b.max()) < length_b[:, None]
    tokens_bt = np.zeros(valid_bt.shape, np.int32)
    tokens_bt[valid_bt] = [token for row in rows for token in row]
    special_bt = np.isin(tokens_bt, sorted(tok.special_ids)) & valid_bt
    counted_bt = corpus_mask(
        tokens_bt, valid_bt, special_bt, tok, masks=job.study.masks
    )
    return [CorpusBatch(tokens_bt, valid_bt, counted_bt)]


def completions(job: Job, unit: float) -> Result:
    """Every row of the plan; continues with the next unfinished batch after a kill. Its
    meta holds the records.
    """
    study, config = job.study, job.config

    def compute(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        sampler = sampler_of(job, unit)
        rows = sample_rows(
            job.plan.rows,
            partial(sample_batches, sampler),
            progress,
            bar=study.progress,
        )
        return {}, {"rows": [record(row, job) for row in rows]}

    fields = {
        **study.model_fields(),
        **{name: config[name] for name in ("mode", "skip", "seed")},
    }
    fields |= {
        "sampling": asdict(job.sampling),
        "unit": unit,
        "rows": digest([row.id for row in job.plan.rows]),
    }
    inputs = {"lm": study.lm_key, "vectors": job.origin, "prompts": digest(job.prompts)}
    return study.stage("completions", fields, inputs, compute, version=VERSION)


def sampler_of(job: Job, unit: float) -> Sampler:
    """Returns what samples the plan's rows; loads the weights."""
    study, config = job.study, job.config
    across = study.mesh.shape["data"]
    vectors: SAE | dict[int, np.ndarray] = job.vectors
    if INTERVENTIONS[config["mode"]].of_latents:
        vectors = study.sae
    return Sampler(
        params=study.params,
        prompts=job.prompts,
        vectors=vectors,
        key=study.key(0),
        cfg=study.cfg,
        site=study.site,
        mesh=study.mesh,
        batch_size=-(-config["batch_size"] // across) * across,
        mode=config["mode"],
        sampling=job.sampling,
        unit=unit,
        skip=config["skip"],
    )


def record(done: SampledRow, job: Job) -> dict[str, Any]:
    """A completion as completions.jsonl has it; with prompt_ids, ids and sampler it can
    become one side of a pair.
    """
    count = len(done.ids) + done.stopped
    return {
        "id": done.row.id,
        **done.row.record(),
        "text": decode(job.study.tokenizer, done.ids),
        "ids": list(done.ids),
        "prompt_ids": job.prompts[done.row.prompt],
        "stopped": done.stopped,
        "logp": done.logp,
        "nats_per_token": -done.logp / count,
        "sampler": job.study.lm_key,
    }


def show(job: Job, records: list[dict[str, Any]]) -> None:
    """Prints the unsteered completion of every prompt and sample, and the steered ones
    below it.
    """
    shared: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in records:
        shared.setdefault((r["prompt"], r["sample"]), []).append(r)
    for (prompt, sample), own in shared.items():
        print(
            f"\n{prompt}, sample {sample}: "
            f"{decode(job.study.tokenizer, job.prompts[prompt])!r}"
        )
        for r in own:
            what = f"latent {r['latent']}, {r['strength']:+g}, {r['tokens']}"
            print(
                f"  {'unsteered' if r['latent'] == NO_LATENT else what:<28} {r['text']!r}"
            )


def summary(job: Job, unit: dict[str, Any], result: Result) -> dict[str, Any]:
    """What result.json holds: every choice, the files' names by contents, counts and
    what it cost.
    """
    rows, plain = result.meta["rows"], lambda r: r["latent"] == NO_LATENT
    mean = lambda kept: (
        float(np.mean([r["nats_per_token"] for r in kept])) if kept else None
    )
    cost = job.plan.cost(
        {name: len(ids) for name, ids in job.prompts.items()},
        max_new=job.sampling.max_new,
    )
    return {
        "site": str(job.study.site),
        "unit": unit,
        "latents": sorted(job.vectors),
        "config": dict(job.config),
        "sampling": asdict(job.sampling),
        "ends": "given"
        if job.config["sampling"]["stop_ids"] is not None
        else job.study.ends,
        "template_options": options_read(job.study.tokenizer),
        "scopes": "prompt: positions of the prompt, its last token's too; generated: those of drawn tokens; all: both",
        "inputs": {"lm": job.study.lm_key, "vectors": job.origin, "stage": result.key},
        "completions": len(rows),
        "stopped": sum(r["stopped"] for r in rows),
        "cost": asdict(cost),
        "nats_per_token": {
            "unsteered": mean([*filter(plain, rows)]),
            "steered": mean([r for r in rows if not plain(r)]),
        },
        "versions": _common.versions(),
    }


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> None:
    """Checks every input, then makes all completions under the workdir's lock, prints
    and writes them.

    Args:
      config: as configs/steer.py makes it.
      workdir: for results and for what a killed run continues from.
      allow_change: use a workdir that was made with another config.
    """
    _common.fix_day(config, workdir)
    job = job_of(config, Store(workdir / "store", writer=parallel.is_main()))
    if parallel.from_main(not (workdir / "config.json").exists()):
        _ = (
            job.study.params
        )  # what is wrong with the weights is said before anything is written
    logging.info(
        "%d completions of %d prompts at %s",
        len(job.plan.rows),
        len(job.prompts),
        job.study.site,
    )
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=PLAIN,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        unit = unit_of(job)
        result = completions(job, unit["value"])
        if parallel.is_main():
            lines = (
                json.dumps(r, ensure_ascii=False) + "\n" for r in result.meta["rows"]
            )
            write_atomic(workdir / "completions.jsonl", "".join(lines))
            write_atomic(workdir / "result.json", json_text(summary(job, unit, result)))
            show(job, result.meta["rows"])
            print(f"\nwrote to {workdir}: completions.jsonl, result.json")


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)), allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
