"""Trains SAEs and transcoders on a language model's activations; see configs/train_sae.py for the command."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments import _common, _training
from experiments._flags import ALLOW_CHANGE, CONFIG, WORKDIR
from sae_attr import parallel
from sae_attr.activations import (
    Batches,
    Blocks,
    Masks,
    Source,
    batch_function,
    cached_blocks,
    collector,
    describe,
    inputs,
    live_blocks,
    mean_of,
    open_source,
    read_index,
    write_cache,
)
from sae_attr.figures import render, sae_training_figure
from sae_attr.fitness import Sample, collect, splice
from sae_attr.hooks import Site, lens_name, parse_site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, check_site
from sae_attr.lm.weights import load_config, load_lm, resolve_model
from sae_attr.report import csv_text
from sae_attr.sae.export import save_dictionary_learning, save_saelens
from sae_attr.sae.metrics import density, explained_variance, fit, l0, reconstruct_tokens, summary
from sae_attr.sae.model import SAE
from sae_attr.sae.run import Row, Trained, train
from sae_attr.sae.train import TrainState, finished
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store import Store, claim_workdir, fingerprint, lock_workdir, write_atomic
from sae_attr.tokenfile import Packing, TokenFile, documents_at, row_count, rows_at
from sae_attr.tokenizer import load_tokenizer

# Where and how fast, not what.
PLAIN = ("mesh", "log_every", "eval_every", "save_every", "keep", "batch_rows")


@dataclass(frozen=True)
class Job:
    """One SAE to train: what it reads and stands for, and its hyper-parameters."""

    read: Site
    write: Site
    cfg: TrainConfig

    @property
    def target(self) -> Site | None:
        """The other site of a transcoder."""
        return self.write if self.read != self.write else None


@dataclass(frozen=True, eq=False)
class Text:
    """Rows of the token file: those that are trained on, and whole documents behind them that are not."""

    file: TokenFile
    packing: Packing
    train: range
    held: range  # documents


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What every evaluation looks at: activations with the masks of training, and whole texts for the loss."""

    acts: dict[Site, np.ndarray]
    sample: dict[Site, Sample]


def jobs_of(config: ConfigDict, cfg: LMConfig) -> list[Job]:
    """The SAEs that the config asks for; ValueError for sites or sizes that cannot be."""
    sites = [parse_site(name.strip()) for name in config.site.split(",")]
    if len(set(sites)) < len(sites) or (len(sites) > 1 and config.site_out):
        raise ValueError(
            f"site={config.site!r}, site_out={config.site_out!r}: each site once, and one for a transcoder"
        )
    if config.tokens < config.batch_size or config.batch_size < 1:
        raise ValueError(f"{config.tokens} tokens are no batch of {config.batch_size}; give more tokens")
    fields: dict[str, Any] = {k: tuple(v) if k == "groups" else v for k, v in config.sae.to_dict().items()}
    jobs = []
    for read in sites:
        write = parse_site(config.site_out) if config.site_out else read
        for site in (read, write):
            check_site(cfg, site)
        widths: dict[str, Any] = {
            "d_in": cfg.width(read.point),
            "d_out": cfg.width(write.point),
            "transcoder": read != write,
        }
        steps = config.tokens // config.batch_size
        jobs.append(Job(read, write, TrainConfig(**widths, **fields, steps=steps, seed=config.seed)))
    return jobs


def text_of(config: ConfigDict, root: epath.Path) -> Text:
    """The corpus as tokens; the last rows are held out, and of them the documents that no training row touches.

    Raises ValueError where nothing is left to train on or to measure on.
    """
    tok = load_tokenizer(resolve_model(config.lm))
    packing = Packing(config.context, documents=config.documents, separate=config.separate)
    file = _training.token_file(config, config.corpus, tok, root, prepend_bos=config.prepend_bos)
    count = row_count(file, packing)
    kept = count - max(1, round(config.held_out_share * count))
    if kept < 1:
        raise ValueError(f"held_out_share={config.held_out_share} leaves none of {count} rows to train on; lower it")
    first = int(documents_at(file, kept - 1, packing).max()) + 1
    documents = len(file.starts_s) - 1
    if first >= documents:
        raise ValueError(
            f"no whole document lies in the last {count - kept} of {count} rows, so there is none to measure on; raise "
            "held_out_share"
        )
    return Text(file, packing, range(kept), range(first, documents))


def whole(packing: Packing) -> Packing:
    """One document a row: what is measured on."""
    return Packing(packing.context, documents="cut", row_bos=packing.row_bos, separate=packing.separate)


def masks_of(config: ConfigDict) -> Masks:
    """The tokens that do not count."""
    return Masks(frozenset(config.exclude), config.first_k, config.outlier or None)


