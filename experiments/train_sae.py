"""Trains SAEs and transcoders on a language model's activations; see
configs/train_sae.py for the command.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.activations import (
    ActivationSource,
    BlockStream,
    Masks,
    batch_function,
    cached_blocks,
    describe,
    inputs,
    live_blocks,
    mean_of,
    open_source,
    read_index,
    write_cache,
)
from sae_attr.files.hub import public_name
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.sites import site_named
from sae_attr.lm.weights import load_config, load_lm, resolve_model
from sae_attr.report.tables import json_text
from sae_attr.report.training_curves import sae_curve_files
from sae_attr.sae.export import save_dictionary_learning, save_saelens
from sae_attr.sae.metrics import (
    FitSums,
    dead_share,
    density,
    explained_variance,
    fit,
    l0,
    summary,
)
from sae_attr.sae.model import SAE
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import SAEState, finished
from sae_attr.sae_check import (
    HeldOut,
    SitePair,
    StatedMetrics,
    check_record,
    collect_held_out,
    held_out_fit,
    judge_sae,
    measure_sample,
)
from sae_attr.sae_check.measure import TRIAL
from sae_attr.settings import settings_from
from sae_attr.site_names import lens_name
from sae_attr.store import Store, fingerprint, own_workdir, write_atomic
from sae_attr.text.chat import with_options
from sae_attr.text.masks import count_text
from sae_attr.text.packed_rows import Packing, hold_out
from sae_attr.text.token_file import TokenFile
from sae_attr.text.tokenizer_folder import load_tokenizer
from sae_attr.training import LoopOptions, Record

from . import _common, _training
from ._config import part_of
from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR

# Keys that say where and how fast a run computes, on which no result depends.
PLAIN = ("mesh", "log_every", "eval_every", "save_every", "keep", "batch_rows")


# ---- from the config -----------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One SAE to train: the sites that it reads and stands for, and its settings."""

    sites: SitePair
    cfg: TrainConfig

    @property
    def target(self) -> Site | None:
        """Returns the other site of a transcoder."""
        return self.sites.write if self.cfg.transcoder else None


def jobs_of(config: ConfigDict, cfg: LMConfig) -> list[Job]:
    """Returns the SAEs that the config describes.

    Raises:
      ValueError: sites or sizes that cannot be.
    """
    sites = [site_named(cfg, name.strip()) for name in config.site.split(",")]
    if len(set(sites)) < len(sites) or (len(sites) > 1 and config.site_out):
        raise ValueError(
            f"site={config.site!r}, site_out={config.site_out!r}: each site once, and "
            "one for a transcoder"
        )
    if config.tokens < config.batch_size or config.batch_size < 1:
        raise ValueError(
            f"{config.tokens} tokens are no batch of {config.batch_size}; give more "
            "tokens"
        )
    jobs = []
    for read in sites:
        write = site_named(cfg, config.site_out) if config.site_out else read
        fields = {
            **config.sae.to_dict(),
            "d_in": cfg.width(read.point),
            "d_out": cfg.width(write.point),
            "transcoder": read != write,
            "steps": config.tokens // config.batch_size,
            "seed": config.seed,
        }
        settings = settings_from(TrainConfig, fields, where="config.sae")
        jobs.append(Job(SitePair(read, write), settings))
    return jobs


def masks_of(config: ConfigDict) -> Masks:
    """Returns the masks of tokens that are not trained on."""
    return part_of(
        Masks,
        config,
        exclude=frozenset(config.exclude or ()),
        outlier=config.outlier or None,
    )


def sae_fields(config: ConfigDict, job: Job, file: TokenFile) -> dict[str, Any]:
    """Returns the fields of `SAEConfig` that record the training."""
    return {
        "site": lens_name(job.sites.read),
        "site_out": lens_name(job.sites.write) if job.target else None,
        "layer": job.sites.read.layer,
        "model_name": public_name(str(config.lm)),
        "context_size": config.context,
        "prepend_bos": bool(file.meta["prepend_bos"]),
        "exclude_special": bool({"bos", "special"} & set(config.exclude)),
        "masks": masks_of(config),
    }


# ---- what all SAEs of a run share ----------------------------------------------------


@dataclass(frozen=True, eq=False)
class Session:
    """The model, its activations, and the held-out text.

    Args:
      lm_hash: fingerprint of the model.
      source: tokens, sites and masks of the activations.
      blocks: the stream of activations.
      masked: counts of tokens by mask; None where activations are not stored.
      documents: of the corpus that are held out.
    """

    config: ConfigDict
    cfg: LMConfig
    params: Params
    mesh: jax.sharding.Mesh
    lm_hash: str
    source: ActivationSource
    blocks: BlockStream
    masked: dict[str, int] | None
    documents: range
    held_out: HeldOut


