"""Wiring that fine-tuning and pretraining share: from a config to settings and
inputs, and from a result to files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_folder import model_fingerprint
from sae_attr.lm.lora import Lora
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import Assemble, ComputeOptions, LMState, join
from sae_attr.lm.optimizer import Optimizer, learning_rate
from sae_attr.lm.train_data import RowDataset, all_batches, step_batch
from sae_attr.lm.train_lm import best_trained, train_lm, training_summary
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import json_text
from sae_attr.report.training_curves import lm_curve_files
from sae_attr.settings import settings_from
from sae_attr.store import fingerprint, write_atomic
from sae_attr.store.metrics_log import MetricsLog, MetricsOptions
from sae_attr.study.dry_run.prompts import shown_ids
from sae_attr.study.dry_run.report import DryRun
from sae_attr.study.dry_run.training_report import LMTraining
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.token_file import (
    TokenFile,
    cached_tokens,
    check_tokenizer,
    is_token_file,
    open_tokens,
)
from sae_attr.text.tokenizer import Tokenizer, encode
from sae_attr.text.tokenizer_folder import tokenizer_fingerprint
from sae_attr.training import LoopOptions, TrainResult

from . import _common
from ._config import part_of

# Keys that say where and how fast a run computes, on which no result depends.
PLAIN = (
    "mesh",
    "micro",
    "scan",
    "remat",
    "loss_chunk",
    "eval_every",
    "save_every",
    "keep",
    "merge",
    "tensorboard",
)
# Keys that say where inputs lie. Their contents are compared instead, by `hashes`.
PATHS = ("lm", "data", "corpus", "held_out", "tokenizer", "chat_template", "model_json")
# A model may be an address; the folder of a tokenizer may hold a model too.
_FINGERPRINTS = {"lm": model_fingerprint, "tokenizer": tokenizer_fingerprint}
DTYPES = ("float32", "bfloat16")
FEW_STEPS = 300
_SHOWN_TOKENS = 100  # of a corpus, in a dry run


# ---- inputs --------------------------------------------------------------------------


def hashes(config: ConfigDict) -> dict[str, str]:
    """Returns `<name>_hash` for every input that the config names: a fingerprint of its
    contents, wherever it lies.
    """
    out = {}
    for name in PATHS:
        if not config.get(name):
            continue
        path = str(config[name])
        contents = _FINGERPRINTS.get(name, fingerprint)(path)
        out[f"{name}_hash"] = contents
    return out


def token_file(
    config: ConfigDict,
    corpus: str,
    tok: Tokenizer,
    root: epath.Path,
    *,
    prepend_bos: bool | None = None,
) -> TokenFile:
    """Opens a folder of `write_tokens`, or tokenises a corpus once into `root`."""
    if is_token_file(corpus):
        file = open_tokens(corpus)
        check_tokenizer(file, tok, prepend_bos=prepend_bos)
        return file
    return cached_tokens(
        corpus,
        tok,
        root,
        column=config.column,
        split=config.split,
        prepend_bos=prepend_bos,
        append_eos=config.append_eos,
        max_tokens=config.max_tokens,
        progress=parallel.is_main(),
    )


def add_corpus(report: DryRun, config: ConfigDict, corpus: str, tok: Tokenizer) -> None:
    """Adds the beginning of a corpus to a dry run, as the model reads it; nothing is
    tokenised into files.

    Raises:
      ValueError: a corpus that cannot be read, or was made with another tokenizer.
    """
    if is_token_file(corpus):
        file = open_tokens(corpus)
        check_tokenizer(file, tok)
        ids, count = file.ids_k[:_SHOWN_TOKENS], f"{file.meta['tokens']:,} tokens"
    else:
        texts = read_corpus(corpus, column=config.column, split=config.split, tok=tok)
        ids, _ = encode(tok, next(iter(texts)), add_bos=False)
        count = "tokenised by the run"
    shown = shown_ids(np.asarray(ids)[:_SHOWN_TOKENS], tok)
    report.add("corpus", f"{one_line(corpus)}: {count}; it begins: {shown}")


def lm_training(
    config: ConfigDict, cfg: LMConfig, lora: Lora | None, steps: int, width: int
) -> LMTraining:
    """Returns a training of a language model as a dry run counts it.

    Args:
      width: tokens of a row.
    """
    return LMTraining(
        str(config.lm or "a new model"),
        cfg,
        lora,
        config.dtype,
        part_of(ComputeOptions, config, dtype=config.compute_dtype),
        steps,
        config.batch_size,
        config.micro,
        width,
    )


# ---- settings ------------------------------------------------------------------------


def settings(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Returns `opt`, `options` and `compute` of `train_lm`."""
    values = {"steps": steps, **config.opt.to_dict()}
    return {
        "opt": settings_from(Optimizer, values, where="config.opt"),
        "options": part_of(LoopOptions, config, log_every=0),
        "compute": part_of(ComputeOptions, config, dtype=config.compute_dtype),
    }


