"""Trains SAEs and transcoders on a language model's activations; see
configs/train_sae.py for the command.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.activations import BlockStream, Masks, mean_of
from sae_attr.hooks import Site
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.report.tables import json_text
from sae_attr.report.training_curves import sae_curve_files
from sae_attr.sae.crosscoder_export import save_crosscoder
from sae_attr.sae.export import save_dictionary_learning, save_saelens
from sae_attr.sae.metrics import density
from sae_attr.sae.model import SAE
from sae_attr.store import Store, write_atomic
from sae_attr.study.dry_run.training_report import sae_training_dry_run
from sae_attr.study.sae_jobs import SAEJob, SAETrainingSettings, sae_jobs
from sae_attr.study.sae_training import held_out_sums, train_job, training_facts
from sae_attr.study.sae_training_data import SAETrainingData, open_training_data
from sae_attr.text.chat import with_options
from sae_attr.text.masks import count_text
from sae_attr.text.packed_rows import Packing
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer
from sae_attr.training import LoopOptions

from . import _common, _training
from ._config import part_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR

# Keys that say where and how fast a run computes, on which no result depends.
PLAIN = (
    "mesh",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "batch_rows",
    "tensorboard",
)


def tokenizer_of(config: ConfigDict) -> Tokenizer:
    """Loads the model's tokenizer, with the template options of the config."""
    embedding_rows = load_config(config.lm).vocab
    return with_options(
        load_tokenizer(resolve_model(config.lm), embedding_rows=embedding_rows),
        config.template_options.to_dict(),
    )


def prepare(
    config: ConfigDict,
    settings: SAETrainingSettings,
    jobs: Sequence[SAEJob],
    workdir: epath.Path,
) -> SAETrainingData:
    """Tokenises the corpus, loads the model and collects activations."""
    tok = tokenizer_of(config)
    file = _training.token_file(
        config, config.corpus, tok, workdir, prepend_bos=config.prepend_bos
    )
    masks = part_of(
        Masks,
        config,
        exclude=frozenset(config.exclude or ()),
        outlier=config.outlier or None,
    )
    return open_training_data(
        settings,
        jobs,
        file,
        workdir,
        masks=masks,
        packing=part_of(Packing, config),
        mesh=parallel.make_mesh(config.mesh),
    )


def write_sae(folder: Path, sae: SAE) -> list[str]:
    """Writes the layouts that can hold it, each whole or not at all, in place of what is there; returns
    the names of those that were written.
    """
    layouts = {
        "sae": save_saelens,
        "dictionary_learning": save_dictionary_learning,
        "crosscoder": save_crosscoder,
    }
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


def run(
    config: ConfigDict,
    data: SAETrainingData,
    job: SAEJob,
    ledger: Store,
    folder: epath.Path,
) -> dict[str, Any]:
    """Trains one SAE, from its last checkpoint if there is one, and writes its files;
    returns the content of result.json.
    """
    options = part_of(LoopOptions, config, scan=1)
    log = _training.metrics_log(config, folder)
    trained = train_job(data, job, ledger, folder / "checkpoints", options, log)
    if not parallel.is_main():
        return {}
    sums = held_out_sums(data, job, trained.sae)
    results = {
        **training_facts(data, job, trained, sums),
        "config": config.to_dict(),
        "sae_check": trained.check,
        "written": write_sae(Path(folder), trained.sae),
        "versions": _common.versions(),
    }
    rates = density(sums)
    histogram = {
        "edges": rates.edges.tolist(),
        "counts": rates.counts.tolist(),
        "dead": rates.dead,
    }
    files = sae_curve_files(trained.history, histogram)
    files["result.json"] = json_text(results)
    if config.cache and not data.join:
        files["mean.npz"] = mean_file(data.blocks, job.sites.write)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return results


def show(site: str, results: Mapping[str, Any]) -> None:
    """Prints the measurements of one SAE."""
    held_out, silent = results["held_out"], results["silent_share"]
    recovered = ""
    if not results["join"]:
        recovered = f", CE recovered {held_out['ce_recovered']:.4f}"
    print(
        f"\n{site}: explained variance {held_out['explained_variance']:.4f}, L0 "
        f"{held_out['l0']:.2f}{recovered}; "
        f"{held_out['dead_share']:.1%} of {held_out['latents']:,} latents never fired "
        f"on {held_out['tokens']:,} tokens, {silent['share']:.1%} on the last "
        f"{silent['tokens']:,} of training"
    )
    if results["masked"]:
        print(count_text(results["masked"]))
    print(f"SAE check: {results['sae_check']['verdict']}")


def checked(
    config: ConfigDict, workdir: epath.Path
) -> tuple[SAETrainingSettings, list[SAEJob]]:
    """Returns what is trained on what, checked before anything is loaded.

    Raises:
      ValueError: inputs that are missing, or sizes that cannot be.
    """
    _common.require(config, "lm", "corpus", "site")
    _common.fix_day(config, workdir)
    _training.metrics_log(config, workdir)  # refuses what it cannot write
    settings = part_of(SAETrainingSettings, config)
    jobs = sae_jobs(settings, config.sae.to_dict(), load_config(config.lm))
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_rows(config.batch_size, mesh, "batch_size")
    return settings, jobs


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> dict[str, Any]:
    """Checks the inputs, then trains under the workdir's lock; returns the results of
    every site.
    """
    settings, jobs = checked(config, workdir)
    _training.warn_of_few_steps(jobs[0].cfg.steps, "raise tokens or lower batch_size")
    results = {}
    with _common.own_workdir_of(
        config, workdir, ignore=PLAIN, allow_change=allow_change
    ):
        data = prepare(config, settings, jobs, workdir)
        ledger = Store(workdir / "store", writer=parallel.is_main())
        for job in jobs:
            site = str(job.sites.read)
            folder = workdir
            if len(jobs) > 1:
                folder = workdir / site
            results[site] = run(config, data, job, ledger, folder)
    if parallel.is_main():
        for site, result in results.items():
            show(site, result)
        print(f"wrote to {workdir}")
    return results


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a training needs, without weights; nothing is written."""
    settings, jobs = checked(config, workdir)
    report = DryRun()
    _training.add_corpus(report, config, config.corpus, tokenizer_of(config))
    return sae_training_dry_run(
        settings,
        jobs,
        load_config(config.lm),
        workdir,
        parallel.make_mesh(config.mesh),
        context=config.context,
        rates_of=rates_of,
        report=report,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(CONFIG.value, workdir, allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