def prepare(config: ConfigDict, jobs: Sequence[Job], workdir: epath.Path) -> Session:
    """Tokenises the corpus, loads the model and collects activations."""
    mesh = parallel.make_mesh(config.mesh)
    embedding_rows = load_config(config.lm).vocab
    tok = with_options(
        load_tokenizer(resolve_model(config.lm), embedding_rows=embedding_rows),
        config.template_options.to_dict(),
    )
    file = _training.token_file(
        config, config.corpus, tok, workdir, prepend_bos=config.prepend_bos
    )
    packing = part_of(Packing, config)
    rows, documents = hold_out(file, packing, config.held_out_share)
    cfg, params = load_lm(config.lm, mesh=mesh, dtype=config.dtype)
    pairs = [job.sites for job in jobs]
    sites = dict.fromkeys(site for pair in pairs for site in pair)
    source = open_source(
        params,
        file,
        packing,
        tuple(sites),
        cfg=cfg,
        mesh=mesh,
        masks=masks_of(config),
        rows=rows,
        dtype=config.act_dtype,
        batch_rows=config.batch_rows,
        seed=config.seed,
    )
    held_out = collect_held_out(
        params,
        source,
        documents,
        pairs,
        cfg=cfg,
        mesh=mesh,
        tokens=config.eval_tokens,
        batch_rows=config.batch_rows,
        beside=TRIAL,
    )
    lm_hash = fingerprint(resolve_model(config.lm))
    blocks = blocks_of(
        config, params, source, cfg=cfg, mesh=mesh, root=workdir, lm=lm_hash
    )
    masked = None
    if config.cache:
        masked = read_index(workdir / "activations")["counts"]
    return Session(
        config=config,
        cfg=cfg,
        params=params,
        mesh=mesh,
        lm_hash=lm_hash,
        source=source,
        blocks=blocks,
        masked=masked,
        documents=documents,
        held_out=held_out,
    )


def blocks_of(
    config: ConfigDict,
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    root: epath.Path,
    lm: str,
) -> BlockStream:
    """Returns the stream of activations, from a cache in the workdir or from the
    running model.
    """
    if not config.cache:
        return live_blocks(
            params,
            source,
            cfg=cfg,
            mesh=mesh,
            buffer_tokens=config.buffer_tokens,
            batch_rows=config.batch_rows,
            seed=config.seed,
        )
    folder = root / "activations"
    write_cache(
        folder,
        params,
        source,
        cfg=cfg,
        mesh=mesh,
        lm=lm,
        shard_tokens=config.shard_tokens,
        batch_rows=config.batch_rows,
        seed=config.seed,
        progress=parallel.is_main(),
    )
    return cached_blocks(folder, buffer_tokens=config.buffer_tokens, seed=config.seed)


def stream_identity(session: Session) -> dict[str, Any]:
    """Returns everything that determines the batches; a run that goes on must have the
    same.
    """
    facts = describe(session.source)
    # Norm limits are measured, and their last bits follow the mesh; a run may go on on
    # another mesh.
    masks = dict(facts["masks"])
    masks.pop("norm_limits", None)
    identity = {
        **facts,
        "masks": masks,
        "lm": session.lm_hash,
        "lm_dtype": session.config.dtype,
    }
    for name in ("batch_size", "cache", "buffer_tokens", "shard_tokens"):
        identity[name] = session.config[name]
    return identity


# ---- one SAE -------------------------------------------------------------------------


def held_out_record(session: Session, job: Job, state: SAEState) -> Record:
    """Measures a state of training on the held-out documents."""
    fit = held_out_fit(
        session.params,
        finished(job.cfg, state),
        session.held_out,
        job.sites,
        cfg=session.cfg,
        mesh=session.mesh,
    )
    return {
        "held_out_explained_variance": explained_variance(fit.sums),
        "held_out_l0": l0(fit.sums),
        "held_out_dead_share": dead_share(fit.sums),
        "held_out_ce_recovered": fit.ce_recovered,
    }


def check_sae(session: Session, job: Job, sae: SAE) -> dict[str, Any]:
    """Measures the SAE on the held-out texts as every later run of it does, and judges
    it; returns what is recorded.
    """
    stated_metrics = StatedMetrics(
        l0=sae.cfg.expected_l0, excludes_special=sae.cfg.exclude_special
    )
    measurement = measure_sample(
        session.params,
        sae,
        session.held_out.samples[job.sites.write],
        cfg=session.cfg,
        mesh=session.mesh,
        stated_l0=stated_metrics.l0,
    )
    return check_record(judge_sae(measurement, stated_metrics, counts_special=False))


def write_sae(folder: Path, sae: SAE) -> list[str]:
    """Writes both layouts, each whole or not at all, in place of what is there; returns
    the names of those that were written.
    """
    layouts = {"sae": save_saelens, "dictionary_learning": save_dictionary_learning}
    written = []
    for name, save in layouts.items():
        draft = folder / f".{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            save(draft, sae)
        except ValueError as error:  # a layout that has no such SAE
            logging.info("%s is left out: %s", name, error)
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        draft.rename(folder / name)
        written.append(name)
    return written