def check(config: ConfigDict, steps: int) -> None:
    """Checks sizes and names against each other, before anything is loaded.

    Raises:
      ValueError: a batch, mesh, dtype, schedule or number of steps that cannot be.
    """
    if steps < 1 or config.batch_size < 1 or config.micro < 1:
        raise ValueError(
            f"{steps} steps of {config.batch_size} rows in {config.micro} parts: each "
            "is to be at least 1"
        )
    if config.batch_size % config.micro:
        raise ValueError(
            f"a batch of {config.batch_size} rows cannot be cut into {config.micro}; "
            "use a divisor"
        )
    rows = config.batch_size // config.micro
    size = parallel.make_mesh(config.mesh).shape["data"]
    if rows % size:
        raise ValueError(
            f"micro-batches of {rows} rows cannot be split over data={size}; change "
            "batch_size, micro or mesh"
        )
    for name, dtypes in (("dtype", DTYPES), ("compute_dtype", (*DTYPES, ""))):
        if config[name] not in dtypes:
            raise ValueError(
                f"{name} {config[name]!r} is unknown; choose float32 or bfloat16"
            )
    learning_rate(settings(config, steps)["opt"])


def warn_of_few_steps(steps: int, cure: str) -> None:
    """Warns before a short run starts."""
    if steps >= FEW_STEPS:
        return
    noun = "step" if steps == 1 else "steps"
    logging.warning(
        "only %d %s will be taken, which is little to learn from (%d are usual); %s",
        steps,
        noun,
        FEW_STEPS,
        cure,
    )


# ---- training ------------------------------------------------------------------------


def metrics_log(config: ConfigDict, folder: epath.Path) -> MetricsLog | None:
    """Returns the log of a folder's metrics; None on processes that write nothing."""
    if not parallel.is_main():
        return None
    return MetricsLog(folder, part_of(MetricsOptions, config))


def train(
    trained: Params,
    frozen: Params,
    datasets: tuple[RowDataset, RowDataset | None],
    *,
    cfg: LMConfig,
    config: ConfigDict,
    steps: int,
    mesh: jax.sharding.Mesh,
    workdir: epath.Path,
    inputs: Mapping[str, Any],
    assemble: Assemble = join,
) -> TrainResult[LMState]:
    """Calls `train_lm` on a training and a held-out dataset, with checkpoints in the
    workdir.

    Args:
      inputs: hashes of what is read; a run that goes on must find the same.
    """
    dataset, held_out = datasets
    batch_of = partial(
        step_batch,
        dataset,
        batch_size=config.batch_size,
        micro=config.micro,
        seed=config.seed,
    )
    identity = {**config.to_dict(), **inputs}
    for name in PLAIN + PATHS:
        identity.pop(name, None)
    held_out_batches = []
    if held_out is not None:
        held_out_batches = all_batches(held_out, config.batch_size // config.micro)
    return train_lm(
        trained,
        frozen,
        batch_of,
        cfg=cfg,
        mesh=mesh,
        assemble=assemble,
        held_out=held_out_batches,
        folder=workdir / "checkpoints",
        config=identity,
        metrics_log=metrics_log(config, workdir),
        progress=parallel.is_main(),
        **settings(config, steps),
    )


def best_leaves(
    result: TrainResult[LMState], workdir: epath.Path
) -> tuple[Params | None, str]:
    """Returns the trained leaves of the best held-out step where that is not the last,
    and a phrase that says which model the best one is.
    """
    summary = training_summary(result)
    best = best_trained(result, workdir / "checkpoints")
    if summary["best_step"] == 0:
        return best, "the untrained model"
    if best is None:
        return None, "the last step"
    return best, "kept beside the last"


def write_results(
    workdir: epath.Path,
    result: TrainResult[LMState],
    config: ConfigDict,
    facts: Mapping[str, Any],
    files: Mapping[str, bytes | str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes curves, result.json and further files; returns the content of
    result.json.
    """
    summary = {
        **facts,
        **training_summary(result),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    contents = {**lm_curve_files(result.history), **files}
    contents["result.json"] = json_text(summary)
    for name, content in contents.items():
        write_atomic(workdir / name, content)
    return summary


def show(summary: Mapping[str, Any], workdir: epath.Path) -> None:
    """Prints losses, speed and the files of the results."""
    print(
        f"\ntraining loss {summary['loss_first']:.4f} → "
        f"{summary['loss_last_tenth']:.4f} nats per target"
    )
    if summary["held_out_last"] is not None:
        print(
            f"held-out loss {summary['held_out_first']:.4f} → "
            f"{summary['held_out_last']:.4f}"
        )
        if summary["best_step"] != summary["steps"]:
            print(
                f"the lowest was {summary['held_out_best']:.4f} at step "
                f"{summary['best_step']}: {summary['best']}"
            )
    if summary["tokens_per_second"]:
        print(f"{summary['tokens_per_second']:,.0f} tokens/s")
    names = [p.name for p in workdir.iterdir() if not p.name.startswith(".")]
    print(f"wrote to {workdir}: {', '.join(sorted(names))}")
