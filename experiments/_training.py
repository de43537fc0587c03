"""What fine-tuning and pretraining share: optimiser and loop from a config, curves, and
the folder that is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import Assemble, ComputeOptions, LMState, join
from sae_attr.lm.optimizer import Optimizer, learning_rate
from sae_attr.lm.train_data import RowDataset, all_batches, step_batch
from sae_attr.lm.train_lm import best_step, best_trained, train_lm
from sae_attr.lm.weights import resolve_model
from sae_attr.report.figures import loss_figure, render
from sae_attr.report.tables import csv_text, json_text
from sae_attr.settings import settings_from
from sae_attr.store import fingerprint, write_atomic
from sae_attr.text.token_file import (
    TokenFile,
    cached_tokens,
    check_tokenizer,
    is_token_file,
    open_tokens,
)
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.training import LoopOptions, Record, TrainResult

from . import _common
from ._config import part_of

# Where and how fast, not what.
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
)
# Where the inputs lie; what they hold is compared, by `hashes`.
PATHS = ("lm", "data", "corpus", "held_out", "tokenizer", "chat_template", "model_json")
CURVES = ("step", "loss", "targets", "grad_norm", "lr")
FEW_STEPS = 300
TOKENIZER_FILES = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *(
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ),
)


def hashes(config: ConfigDict) -> dict[str, str]:
    """`<name>_hash` of every input that the config names: what it holds, wherever it
    lies.
    """
    given = {name: Path(str(config[name])) for name in PATHS if config.get(name)}
    if "lm" in given:
        given["lm"] = resolve_model(config.lm)
    if "tokenizer" in given:  # the folder may hold a model too
        given["tokenizer"] /= "tokenizer.json"
    return {f"{name}_hash": fingerprint(path) for name, path in given.items()}


def token_file(
    config: ConfigDict,
    corpus: str,
    tok: Tokenizer,
    root: epath.Path,
    *,
    prepend_bos: bool | None = None,
) -> TokenFile:
    """A folder of `write_tokens` as it is, or a corpus tokenised once into `root`."""
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


def settings(config: ConfigDict, steps: int) -> dict[str, Any]:
    """`opt`, `options` and `compute` of `train_lm`."""
    opt = settings_from(
        Optimizer, {"steps": steps, **config.opt.to_dict()}, where="config.opt"
    )
    compute = part_of(ComputeOptions, config, dtype=config.compute_dtype)
    options = part_of(LoopOptions, config, log_every=0)
    return {"opt": opt, "options": options, "compute": compute}


def check(config: ConfigDict, steps: int) -> None:
    """Raises ValueError for a batch, mesh, dtype, schedule or number of steps that
    cannot be.
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
    size = parallel.make_mesh(config.mesh).shape["data"]
    if config.batch_size // config.micro % size:
        raise ValueError(
            f"micro-batches of {config.batch_size // config.micro} rows cannot be "
            f"split over data={size}; change "
            "batch_size, micro or mesh"
        )
    for name in ("dtype", "compute_dtype"):
        if config[name] not in (
            "float32",
            "bfloat16",
            *([""] if name == "compute_dtype" else []),
        ):
            raise ValueError(
                f"{name} {config[name]!r} is unknown; choose float32 or bfloat16"
            )
    learning_rate(settings(config, steps)["opt"])


