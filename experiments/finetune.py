"""Fine-tunes a language model on chat or prompt/completion rows; see
configs/finetune.py for the command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.adapter_states import example_states
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config, read_config
from sae_attr.lm.gguf_weights import quantisation_note
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.lora import Lora, attach, check_lora, init_lora, merged
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import join
from sae_attr.lm.peft_save import save_adapter
from sae_attr.lm.save import save_lm
from sae_attr.lm.train_data import RowDataset, example_dataset, split_rows
from sae_attr.lm.training_defaults import (
    batch_for,
    epochs_for,
    evaluate_every,
    rank_for,
    warmup_for,
)
from sae_attr.lm.weights import load_lm
from sae_attr.study.dry_run.prompts import rows_text
from sae_attr.study.dry_run.training_report import lm_training_dry_run
from sae_attr.text.chat import with_options
from sae_attr.text.copy_tokenizer import copy_tokenizer
from sae_attr.text.example_records import Example
from sae_attr.text.examples import Examples, read_examples, shown_example
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer

from . import _common, _training
from ._config import settings_of
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import (
    ALLOW_CHANGE,
    CONFIG,
    DRY_RUN,
    SHOW_TOKENS,
    TOKENS_PER_SECOND,
    WORKDIR,
)

# ---- inputs --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything but the weights, read and checked.

    Args:
      source: folder of the model.
      lora: None trains all parameters.
      data: everything of the data file.
      held_out: rows that are not trained on.
      datasets: to train on, and held out.
      steps: of the run.
    """

    source: Path
    lora: Lora | None
    data: Examples
    held_out: list[Example]
    datasets: tuple[RowDataset, RowDataset | None]
    steps: int


def tokenizer_of(
    config: ConfigDict, folder: Path, embedding_rows: int | None = None
) -> Tokenizer:
    """Loads the model's tokenizer, with the chat template and its options that the
    config names.
    """
    tok = load_tokenizer(folder, embedding_rows=embedding_rows)
    if config.chat_template:
        tok = replace(tok, chat_template=Path(config.chat_template).read_text("utf-8"))
    return with_options(tok, config.template_options.to_dict())


def read_rows(
    config: ConfigDict, tok: Tokenizer
) -> tuple[Examples, list[Example], list[Example]]:
    """Returns everything of the data file, the rows to train on, and the held-out
    rows.
    """
    read = partial(
        read_examples,
        tok=tok,
        context=config.context,
        truncate=config.truncate,
        append_eos=config.append_eos,
        unlike=config.unlike_generation,
    )
    data = read(config.data)
    if data.unlike:
        logging.warning(
            "%d of %d rows: %s", len(data.unlike), len(data.rows), data.unlike_shown
        )
    if config.held_out:
        return data, data.rows, read(config.held_out).rows
    return data, *split_rows(data.rows, config.held_out_share, config.seed)


def lora_of(config: ConfigDict, cfg: LMConfig) -> Lora | None:
    """Returns the adapter that the config describes, None for all parameters.

    Raises:
      ValueError: a context, method or adapter that does not fit the model.
    """
    if config.context > cfg.max_len:
        raise ValueError(
            f"context {config.context} is longer than the model's {cfg.max_len}; take "
            f"--config.context={cfg.max_len}"
        )
    scales_by_length = any(
        rope.kind == "longrope" and config.context > rope.original_len
        for rope in cfg.ropes
    )
    if config.packed and scales_by_length:
        raise ValueError(
            "longrope scales by a row's length, so rows beyond the original one cannot "
            "be packed; packed=False"
        )
    if config.method not in ("lora", "full"):
        raise ValueError(f"method {config.method!r} is unknown; choose lora or full")
    if config.method == "full":
        return None
    lora = settings_of(Lora, config.lora, where="config.lora")
    check_lora(cfg, lora)
    return lora


def fill_rank(config: ConfigDict, rows: int) -> None:
    """Fills in the adapter's rank and scale where the config leaves them to the number
    of rows.
    """
    if config.lora.rank is None:
        config.lora.rank = rank_for(rows)
    if config.lora.alpha is None:
        config.lora.alpha = 2.0 * config.lora.rank


def fill_steps(config: ConfigDict, packs: int) -> int:
    """Fills in batch, epochs, warm-up and evaluations where the config leaves them to
    the number of packs; returns the number of steps.
    """
    if config.batch_size is None:
        unit = config.micro * parallel.make_mesh(config.mesh).shape["data"]
        config.batch_size = batch_for(packs, unit)
    if config.epochs is None:
        config.epochs = epochs_for(packs, config.batch_size)
    steps = math.ceil(config.epochs * packs / max(config.batch_size, 1))
    if config.opt.warmup is None:
        config.opt.warmup = warmup_for(steps)
    if config.eval_every is None:
        config.eval_every = evaluate_every(steps)
    return steps


def prepare(config: ConfigDict) -> Inputs:
    """Reads everything but the weights, so that what is wrong is reported before
    anything is written.
    """
    source = resolve_model(config.lm)
    cfg = load_config(str(source))
    data, rows, held_out = read_rows(config, tokenizer_of(config, source, cfg.vocab))
    fill_rank(config, len(rows))
    lora = lora_of(config, cfg)
    packed = partial(
        example_dataset,
        context=config.context,
        packed=config.packed,
        seed=config.seed,
    )
    dataset = packed(rows)
    steps = fill_steps(config, dataset.count)
    logging.info(
        "%d rows in %d packs of %d tokens, %d steps",
        len(rows),
        dataset.count,
        dataset.width,
        steps,
    )
    _training.check(config, steps)
    _training.warn_of_few_steps(
        steps, "give more rows, raise epochs or lower batch_size"
    )
    datasets = (dataset, packed(held_out) if held_out else None)
    return Inputs(source, lora, data, held_out, datasets, steps)


