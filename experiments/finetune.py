"""Fine-tunes a language model on chat or prompt/completion rows; see
configs/finetune.py for the command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.lm.finetune_sizes import (
    batch_for,
    epochs_for,
    evaluate_every,
    rank_for,
    warmup_for,
)
from sae_attr.lm.hf_folder import read_object
from sae_attr.lm.lora import (
    Lora,
    adapter_states,
    attach,
    check_lora,
    init_lora,
    merged,
    save_adapter,
)
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import join
from sae_attr.lm.train_data import RowDataset, all_batches, example_dataset
from sae_attr.lm.weights import load_config, load_lm, resolve_model, save_lm
from sae_attr.store import own_workdir
from sae_attr.text.chat import with_options
from sae_attr.text.examples import Example, Examples, read_examples, shown_example
from sae_attr.text.tokenizer import Tokenizer, load_tokenizer

from . import _common, _training
from ._config import settings_of
from ._flags import ALLOW_CHANGE, CONFIG, SHOW_TOKENS, WORKDIR


def tokenizer_of(
    config: ConfigDict, folder: Path, rows: int | None = None
) -> Tokenizer:
    """The model's tokenizer, with the chat template and its options that the config
    names; `rows` of the embedding.
    """
    tok = load_tokenizer(folder, embedding_rows=rows)
    if config.chat_template:
        tok = replace(tok, chat_template=Path(config.chat_template).read_text("utf-8"))
    return with_options(tok, config.template_options.to_dict())


def read_rows(
    config: ConfigDict, tok: Tokenizer
) -> tuple[Examples, list[Example], list[Example]]:
    """Everything of the data file, the rows to train on, and the held-out rows."""
    options = {
        "context": config.context,
        "truncate": config.truncate,
        "append_eos": config.append_eos,
    }
    options["unlike"] = config.unlike_generation
    found = read_examples(config.data, tok, **options)
    if found.unlike:
        logging.warning(
            "%d of %d rows: %s", len(found.unlike), len(found.rows), found.unlike_shown
        )
    if config.held_out:
        return found, found.rows, read_examples(config.held_out, tok, **options).rows
    count = math.ceil(config.held_out_share * len(found.rows))
    if count >= len(found.rows):
        raise ValueError(
            f"held_out_share={config.held_out_share} leaves no row of "
            f"{len(found.rows)} to train on; lower it"
        )
    held = set(
        np.random.default_rng(config.seed).permutation(len(found.rows))[:count].tolist()
    )
    split = lambda inside: [
        row for i, row in enumerate(found.rows) if (i in held) == inside
    ]
    return found, split(False), split(True)


def check(config: ConfigDict, cfg: LMConfig) -> Lora | None:
    """The adapter that is asked for, None for all parameters; ValueError for what does
    not fit the model.
    """
    if config.context > cfg.max_len:
        raise ValueError(
            f"context {config.context} is longer than the model's {cfg.max_len}; take "
            f"--config.context={cfg.max_len}"
        )
    if config.packed and any(
        r.kind == "longrope" and config.context > r.original_len for r in cfg.ropes
    ):
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


def states_of(
    params: Params,
    cfg: LMConfig,
    lora: Lora,
    held: list[Example],
    context: int,
    rows: int,
) -> bytes:
    """What each adapter reads off every token of the held-out rows, as .npz: `<matrix>`
    [layers, tokens, r], ids, line, pos.
    """
    layers = check_lora(cfg, lora)
    states = jax.jit(partial(adapter_states, cfg=cfg, layers=layers))
    dataset = example_dataset(held, context=context, packed=False)
    found: dict[str, list[np.ndarray]] = {}
    for batch in all_batches(dataset, rows):
        valid_bt = batch.segment_bt >= 0
        for name, x_lbtr in states(params, batch.tokens_bt).items():
            found.setdefault(name, []).append(parallel.to_host(x_lbtr)[:, valid_bt])
    arrays = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    arrays["ids"] = np.concatenate([row.ids for row in held])
    arrays["loss_mask"] = np.concatenate([row.loss_mask for row in held])
    arrays["line"] = np.concatenate([np.full(len(row.ids), row.line) for row in held])
    arrays["pos"] = np.concatenate([np.arange(len(row.ids)) for row in held])
    return _common.npz_bytes({**arrays, "layers": np.array(layers)})


def write(
    workdir: Path,
    config: ConfigDict,
    cfg: LMConfig,
    lora: Lora | None,
    params: Params,
    trained: Params,
    end: str = "",
) -> None:
    """The PEFT adapter, the whole model, or both, in folders whose names end in `end`;
    `params` is what `forward` reads.
    """
    source = resolve_model(config.lm)
    template = (
        Path(config.chat_template).read_text("utf-8") if config.chat_template else None
    )
    folders = []
    if lora is not None:
        save_adapter(workdir / f"adapter{end}", cfg, lora, trained, base=str(config.lm))
        folders.append(workdir / f"adapter{end}")
    if lora is None or config.merge:
        hf = read_object(source / "config.json")
        save_lm(
            workdir / f"model{end}",
            hf,
            params if lora is None else jax.jit(merged)(params),
        )
        folders.append(workdir / f"model{end}")
    if parallel.is_main():
        for folder in folders:
            _training.copy_tokenizer(source, folder, template)


@dataclass(frozen=True, eq=False)
class Work:
    """Inputs that were read and checked."""

    source: Path
    lora: Lora | None
    found: Examples
    held: list[Example]
    datasets: tuple[RowDataset, RowDataset | None]
    steps: int


def suit_rank(config: ConfigDict, rows: int) -> None:
    """Fills in the adapter's rank and scale where the config leaves them to the number
    of rows.
    """
    if config.lora.rank is None:
        config.lora.rank = rank_for(rows)
    if config.lora.alpha is None:
        config.lora.alpha = 2.0 * config.lora.rank


def suit_steps(config: ConfigDict, packs: int) -> int:
    """Fills in batch, epochs, warm-up and evaluations where the config leaves them to
    the number of packs; the steps.
    """
    if config.batch_size is None:
        config.batch_size = batch_for(
            packs, config.micro * parallel.make_mesh(config.mesh).shape["data"]
        )
    if config.epochs is None:
        config.epochs = epochs_for(packs, config.batch_size)
    steps = math.ceil(config.epochs * packs / max(config.batch_size, 1))
    if config.opt.warmup is None:
        config.opt.warmup = warmup_for(steps)
    if config.eval_every is None:
        config.eval_every = evaluate_every(steps)
    return steps


def prepare(config: ConfigDict) -> Work:
    """Reads everything but the weights, so that what is wrong is said before anything
    is written.
    """
    source = resolve_model(config.lm)
    cfg = load_config(str(source))
    found, rows, held = read_rows(config, tokenizer_of(config, source, cfg.vocab))
    suit_rank(config, len(rows))
    lora = check(config, cfg)
    dataset_of = lambda rows: example_dataset(
        rows, context=config.context, packed=config.packed, seed=config.seed
    )
    dataset = dataset_of(rows)
    steps = suit_steps(config, dataset.count)
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
    return Work(
        source, lora, found, held, (dataset, dataset_of(held) if held else None), steps
    )


def run(config: ConfigDict, work: Work, workdir: epath.Path) -> dict[str, Any]:
    """Loads the model, trains, writes; what result.json holds."""
    mesh, lora = parallel.make_mesh(config.mesh), work.lora
    cfg, params = load_lm(str(work.source), mesh=mesh, dtype=config.dtype)
    if lora is None:
        trained, frozen, assemble = params, {}, join
    else:
        trained = init_lora(cfg, params, lora, jax.random.key(config.seed))
        frozen = params
        assemble = partial(attach, scale=lora.scale)
    inputs = _training.hashes(config)
    fitted = _training.train(
        trained,
        frozen,
        work.datasets,
        cfg=cfg,
        config=config,
        steps=work.steps,
        mesh=mesh,
        workdir=workdir,
        inputs=inputs,
        assemble=assemble,
    )
    trained = fitted.state.trained
    tree = assemble(frozen, trained)
    write(Path(workdir), config, cfg, lora, tree, trained)
    best, said = _training.kept_best(fitted, workdir)
    if best is not None:
        write(
            Path(workdir), config, cfg, lora, assemble(frozen, best), best, end="-best"
        )
    files = {}
    if lora is not None and work.held:
        files["adapter_states.npz"] = states_of(
            tree, cfg, lora, work.held, config.context, config.batch_size
        )
    summary = {"data": work.found.counts, "rows_held_out": len(work.held), **inputs}
    summary |= {
        "best": said,
        "packs": work.datasets[0].count,
        "pack_tokens": work.datasets[0].width,
    }
    share = (
        len(check_lora(cfg, lora)) / cfg.n_layers if lora else 1
    )  # other layers' factors are there, and 0
    summary |= {
        "parameters_trained": round(
            share * sum(x.size for x in jax.tree.leaves(trained))
        )
    }
    return (
        _training.report(workdir, fitted, config, summary, files)
        if parallel.is_main()
        else {}
    )


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    shown: int = 0,
    allow_change: bool = False,
) -> None:
    """Checks the inputs, then trains under the workdir's lock; with `shown`, only
    prints what is learnt of rows.
    """
    _common.require(config, "lm", "data")
    _common.fix_day(config, workdir)
    if shown:
        tok = tokenizer_of(config, resolve_model(config.lm))
        found, _, _ = read_rows(config, tok)
        print("\n\n".join(shown_example(row, tok) for row in found.rows[:shown]))
        return
    work = prepare(config)
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
    start(
        CONFIG.value,
        epath.Path(str(WORKDIR.value)),
        shown=SHOW_TOKENS.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