def blocks_of(
    config: ConfigDict, params: Params, source: Source, *, cfg: LMConfig, mesh: Any, root: epath.Path
) -> Blocks:
    """The stream of activations, from a cache in the workdir or from the running model."""
    if not config.cache:
        options = {"buffer_tokens": config.buffer_tokens, "batch_rows": config.batch_rows, "seed": config.seed}
        return live_blocks(params, source, cfg=cfg, mesh=mesh, **options)
    folder = root / "activations"
    write_cache(
        folder, params, source, cfg=cfg, mesh=mesh, lm=fingerprint(resolve_model(config.lm)),
        shard_tokens=config.shard_tokens, batch_rows=config.batch_rows, seed=config.seed, progress=parallel.is_main(),
    )  # fmt: skip
    return cached_blocks(folder, buffer_tokens=config.buffer_tokens, seed=config.seed)


def held_out(
    config: ConfigDict, params: Params, text: Text, source: Source, jobs: Sequence[Job], *, cfg: LMConfig, mesh: Any
) -> HeldOut:
    """Activations of whole held-out documents, about `eval_tokens` of them."""
    packing = whole(text.packing)
    rows = text.held[: max(1, config.eval_tokens // 32)]
    masks = Masks(source.masks.exclude, source.masks.first_k, None)
    measured = open_source(params, text.file, packing, source.sites, cfg=cfg, mesh=mesh, masks=masks, rows=rows)
    found = collector(params, measured, cfg=cfg, mesh=mesh, batch_rows=config.batch_rows)(np.asarray(rows))
    kept = np.ones(len(found.ids_k2), bool)
    for site, limit in source.limits.items():
        kept &= np.linalg.norm(found.acts[site], axis=-1) <= limit
    acts = {site: x[kept][: config.eval_tokens] for site, x in found.acts.items()}
    if not len(acts[jobs[0].read]):
        raise ValueError("no token of the held-out documents counts; raise held_out_share or exclude fewer tokens")

    def work() -> Iterator[Any]:
        size = -(-config.batch_rows // mesh.shape["data"]) * mesh.shape["data"]
        for start in range(0, len(rows), size):
            part = np.full(size, -1)
            part[: len(rows[start : start + size])] = rows[start : start + size]
            read = rows_at(text.file, part, packing)
            special_bt = np.isin(read.tokens_bt, text.file.meta["special_ids"]) & read.valid_bt
            yield read.tokens_bt, read.valid_bt, special_bt
            if (start + size) * packing.context >= config.eval_tokens:
                return

    sample = {
        job.write: collect(params, work(), cfg=cfg, site=job.write, read=job.read, mesh=mesh, beside=0) for job in jobs
    }
    return HeldOut(acts, sample)


def evaluation(
    config: ConfigDict, job: Job, params: Params, held: HeldOut, *, cfg: LMConfig, mesh: Any
) -> Callable[[TrainState], Row]:
    """Held-out explained variance, L0, dead share and CE recovered of a state of training."""

    def evaluate(state: TrainState) -> Row:
        sae = finished(job.cfg, state)
        sums = fit(sae, held.acts[job.read], held.acts[job.write])
        recon_kd = reconstruct_tokens(sae, held.sample[job.write].acts[job.read]).recon_kd
        _, recovered = splice(params, held.sample[job.write], recon_kd, cfg=cfg, mesh=mesh, limit=config.eval_tokens)
        return {
            "held_out_explained_variance": explained_variance(sums),
            "held_out_l0": l0(sums),
            "held_out_dead": float(np.mean(sums.fired_n == 0)),
            "held_out_ce_recovered": recovered["mean"],
        }

    return evaluate


def said(config: ConfigDict, job: Job, text: Text) -> dict[str, Any]:
    """What the SAE's file says about its training."""
    return {
        "site": lens_name(job.read),
        "site_out": lens_name(job.write) if job.target else None,
        "layer": job.read.layer,
        "model_name": str(config.lm),
        "context_size": config.context,
        "prepend_bos": bool(text.file.meta["prepend_bos"]),
        "exclude_special": bool({"bos", "special"} & set(config.exclude)),
    }


def write_sae(folder: Path, sae: SAE) -> list[str]:
    """Both layouts, each whole or not at all; one that is there is replaced. The names of what was written."""
    written = []
    for name, save in (("sae", save_saelens), ("dictionary_learning", save_dictionary_learning)):
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
    folder: epath.Path, trained: Trained, sae: SAE, job: Job, held: HeldOut, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes curves, figure and result.json; returns what the latter holds."""
    sums = fit(sae, held.acts[job.read], held.acts[job.write])
    histogram, rows = density(sums), trained.rows
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    tested = [row for row in rows if "held_out_l0" in row]
    numbers = {
        "train": {name: columns[name].tolist() for name in ("step", "explained_variance", "l0", "dead")},
        "held_out": {"step": [r["step"] for r in tested]}
        | {k: [r[f"held_out_{k}"] for r in tested] for k in ("explained_variance", "l0", "dead", "ce_recovered")},
        "density": {"edges": histogram.edges.tolist(), "counts": histogram.counts.tolist(), "dead": histogram.dead},
    }
    result = {
        "site": str(job.read),
        "site_out": str(job.write),
        "held_out": {**summary(sae, sums), "ce_recovered": tested[-1]["held_out_ce_recovered"]},
        "train": asdict(job.cfg),
        **about,
        "versions": _common.versions(),
    }
    files: dict[str, bytes | str] = {"curves.csv": csv_text(columns), "result.json": _common.json_text(result)}
    drawn = render(sae_training_figure(numbers), numbers)
    files |= {f"figures/training.{suffix}": data for suffix, data in drawn.items()}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return result


def mean_file(config: ConfigDict, blocks: Blocks, site: Site) -> bytes | None:
    """ā over one epoch of the cache, as .npz; None where activations are not stored."""
    if not config.cache:
        return None
    mean = mean_of(blocks.read(g).acts[site] for g in range(blocks.per_epoch))
    facts = {"norm": mean.norm, "tokens": mean.tokens, "site": str(site)}
    facts = {"norm": mean.norm, "tokens": mean.tokens, "site": str(site)}
    return _common.npz_bytes({"mean_d": mean.mean_d, **{name: np.array(value) for name, value in facts.items()}})


def run(config: ConfigDict, jobs: Sequence[Job], workdir: epath.Path) -> dict[str, Any]:
    """Tokenises, collects activations, trains every SAE, and writes; what each result.json holds, by site."""
    mesh = parallel.make_mesh(config.mesh)
    text = text_of(config, workdir)
    cfg, params = load_lm(config.lm, mesh=mesh, dtype=config.dtype)
    sites = tuple(dict.fromkeys(site for job in jobs for site in (job.read, job.write)))
    source = open_source(
        params, text.file, text.packing, sites, cfg=cfg, mesh=mesh, masks=masks_of(config), rows=text.train,
        dtype=config.act_dtype, batch_rows=config.batch_rows, seed=config.seed,
    )  # fmt: skip
    blocks = blocks_of(config, params, source, cfg=cfg, mesh=mesh, root=workdir)
    held = held_out(config, params, text, source, jobs, cfg=cfg, mesh=mesh)
    ledger = Store(workdir / "store", writer=parallel.is_main())
    stream = batch_function(blocks, batch_size=config.batch_size, seed=config.seed, ledger=ledger)
    about = {
        "activations": describe(source),
        "masked": read_index(workdir / "activations")["counts"] if config.cache else None,
        "held_out_documents": [text.held.start, text.held.stop],
        "inputs": {"lm": fingerprint(resolve_model(config.lm)), "corpus": fingerprint(config.corpus)},
        "config": config.to_dict(),
    }
    found = {}
    for job in jobs:
        folder = workdir if len(jobs) == 1 else workdir / str(job.read)
        found[str(job.read)] = train_one(config, job, stream, blocks, params, held, text, about, cfg, mesh, folder)
    return found


def train_one(
    config: ConfigDict,
    job: Job,
    stream: Batches,
    blocks: Blocks,
    params: Params,
    held: HeldOut,
    text: Text,
    about: dict[str, Any],
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    folder: epath.Path,
) -> dict[str, Any]:
    """One SAE from its first step, or its last checkpoint, to its files."""
    trained = train(
        job.cfg, inputs(stream, job.read, job.target), mesh=mesh, folder=folder / "checkpoints",
        save_every=config.save_every, keep=config.keep, log_every=config.log_every, eval_every=config.eval_every,
        evaluate=evaluation(config, job, params, held, cfg=cfg, mesh=mesh), progress=parallel.is_main(),
    )  # fmt: skip
    state = jax.tree.map(parallel.to_host, trained.state)
    sae = finished(job.cfg, state, **said(config, job, text))
    if not parallel.is_main():
        return {}
    about = {**about, "written": write_sae(Path(folder), sae)}
    if (mean := mean_file(config, blocks, job.write)) is not None:
        write_atomic(folder / "mean.npz", mean)
    return report(folder, trained, sae, job, held, about)


def start(config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False) -> dict[str, Any]:
    """Checks the inputs, then trains under the workdir's lock."""
    _training.require(config, "lm", "corpus", "site")
    cfg = load_config(config.lm)
    jobs = jobs_of(config, cfg)
    if config.batch_size % parallel.make_mesh(config.mesh).shape["data"]:
        raise ValueError(f"batches of {config.batch_size} tokens cannot be split over mesh={config.mesh!r}; change one")
    with lock_workdir(workdir) if parallel.is_main() else contextlib.nullcontext():
        if parallel.is_main():
            claim_workdir(workdir, config.to_dict(), ignore=PLAIN, allow_change=allow_change)
        found = run(config, jobs, workdir)
    for site, result in found.items() if parallel.is_main() else ():
        m = result["held_out"]
        print(
            f"\n{site}: explained variance {m['explained_variance']:.4f}, L0 {m['l0']:.2f}, CE recovered "
            f"{m['ce_recovered']:.4f}; {m['dead_share']:.1%} of {m['latents']:,} latents never fired on {m['tokens']:,} tokens"
        )
    if parallel.is_main():
        print(f"wrote to {workdir}")
    return found


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    parallel.start_distributed()
    parallel.enable_compile_cache()
    start(CONFIG.value, epath.Path(str(WORKDIR.value)), allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