# ---- the run -------------------------------------------------------------------------


def write_model(
    workdir: Path,
    config: ConfigDict,
    cfg: LMConfig,
    lora: Lora | None,
    params: Params,
    trained: Params,
    suffix: str = "",
) -> None:
    """Writes the PEFT adapter, the whole model, or both, each with its tokenizer.

    Args:
      params: the tree that `forward` reads.
      trained: the trained leaves.
      suffix: of the folders' names.
    """
    source = resolve_model(config.lm)
    folders = []
    if lora is not None:
        folder = workdir / f"adapter{suffix}"
        save_adapter(folder, cfg, lora, trained, base=str(config.lm))
        folders.append(folder)
    if lora is None or config.merge:
        folder = workdir / f"model{suffix}"
        whole = params if lora is None else jax.jit(merged)(params)
        save_lm(folder, read_config(source), whole)
        folders.append(folder)
    if not parallel.is_main():
        return
    template = None
    if config.chat_template:
        template = Path(config.chat_template).read_text("utf-8")
    for folder in folders:
        copy_tokenizer(source, folder, template)


def trained_parameters(cfg: LMConfig, lora: Lora | None, trained: Params) -> int:
    """Counts the parameters that are trained."""
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    if lora is None:
        return count
    # The factors are stacked over all layers; those of other layers stay 0.
    return round(count * len(check_lora(cfg, lora)) / cfg.n_layers)


def _parts(
    cfg: LMConfig, params: Params, lora: Lora | None, seed: int
) -> tuple[Params, Params, Callable[[Params, Params], Params]]:
    """Returns the leaves that are trained, those that stay, and what makes a model of
    both: frozen before trained.
    """
    if lora is None:
        return params, {}, join
    trained = init_lora(cfg, params, lora, jax.random.key(seed))
    return trained, params, partial(attach, scale=lora.scale)


def run(config: ConfigDict, inputs: Inputs, workdir: epath.Path) -> dict[str, Any]:
    """Loads the model, trains, writes; returns the content of result.json."""
    mesh, lora = parallel.make_mesh(config.mesh), inputs.lora
    cfg, params = load_lm(str(inputs.source), mesh=mesh, dtype=config.dtype)
    trained, frozen, assemble = _parts(cfg, params, lora, config.seed)
    hashes = _training.hashes(config)
    result = _training.train(
        trained,
        frozen,
        inputs.datasets,
        cfg=cfg,
        config=config,
        steps=inputs.steps,
        mesh=mesh,
        workdir=workdir,
        inputs=hashes,
        assemble=assemble,
    )
    last = result.state.trained
    whole = assemble(frozen, last)
    write_model(Path(workdir), config, cfg, lora, whole, last)
    best, best_text = _training.best_leaves(result, workdir)
    if best is not None:
        whole_best = assemble(frozen, best)
        write_model(Path(workdir), config, cfg, lora, whole_best, best, "-best")
    files = {}
    if lora is not None and inputs.held_out:
        states = example_states(
            whole,
            inputs.held_out,
            cfg=cfg,
            layers=check_lora(cfg, lora),
            context=config.context,
            batch_size=config.batch_size,
        )
        files["adapter_states.npz"] = _common.npz_bytes(states)
    if not parallel.is_main():
        return {}
    facts = {
        "data": inputs.data.counts,
        "rows_held_out": len(inputs.held_out),
        **hashes,
        **quantisation_note(str(config.lm)),
        "best": best_text,
        "packs": inputs.datasets[0].count,
        "pack_tokens": inputs.datasets[0].width,
        "parameters_trained": trained_parameters(cfg, lora, last),
    }
    return _training.write_results(workdir, result, config, facts, files)


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    shown: int = 0,
    allow_change: bool = False,
) -> None:
    """Checks the inputs, then trains under the workdir's lock; with `shown`, only
    prints the loss mask of so many rows.
    """
    _common.require(config, "lm", "data")
    _common.fix_day(config, workdir)
    _training.metrics_log(config, workdir)  # refuses what it cannot write
    if shown:
        tok = tokenizer_of(config, resolve_model(config.lm))
        data, _, _ = read_rows(config, tok)
        print("\n\n".join(shown_example(row, tok) for row in data.rows[:shown]))
        return
    inputs = prepare(config)
    with _common.own_workdir_of(
        config, workdir, ignore=_training.PLAIN, allow_change=allow_change
    ):
        summary = run(config, inputs, workdir)
        if parallel.is_main():
            _training.show(summary, workdir)


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a fine-tune needs, without weights; nothing is written."""
    _common.require(config, "lm", "data")
    _common.fix_day(config, workdir)
    inputs = prepare(config)
    cfg = load_config(str(inputs.source))
    tok = tokenizer_of(config, inputs.source, cfg.vocab)
    report = DryRun()
    report.add("rows through the chat template", rows_text(inputs.data.rows, tok))
    run = _training.lm_training(
        config, cfg, inputs.lora, inputs.steps, inputs.datasets[0].width
    )
    mesh = parallel.make_mesh(config.mesh)
    return lm_training_dry_run(run, workdir, mesh, rates_of, report)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(
        CONFIG.value,
        workdir,
        shown=SHOW_TOKENS.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
