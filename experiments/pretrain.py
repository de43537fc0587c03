"""Trains a small language model on text from scratch, or continues training one; see
configs/pretrain.py for the command.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config_files import read_config
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_folder import read_object, resolve_model
from sae_attr.lm.save import save_lm
from sae_attr.lm.train_data import RowDataset, split_tokens, token_dataset
from sae_attr.lm.train_lm import random_params
from sae_attr.lm.training_defaults import evaluate_every, pretrain_warmup
from sae_attr.lm.weights import load_lm
from sae_attr.study.dry_run.training_report import lm_training_dry_run
from sae_attr.text.chat import with_options
from sae_attr.text.copy_tokenizer import copy_tokenizer
from sae_attr.text.packed_rows import Packing, row_count
from sae_attr.text.token_file import check_embedding
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer

from . import _common, _training
from ._config import part_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR

# ---- inputs --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything but the weights, read and checked.

    Args:
      source: folder of the tokenizer.
      hf: config.json of the model.
      datasets: to train on, and held out.
      counts: tokens, documents and rows of the corpus.
    """

    source: Path
    hf: dict[str, Any]
    datasets: tuple[RowDataset, RowDataset | None]
    counts: dict[str, int]


def hf_config(config: ConfigDict, tok: Tokenizer) -> dict[str, Any]:
    """Returns config.json of the model: that of `lm`, of `model_json`, or the fields of
    `model` with the tokenizer's ids.

    Raises:
      ValueError: a context longer than the model's.
    """
    if config.lm:
        hf = read_config(resolve_model(config.lm))
    elif config.model_json:
        hf = read_object(Path(config.model_json))
    else:
        hf = {
            "vocab_size": tok.vocab_size,
            "bos_token_id": tok.bos_id,
            "eos_token_id": tok.eos_id,
        }
        for name, value in config.model.to_dict().items():
            if value is not None:
                hf[name] = list(value) if isinstance(value, tuple) else value
    cfg = config_from_hf(hf)
    if config.context > cfg.max_len:
        raise ValueError(
            f"context {config.context} is longer than the model's {cfg.max_len}; take "
            f"--config.context={cfg.max_len}"
        )
    return hf


def datasets_of(
    config: ConfigDict, tok: Tokenizer, root: epath.Path
) -> tuple[tuple[RowDataset, RowDataset | None], dict[str, int]]:
    """Returns the training and the held-out dataset, and counts of the corpus; without
    a file of their own the last rows are held out.
    """
    packing = part_of(Packing, config)
    vocab = tok.embedding_rows or tok.vocab_size
    file = _training.token_file(config, config.corpus, tok, root)
    check_embedding(file, vocab)
    count = row_count(file, packing)
    counts = {
        "tokens": int(file.meta["tokens"]),
        "documents": int(file.meta["documents"]),
        "rows": count,
    }
    if not config.held_out:
        return split_tokens(file, packing, config.held_out_share), counts
    other = _training.token_file(config, config.held_out, tok, root)
    check_embedding(other, vocab)
    train = token_dataset(file, packing, first=0, stop=count)
    held_out = token_dataset(other, packing, first=0, stop=row_count(other, packing))
    return (train, held_out), counts


def checked(config: ConfigDict) -> tuple[Path, dict[str, Any], Tokenizer]:
    """Returns the tokenizer's folder, config.json of the model and the tokenizer, and
    fills in what the config leaves to the number of steps.

    Raises:
      ValueError: files that cannot be read, or sizes that cannot be.
    """
    source = Path(config.tokenizer) if config.tokenizer else resolve_model(config.lm)
    tok = with_options(load_tokenizer(source), config.template_options.to_dict())
    hf = hf_config(config, tok)
    tok = replace(tok, embedding_rows=config_from_hf(hf).vocab)
    if config.opt.warmup is None:
        config.opt.warmup = pretrain_warmup(config.steps)
    if config.eval_every is None:
        config.eval_every = evaluate_every(config.steps)
    _training.check(config, config.steps)
    return source, hf, tok


def prepare(config: ConfigDict, workdir: epath.Path) -> Inputs:
    """Reads everything but the weights, so that what is wrong is reported before a
    model is made.
    """
    source, hf, tok = checked(config)
    _training.warn_of_few_steps(config.steps, "raise steps")
    datasets, counts = datasets_of(config, tok, workdir)
    return Inputs(source, hf, datasets, counts)


# ---- the run -------------------------------------------------------------------------


def run(config: ConfigDict, inputs: Inputs, workdir: epath.Path) -> dict[str, Any]:
    """Makes or loads the model, trains, writes; returns the content of result.json."""
    mesh = parallel.make_mesh(config.mesh)
    if config.lm:
        cfg, params = load_lm(config.lm, mesh=mesh, dtype=config.dtype)
    else:
        cfg = config_from_hf(inputs.hf)
        params = random_params(cfg, mesh, seed=config.seed, dtype=config.dtype)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    dataset = inputs.datasets[0]
    epochs = config.steps * config.batch_size / dataset.count
    logging.info(
        "%d parameters, %d rows of %d tokens, %.2f epochs",
        size,
        dataset.count,
        dataset.width,
        epochs,
    )
    hashes = _training.hashes(config)
    result = _training.train(
        params,
        {},
        inputs.datasets,
        cfg=cfg,
        config=config,
        steps=config.steps,
        mesh=mesh,
        workdir=workdir,
        inputs=hashes,
    )
    models = {"model": result.state.trained}
    best, best_text = _training.best_leaves(result, workdir)
    if best is not None:
        models["model-best"] = best
    for name, trained in models.items():
        save_lm(Path(workdir) / name, inputs.hf, trained)
        if parallel.is_main():
            copy_tokenizer(inputs.source, Path(workdir) / name)
    if not parallel.is_main():
        return {}
    facts = {
        "best": best_text,
        "corpus": inputs.counts,
        "epochs": epochs,
        "parameters_trained": size,
        **hashes,
    }
    return _training.write_results(workdir, result, config, facts)


def require_inputs(config: ConfigDict) -> None:
    """Raises ValueError for inputs that the config lacks."""
    _common.require(config, "corpus", *([] if config.lm else ["tokenizer"]))


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> None:
    """Checks the inputs, then trains under the workdir's lock."""
    require_inputs(config)
    _common.fix_day(config, workdir)
    _training.metrics_log(config, workdir)  # refuses what it cannot write
    inputs = prepare(config, workdir)
    with _common.own_workdir_of(
        config, workdir, ignore=_training.PLAIN, allow_change=allow_change
    ):
        summary = run(config, inputs, workdir)
        if parallel.is_main():
            _training.show(summary, workdir)


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a training needs, without weights; nothing is written."""
    require_inputs(config)
    _common.fix_day(config, workdir)
    _, hf, tok = checked(config)
    report = DryRun()
    _training.add_corpus(report, config, config.corpus, tok)
    cfg = config_from_hf(hf)
    run = _training.lm_training(config, cfg, None, config.steps, config.context)
    mesh = parallel.make_mesh(config.mesh)
    return lm_training_dry_run(run, workdir, mesh, rates_of, report)


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
