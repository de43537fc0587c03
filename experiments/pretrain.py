"""Trains a small language model on text from nothing, or goes on with one; see
configs/pretrain.py for the command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.lm.finetune_sizes import evaluate_every
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_folder import read_object
from sae_attr.lm.model import Params
from sae_attr.lm.params import init_params
from sae_attr.lm.train_data import RowDataset, token_dataset
from sae_attr.lm.weights import load_lm, resolve_model, save_lm
from sae_attr.parallel import LM_RULES, shardings
from sae_attr.store import own_workdir
from sae_attr.text.chat import with_options
from sae_attr.text.token_file import Packing, check_embedding, row_count
from sae_attr.text.tokenizer import Tokenizer, load_tokenizer

from . import _common, _training
from ._config import part_of
from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR


def hf_config(config: ConfigDict, tok: Tokenizer) -> dict[str, Any]:
    """config.json of the model: that of `lm`, of `model_json`, or the fields of `model`
    with the tokenizer's ids.

    Raises:
      ValueError: a context longer than the model's.
    """
    if config.lm or config.model_json:
        file = (
            resolve_model(config.lm) / "config.json"
            if config.lm
            else Path(config.model_json)
        )
        hf = read_object(file)
    else:
        hf = {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in config.model.to_dict().items()
            if v is not None
        }
        hf = {
            "vocab_size": tok.vocab_size,
            "bos_token_id": tok.bos_id,
            "eos_token_id": tok.eos_id,
        } | hf
    cfg = config_from_hf(hf)
    if config.context > cfg.max_len:
        raise ValueError(
            f"context {config.context} is longer than the model's {cfg.max_len}; take "
            f"--config.context={cfg.max_len}"
        )
    return hf


def new_params(cfg: LMConfig, mesh: jax.sharding.Mesh, seed: int, dtype: str) -> Params:
    """`init_params` with every leaf made on the devices that `LM_RULES` gives it."""
    make = lambda key: init_params(cfg, key, dtype)
    places = shardings(jax.eval_shape(make, jax.random.key(0)), LM_RULES, mesh)
    return jax.jit(make, out_shardings=places)(jax.random.key(seed))


def datasets(
    config: ConfigDict, tok: Tokenizer, root: epath.Path
) -> tuple[RowDataset, RowDataset | None, dict[str, Any]]:
    """Training and held-out dataset, and the counts; without a file of their own the last
    rows are held out.
    """
    packing = part_of(Packing, config)
    file = _training.token_file(config, config.corpus, tok, root)
    count = row_count(file, packing)
    counts = {
        "tokens": int(file.meta["tokens"]),
        "documents": int(file.meta["documents"]),
        "rows": count,
    }
    check_embedding(file, tok.embedding_rows or tok.vocab_size)
    if config.held_out:
        other = _training.token_file(config, config.held_out, tok, root)
        check_embedding(other, tok.embedding_rows or tok.vocab_size)
        held = token_dataset(other, packing, first=0, stop=row_count(other, packing))
        return token_dataset(file, packing, first=0, stop=count), held, counts
    kept = math.ceil(config.held_out_share * count)
    if kept >= count:
        raise ValueError(
            f"held_out_share={config.held_out_share} leaves none of {count} rows to "
            "train on; lower it"
        )
    held = (
        token_dataset(file, packing, first=count - kept, stop=count) if kept else None
    )
    return token_dataset(file, packing, first=0, stop=count - kept), held, counts


@dataclass(frozen=True, eq=False)
class Work:
    """Inputs that were read and checked."""

    source: Path
    hf: dict[str, Any]
    datasets: tuple[RowDataset, RowDataset | None]
    counts: dict[str, Any]


def prepare(config: ConfigDict, workdir: epath.Path) -> Work:
    """Reads everything but the weights, so that what is wrong is said before a model is
    made.
    """
    source = Path(config.tokenizer) if config.tokenizer else resolve_model(config.lm)
    tok = with_options(load_tokenizer(source), config.template_options.to_dict())
    hf = hf_config(config, tok)
    tok = replace(tok, embedding_rows=config_from_hf(hf).vocab)
    if config.eval_every is None:
        config.eval_every = evaluate_every(config.steps)
    _training.check(config, config.steps)
    _training.warn_of_few_steps(config.steps, "raise steps")
    dataset, held, counts = datasets(config, tok, workdir)
    return Work(source, hf, (dataset, held), counts)


def run(config: ConfigDict, work: Work, workdir: epath.Path) -> dict[str, Any]:
    """Makes or loads the model, trains, writes; what result.json holds."""
    mesh = parallel.make_mesh(config.mesh)
    if config.lm:
        cfg, params = load_lm(config.lm, mesh=mesh, dtype=config.dtype)
    else:
        cfg = config_from_hf(work.hf)
        params = new_params(cfg, mesh, config.seed, config.dtype)
    size, dataset = sum(x.size for x in jax.tree.leaves(params)), work.datasets[0]
    epochs = config.steps * config.batch_size / dataset.count
    logging.info(
        "%d parameters, %d rows of %d tokens, %.2f epochs",
        size,
        dataset.count,
        dataset.width,
        epochs,
    )
    inputs = _training.hashes(config)
    fitted = _training.train(
        params,
        {},
        work.datasets,
        cfg=cfg,
        config=config,
        steps=config.steps,
        mesh=mesh,
        workdir=workdir,
        inputs=inputs,
    )
    save_lm(Path(workdir) / "model", work.hf, fitted.state.trained)
    best, said = _training.kept_best(fitted, workdir)
    if best is not None:
        save_lm(Path(workdir) / "model-best", work.hf, best)
    if not parallel.is_main():
        return {}
    for name in ("model", *(["model-best"] if best is not None else [])):
        _training.copy_tokenizer(work.source, Path(workdir) / name)
    summary = {
        "best": said,
        "corpus": work.counts,
        "epochs": epochs,
        "parameters_trained": size,
        **inputs,
    }
    return _training.report(workdir, fitted, config, summary)


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> None:
    """Checks the inputs, then trains under the workdir's lock."""
    _common.require(config, "corpus", *([] if config.lm else ["tokenizer"]))
    _common.fix_day(config, workdir)
    work = prepare(config, workdir)
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=_training.PLAIN,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        result = run(config, work, workdir)
        if parallel.is_main():
            _training.show(result, workdir)


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)), allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
