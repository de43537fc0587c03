"""Trains SAEs and transcoders on a language model's activations; see
configs/train_sae.py for the command.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from sae_attr.report.figures import render, sae_training_figure
from sae_attr.report.tables import csv_text, json_text
from sae_attr.sae.export import save_dictionary_learning, save_saelens
from sae_attr.sae.metrics import (
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
from sae_attr.training import LoopOptions, Record, TrainResult

from . import _common, _training
from ._config import part_of
from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR

# Where and how fast, not what.
PLAIN = ("mesh", "log_every", "eval_every", "save_every", "keep", "batch_rows")


@dataclass(frozen=True)
class Job:
    """One SAE to train: what it reads and stands for, and its hyper-parameters."""

    place: SitePair
    cfg: TrainConfig

    @property
    def target(self) -> Site | None:
        """The other site of a transcoder."""
        return self.place.write if self.cfg.transcoder else None


def jobs_of(config: ConfigDict, cfg: LMConfig) -> list[Job]:
    """The SAEs that the config asks for; ValueError for sites or sizes that cannot be."""
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
    fields = config.sae.to_dict()
    jobs = []
    for read in sites:
        write = site_named(cfg, config.site_out) if config.site_out else read
        widths: dict[str, Any] = {
            "d_in": cfg.width(read.point),
            "d_out": cfg.width(write.point),
            "transcoder": read != write,
        }
        steps = config.tokens // config.batch_size
        values = {**fields, **widths, "steps": steps, "seed": config.seed}
        jobs.append(
            Job(
                SitePair(read, write),
                settings_from(TrainConfig, values, where="config.sae"),
            )
        )
    return jobs


def masks_of(config: ConfigDict) -> Masks:
    """Which tokens are not trained on."""
    return part_of(
        Masks,
        config,
        exclude=frozenset(config.exclude or ()),
        outlier=config.outlier or None,
    )


def blocks_of(
    config: ConfigDict,
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: Any,
    root: epath.Path,
    lm: str,
) -> BlockStream:
    """The stream of activations, from a cache in the workdir or from the running model."""
    if not config.cache:
        options = {
            "buffer_tokens": config.buffer_tokens,
            "batch_rows": config.batch_rows,
            "seed": config.seed,
        }
        return live_blocks(params, source, cfg=cfg, mesh=mesh, **options)
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


def evaluation(
    job: Job, params: Params, held: HeldOut, *, cfg: LMConfig, mesh: jax.sharding.Mesh
) -> Callable[[SAEState], Record]:
    """What a row of the curves says of a state of training on held-out documents."""

    def evaluate(state: SAEState) -> Record:
        found = held_out_fit(
            params, finished(job.cfg, state), held, job.place, cfg=cfg, mesh=mesh
        )
        numbers = {
            f.__name__: f(found.sums) for f in (explained_variance, l0, dead_share)
        }
        return {
            f"held_out_{k}": v
            for k, v in (numbers | {"ce_recovered": found.ce_recovered}).items()
        }

    return evaluate


def said(config: ConfigDict, job: Job, file: TokenFile) -> dict[str, Any]:
    """What the SAE's file says about its training."""
    return {
        "site": lens_name(job.place.read),
        "site_out": lens_name(job.place.write) if job.target else None,
        "layer": job.place.read.layer,
        "model_name": public_name(str(config.lm)),
        "context_size": config.context,
        "prepend_bos": bool(file.meta["prepend_bos"]),
        "exclude_special": bool({"bos", "special"} & set(config.exclude)),
        "masks": masks_of(config),
    }


def write_sae(folder: Path, sae: SAE) -> list[str]:
    """Both layouts, each whole or not at all; one that is there is replaced. The names
    of what was written.
    """
    written = []
    for name, save in (
        ("sae", save_saelens),
        ("dictionary_learning", save_dictionary_learning),
    ):
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