def warn_of_few_steps(steps: int, cure: str) -> None:
    """Says before a run starts that it is a short one."""
    if steps < FEW_STEPS:
        logging.warning(
            "only %d steps will be taken, which is little to learn from (%d are "
            "usual); %s",
            steps,
            FEW_STEPS,
            cure,
        )


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
    """`train_lm` on a training and a held-out dataset, with checkpoints in the workdir.

    Args:
      inputs: hashes of what is read; a continued run must find the same.
    """
    dataset, held_out = datasets
    batch_of = partial(
        step_batch,
        dataset,
        batch_size=config.batch_size,
        micro=config.micro,
        seed=config.seed,
    )
    kept = {
        name: value
        for name, value in config.to_dict().items()
        if name not in PLAIN + PATHS
    }
    rows = config.batch_size // config.micro
    return train_lm(
        trained,
        frozen,
        batch_of,
        cfg=cfg,
        mesh=mesh,
        assemble=assemble,
        held_out=all_batches(held_out, rows) if held_out else (),
        folder=workdir / "checkpoints",
        config={**kept, **inputs},
        progress=parallel.is_main(),
        **settings(config, steps),
    )


def kept_best(
    fitted: TrainResult[LMState], workdir: epath.Path
) -> tuple[Params | None, str]:
    """The trained leaves of the best held-out step where that is not the last, and
    where they are said to lie.
    """
    best = best_trained(fitted, workdir / "checkpoints")
    return (
        best,
        "the untrained model"
        if best_step(fitted.history) == 0
        else "the last step"
        if best is None
        else "kept beside the last",
    )


def curves(history: list[Record]) -> dict[str, bytes | str]:
    """curves.csv, held_out.csv and the figure, by file name."""
    steps = [record for record in history if "loss" in record]
    held = [record for record in history if "eval_loss" in record]
    numbers = {
        "train": {name: [r[name] for r in steps] for name in ("step", "loss")},
        "held_out": {
            "step": [r["step"] for r in held],
            "loss": [r["eval_loss"] for r in held],
        },
    }
    files: dict[str, bytes | str] = {
        f"figures/loss.{suffix}": data
        for suffix, data in render(loss_figure(numbers), numbers).items()
    }
    files["curves.csv"] = csv_text({name: [r[name] for r in steps] for name in CURVES})
    if held:
        files["held_out.csv"] = csv_text(numbers["held_out"])
    return files


def report(
    workdir: epath.Path,
    fitted: TrainResult[LMState],
    config: ConfigDict,
    summary: Mapping[str, Any],
    files: Mapping[str, bytes | str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes curves, result.json and further files; returns what result.json holds."""
    losses = [record["loss"] for record in fitted.history if "loss" in record]
    held = [record["eval_loss"] for record in fitted.history if "eval_loss" in record]
    result = {
        **summary,
        "steps": int(fitted.state.step),
        "continued_from_step": fitted.started,
        "loss_first": losses[0],
        "loss_last_tenth": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "held_out_first": held[0] if held else None,
        "held_out_last": held[-1] if held else None,
        "held_out_best": min(held) if held else None,
        "best_step": best_step(fitted.history),
        "tokens_per_second": fitted.tokens_per_second,
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    for name, content in {
        **curves(fitted.history),
        **files,
        "result.json": json_text(result),
    }.items():
        write_atomic(workdir / name, content)
    return result


def show(result: Mapping[str, Any], workdir: epath.Path) -> None:
    """Prints losses, speed and where the results are."""
    print(
        f"\ntraining loss {result['loss_first']:.4f} → {result['loss_last_tenth']:.4f} "
        "nats per target"
    )
    if result["held_out_last"] is not None:
        print(
            f"held-out loss {result['held_out_first']:.4f} → "
            f"{result['held_out_last']:.4f}"
        )
        if result["best_step"] != result["steps"]:
            print(
                f"the lowest was {result['held_out_best']:.4f} at step "
                f"{result['best_step']}: {result['best']}"
            )
    if result["tokens_per_second"]:
        print(f"{result['tokens_per_second']:,.0f} tokens/s")
    print(
        f"wrote to {workdir}: {', '.join(sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.')))}"
    )


def copy_tokenizer(
    source: Path, target: Path, chat_template: str | None = None
) -> None:
    """The tokenizer's files beside the weights, with another chat template if one is
    given.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if chat_template is not None:
        write_atomic(target / "chat_template.jinja", chat_template)