def mean_file(blocks: BlockStream, site: Site) -> bytes:
    """Returns ā over one epoch of the cache, as .npz."""
    mean = mean_of(blocks.read(g).acts[site] for g in range(blocks.per_epoch))
    return _common.npz_bytes(
        {
            "mean_d": mean.mean_d,
            "norm": np.array(mean.norm),
            "tokens": np.array(mean.tokens),
            "site": np.array(str(site)),
        }
    )


def summary_of(
    session: Session, job: Job, history: Sequence[Record], sae: SAE, sums: FitSums
) -> dict[str, Any]:
    """Returns sites, measurements and settings of one SAE, as result.json holds them.

    Args:
      sums: of the SAE on the held-out tokens.
    """
    config, cfg = session.config, job.cfg
    dead_tokens = cfg.dead_after(config.batch_size)
    evaluated = [record for record in history if "held_out_l0" in record]
    return {
        "site": str(job.sites.read),
        "site_out": str(job.sites.write),
        "held_out": {
            **summary(sae, sums),
            "ce_recovered": evaluated[-1]["held_out_ce_recovered"],
        },
        "train": {
            **asdict(cfg),
            "lr": cfg.learning_rate,
            "warmup": cfg.warmup_steps,
            "dead_tokens": dead_tokens,
        },
        "silent_share": {
            "share": history[-1]["dead"],
            "tokens": min(dead_tokens, cfg.steps * config.batch_size),
        },
        "activations": describe(session.source),
        "masked": session.masked,
        "held_out_documents": [session.documents.start, session.documents.stop],
        "inputs": {"lm": session.lm_hash, "corpus": fingerprint(config.corpus)},
        "config": config.to_dict(),
    }


def run(
    session: Session, job: Job, ledger: Store, folder: epath.Path
) -> dict[str, Any]:
    """Trains one SAE, from its last checkpoint if there is one, and writes its files;
    returns the content of result.json.
    """
    config = session.config
    stream = batch_function(
        session.blocks, batch_size=config.batch_size, seed=config.seed, ledger=ledger
    )
    result = train_sae(
        job.cfg,
        inputs(stream, job.sites.read, job.target),
        mesh=session.mesh,
        folder=folder / "checkpoints",
        inputs=stream_identity(session),
        options=part_of(LoopOptions, config, scan=1),
        evaluate=partial(held_out_record, session, job),
        progress=parallel.is_main(),
    )
    state = jax.tree.map(parallel.to_host, result.state)
    sae = finished(job.cfg, state, **sae_fields(config, job, session.source.file))
    check = check_sae(session, job, sae)
    if not parallel.is_main():
        return {}
    acts = session.held_out.acts
    sums = fit(sae, acts[job.sites.read], acts[job.sites.write])
    results = {
        **summary_of(session, job, result.history, sae, sums),
        "sae_check": check,
        "written": write_sae(Path(folder), sae),
        "versions": _common.versions(),
    }
    rates = density(sums)
    histogram = {
        "edges": rates.edges.tolist(),
        "counts": rates.counts.tolist(),
        "dead": rates.dead,
    }
    files = sae_curve_files(result.history, histogram)
    files["result.json"] = json_text(results)
    if config.cache:
        files["mean.npz"] = mean_file(session.blocks, job.sites.write)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return results


def show(site: str, results: Mapping[str, Any]) -> None:
    """Prints the measurements of one SAE."""
    held_out, silent = results["held_out"], results["silent_share"]
    print(
        f"\n{site}: explained variance {held_out['explained_variance']:.4f}, L0 "
        f"{held_out['l0']:.2f}, CE recovered {held_out['ce_recovered']:.4f}; "
        f"{held_out['dead_share']:.1%} of {held_out['latents']:,} latents never fired "
        f"on {held_out['tokens']:,} tokens, {silent['share']:.1%} on the last "
        f"{silent['tokens']:,} of training"
    )
    if results["masked"]:
        print(count_text(results["masked"]))
    print(f"SAE check: {results['sae_check']['verdict']}")


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> dict[str, Any]:
    """Checks the inputs, then trains under the workdir's lock; returns the results of
    every site.
    """
    _common.require(config, "lm", "corpus", "site")
    _common.fix_day(config, workdir)
    jobs = jobs_of(config, load_config(config.lm))
    if config.batch_size % parallel.make_mesh(config.mesh).shape["data"]:
        raise ValueError(
            f"batches of {config.batch_size} tokens cannot be split over "
            f"mesh={config.mesh!r}; change one"
        )
    _training.warn_of_few_steps(jobs[0].cfg.steps, "raise tokens or lower batch_size")
    results = {}
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=PLAIN,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        session = prepare(config, jobs, workdir)
        ledger = Store(workdir / "store", writer=parallel.is_main())
        for job in jobs:
            site = str(job.sites.read)
            folder = workdir if len(jobs) == 1 else workdir / site
            results[site] = run(session, job, ledger, folder)
    if parallel.is_main():
        for site, result in results.items():
            show(site, result)
        print(f"wrote to {workdir}")
    return results


def main(argv: list[str]) -> None:
    """Runs `start` with the flags."""
    _common.begin(argv)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)), allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