def report(
    folder: epath.Path,
    trained: TrainResult[SAEState],
    sae: SAE,
    job: Job,
    held: HeldOut,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes curves, figure and result.json; returns what the latter holds."""
    sums = fit(sae, held.acts[job.place.read], held.acts[job.place.write])
    histogram, rows = density(sums), trained.history
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {
        name: np.array([row.get(name, np.nan) for row in rows]) for name in names
    }
    tested = [row for row in rows if "held_out_l0" in row]
    numbers = {
        "train": {
            name: columns[name].tolist()
            for name in ("step", "explained_variance", "l0", "dead")
        },
        "held_out": {"step": [r["step"] for r in tested]}
        | {
            k: [r[f"held_out_{k}"] for r in tested]
            for k in ("explained_variance", "l0", "dead_share", "ce_recovered")
        },
        "density": {
            "edges": histogram.edges.tolist(),
            "counts": histogram.counts.tolist(),
            "dead": histogram.dead,
        },
    }
    result = {
        "site": str(job.place.read),
        "site_out": str(job.place.write),
        "held_out": {
            **summary(sae, sums),
            "ce_recovered": tested[-1]["held_out_ce_recovered"],
        },
        "train": asdict(job.cfg) | about.pop("defaults"),
        "silent_share": {
            "share": rows[-1]["dead"],
            "tokens": about.pop("silent_tokens"),
        },
        **about,
        "versions": _common.versions(),
    }
    files: dict[str, bytes | str] = {
        "curves.csv": csv_text(columns),
        "result.json": json_text(result),
    }
    drawn = render(sae_training_figure(numbers), numbers)
    files |= {f"figures/training.{suffix}": data for suffix, data in drawn.items()}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return result


def mean_file(config: ConfigDict, blocks: BlockStream, site: Site) -> bytes | None:
    """ā over one epoch of the cache, as .npz; None where activations are not stored."""
    if not config.cache:
        return None
    mean = mean_of(blocks.read(g).acts[site] for g in range(blocks.per_epoch))
    facts = {"norm": mean.norm, "tokens": mean.tokens, "site": str(site)}
    return _common.npz_bytes(
        {
            "mean_d": mean.mean_d,
            **{name: np.array(value) for name, value in facts.items()},
        }
    )


@dataclass(frozen=True, eq=False)
class Session:
    """What all SAEs of a run share: the model, its activations and what they follow
    from, the text that is measured on.
    """

    config: ConfigDict
    cfg: LMConfig
    params: Params
    mesh: jax.sharding.Mesh
    source: ActivationSource
    blocks: BlockStream
    stream: dict[str, Any]
    held: HeldOut


def prepare(
    config: ConfigDict, jobs: Sequence[Job], workdir: epath.Path
) -> tuple[Session, dict[str, Any]]:
    """Tokenises, loads the model and collects activations; and what results say about
    that.
    """
    mesh = parallel.make_mesh(config.mesh)
    rows = load_config(config.lm).vocab
    tok = with_options(
        load_tokenizer(resolve_model(config.lm), embedding_rows=rows),
        config.template_options.to_dict(),
    )
    file = _training.token_file(
        config, config.corpus, tok, workdir, prepend_bos=config.prepend_bos
    )
    packing = part_of(Packing, config)
    rows, documents = hold_out(file, packing, config.held_out_share)
    (cfg, params), lm = (
        load_lm(config.lm, mesh=mesh, dtype=config.dtype),
        fingerprint(resolve_model(config.lm)),
    )
    places = [job.place for job in jobs]
    source = open_source(
        params,
        file,
        packing,
        tuple(dict.fromkeys(site for place in places for site in place)),
        cfg=cfg,
        mesh=mesh,
        masks=masks_of(config),
        rows=rows,
        dtype=config.act_dtype,
        batch_rows=config.batch_rows,
        seed=config.seed,
    )
    held = collect_held_out(
        params,
        source,
        documents,
        places,
        cfg=cfg,
        mesh=mesh,
        tokens=config.eval_tokens,
        batch_rows=config.batch_rows,
        beside=TRIAL,
    )
    blocks = blocks_of(config, params, source, cfg=cfg, mesh=mesh, root=workdir, lm=lm)
    about = {
        "activations": describe(source),
        "masked": read_index(workdir / "activations")["counts"]
        if config.cache
        else None,
        "held_out_documents": [documents.start, documents.stop],
        "inputs": {"lm": lm, "corpus": fingerprint(config.corpus)},
        "config": config.to_dict(),
    }
    return Session(
        config, cfg, params, mesh, source, blocks, stream_of(config, source, lm), held
    ), about


def stream_of(config: ConfigDict, source: ActivationSource, lm: str) -> dict[str, Any]:
    """What the batches of a run follow from, wherever it is read from; `lm` is the
    model's fingerprint.
    """
    about = describe(source)
    # Norm limits are measured: their last bits follow the mesh, on which a run may go
    #   on.
    masks = {
        name: value for name, value in about["masks"].items() if name != "norm_limits"
    }
    sizes = {
        name: config[name]
        for name in ("batch_size", "cache", "buffer_tokens", "shard_tokens")
    }
    return {**about, "masks": masks, "lm": lm, "lm_dtype": config.dtype, **sizes}


def defaults(config: ConfigDict, cfg: TrainConfig) -> dict[str, Any]:
    """What the run took where the config left a choice to the number of steps."""
    dead = cfg.dead_after(config.batch_size)
    chosen = {"lr": cfg.learning_rate, "warmup": cfg.warmup_steps, "dead_tokens": dead}
    return {
        "defaults": chosen,
        "silent_tokens": min(dead, cfg.steps * config.batch_size),
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
        session.held.samples[job.place.write],
        cfg=session.cfg,
        mesh=session.mesh,
        stated_l0=stated_metrics.l0,
    )
    return check_record(judge_sae(measurement, stated_metrics, counts_special=False))


def run(
    session: Session, job: Job, about: dict[str, Any], ledger: Store, folder: epath.Path
) -> dict[str, Any]:
    """One SAE from its first step, or its last checkpoint, to its files; what
    result.json holds.
    """
    config, place = session.config, job.place
    stream = batch_function(
        session.blocks, batch_size=config.batch_size, seed=config.seed, ledger=ledger
    )
    trained = train_sae(
        job.cfg,
        inputs(stream, place.read, job.target),
        mesh=session.mesh,
        folder=folder / "checkpoints",
        inputs=session.stream,
        options=part_of(LoopOptions, config, scan=1),
        evaluate=evaluation(
            job, session.params, session.held, cfg=session.cfg, mesh=session.mesh
        ),
        progress=parallel.is_main(),
    )
    state = jax.tree.map(parallel.to_host, trained.state)
    sae = finished(job.cfg, state, **said(config, job, session.source.file))
    tested = check_sae(session, job, sae)
    if not parallel.is_main():
        return {}
    about = {
        **about,
        **defaults(config, job.cfg),
        "sae_check": tested,
        "written": write_sae(Path(folder), sae),
    }
    if (mean := mean_file(config, session.blocks, place.write)) is not None:
        write_atomic(folder / "mean.npz", mean)
    return report(folder, trained, sae, job, session.held, about)


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> dict[str, Any]:
    """Checks the inputs, then trains under the workdir's lock."""
    _common.require(config, "lm", "corpus", "site")
    _common.fix_day(config, workdir)
    cfg = load_config(config.lm)
    jobs = jobs_of(config, cfg)
    if config.batch_size % parallel.make_mesh(config.mesh).shape["data"]:
        raise ValueError(
            f"batches of {config.batch_size} tokens cannot be split over "
            f"mesh={config.mesh!r}; change one"
        )
    _training.warn_of_few_steps(jobs[0].cfg.steps, "raise tokens or lower batch_size")
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=PLAIN,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        session, about = prepare(config, jobs, workdir)
        ledger = Store(workdir / "store", writer=parallel.is_main())
        folders = [
            workdir if len(jobs) == 1 else workdir / str(job.place.read) for job in jobs
        ]
        found = {
            str(job.place.read): run(session, job, about, ledger, folder)
            for job, folder in zip(jobs, folders, strict=True)
        }
    for site, result in found.items() if parallel.is_main() else ():
        m = result["held_out"]
        print(
            f"\n{site}: explained variance {m['explained_variance']:.4f}, L0 "
            f"{m['l0']:.2f}, CE recovered "
            f"{m['ce_recovered']:.4f}; {m['dead_share']:.1%} of {m['latents']:,} "
            f"latents never fired on {m['tokens']:,} "
            f"tokens, {result['silent_share']['share']:.1%} on the last "
            f"{result['silent_share']['tokens']:,} of training"
        )
        if result["masked"]:
            print(count_text(result["masked"]))
        print(f"SAE check: {result['sae_check']['verdict']}")
    if parallel.is_main():
        print(f"wrote to {workdir}")
    return found


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)), allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
