"""Fine-tuning and pretraining as a user starts them: what they write, what they refuse,
and a kill at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from experiments import _training, finetune, pretrain
from sae_attr.lm.adapter_states import adapter_states
from sae_attr.lm.model import forward
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.store import fingerprint
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests._processes import limited
from tests.experiments import _demo
from tests.miniatures import CHATML, write_lines, write_llama, write_tokenizer

SMALL = {
    "mesh": "data=1",
    "batch_size": 4,
    "scan": 2,
    "eval_every": 2,
    "save_every": 2,
    "context": 96,
}


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations with an answer that is easy to learn."""
    ask = lambda k: {"role": "user", "content": f"what is {k} and {k + 1}?"}
    answer = {"role": "assistant", "content": "it is blue"}
    return [{"messages": [ask(k), answer]} for k in range(count)]


def write_base(folder: Path) -> Path:
    """A random model with a character tokenizer and a chat template, rows and a corpus
    beside it.
    """
    tok = load_tokenizer(write_tokenizer(folder / "model", chat_template=CHATML))
    write_llama(
        folder / "model",
        vocab=tok.vocab_size,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    write_lines(folder / "rows.jsonl", *chats(30))
    (folder / "corpus.json").write_text(
        json.dumps([f"the cat number {k} sat on the mat" for k in range(80)])
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def finetuning(base: Path, **changes: Any) -> ConfigDict:
    config = finetune_config.get_config()
    config.update(
        {"lm": str(base / "model"), "data": str(base / "rows.jsonl"), **SMALL}
    )
    config.opt.lr, config.opt.warmup = 1e-2, 1
    config.update(changes)
    return config


def pretraining(base: Path, **changes: Any) -> ConfigDict:
    config = pretrain_config.get_config()
    config.update(
        {
            "corpus": str(base / "corpus.json"),
            "tokenizer": str(base / "model"),
            **SMALL,
            "steps": 6,
        }
    )
    config.model.update(
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    )
    config.context, config.opt.warmup, config.opt.lr = 32, 1, 2e-2
    config.update(changes)
    return config


def run(
    program: Any, config: ConfigDict, workdir: Path, **options: Any
) -> dict[str, Any]:
    program.start(config, epath.Path(workdir), **options)
    return json.loads((workdir / "result.json").read_text())


def logits_of(
    folder: Path, adapter: str | None = None, merge: bool = True
) -> np.ndarray:
    cfg, params = load_lm(
        str(folder),
        mesh=make_mesh("data=1"),
        progress=False,
        adapter=adapter,
        merge=merge,
    )
    tokens_bt = np.arange(12).reshape(1, 12)
    return np.asarray(
        jax.jit(lambda p: forward(p, tokens_bt, cfg=cfg).hidden_btd)(params)
    )


RANK_ONE = {
    "rank": 1,
    "alpha": 8.0,
    "rslora": True,
    "targets": ("down",),
    "layers": (1,),
}


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a rank-1 fine-tune."""
    workdir = tmp_path_factory.mktemp("adapted")
    run(finetune, finetuning(base, lora=RANK_ONE, epochs=3.0, merge=True), workdir)
    return workdir


def test_a_fine_tune_by_adapter(base: Path, adapted: Path) -> None:
    result = json.loads((adapted / "result.json").read_text())
    assert result["held_out_last"] < result["held_out_first"]
    assert result["data"]["rows"] == 30
    assert result["data"]["rows_truncated"] == 0
    assert result["rows_held_out"] == 2
    assert result["parameters_trained"] == 24 + 16
    assert result["versions"]["optax"]
    curve = _demo.table(adapted / "curves.csv")
    assert [int(row["step"]) for row in curve] == list(range(1, result["steps"] + 1))
    assert (
        float(_demo.table(adapted / "held_out.csv")[-1]["loss"])
        == result["held_out_last"]
    )
    assert (adapted / "figures/loss.svg").stat().st_size > 1000
    kept = logits_of(base / "model", str(adapted / "adapter"), merge=False)
    np.testing.assert_allclose(logits_of(adapted / "model"), kept, atol=2e-5)
    assert np.abs(kept - logits_of(base / "model")).max() > 1e-3
    assert load_tokenizer(adapted / "adapter").chat_template == CHATML


def test_the_adapters_hidden_states_are_written(base: Path, adapted: Path) -> None:
    states = np.load(adapted / "adapter_states.npz")
    assert states["down"].shape == (1, len(states["ids"]), 1)
    first = states["line"] == states["line"][0]
    tokens_bt = states["ids"][first][None]
    cfg, params = load_lm(
        str(base / "model"),
        mesh=make_mesh("data=1"),
        progress=False,
        adapter=str(adapted / "adapter"),
        merge=False,
    )
    want = jax.jit(lambda p: adapter_states(p, tokens_bt, cfg=cfg, layers=(1,)))(
        params
    )["down"]
    np.testing.assert_allclose(
        states["down"][:, first], want[:, 0], rtol=1e-4, atol=1e-6
    )
    assert states["pos"][first].tolist() == list(range(first.sum()))
    assert states["layers"].tolist() == [1]


def test_a_finished_run_is_not_run_again(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    again = _demo.copied(adapted, tmp_path / "again")
    result = run(
        finetune, finetuning(base, lora=RANK_ONE, epochs=3.0, merge=True), again
    )
    assert result["continued_from_step"] == result["steps"]
    for name in (
        "curves.csv",
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
        "adapter_states.npz",
    ):
        assert (again / name).read_bytes() == (adapted / name).read_bytes()


def test_another_config_in_the_same_workdir(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    again = _demo.copied(adapted, tmp_path / "again")
    config = finetuning(base, lora={**RANK_ONE, "rank": 2}, epochs=3.0)
    with pytest.raises(
        ValueError,
        match=r"made with another config than this run's:\n  lora.rank: 1 → 2",
    ):
        finetune.start(config, epath.Path(again))
    with pytest.raises(
        ValueError, match=r"was written with another config:\n  lora: .*'rank': 1"
    ):
        finetune.start(config, epath.Path(again), allow_change=True)
    for name in ("result.json", "config.json"):  # a refused change leaves no trace
        assert (again / name).read_bytes() == (adapted / name).read_bytes()


def test_inputs_may_move_but_not_change(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    again = _demo.copied(adapted, tmp_path / "again")
    moved = _demo.copied(base, tmp_path / "moved")
    config = finetuning(moved, lora=RANK_ONE, epochs=3.0, merge=True)
    result = run(finetune, config, again, allow_change=True)
    assert result["continued_from_step"] == result["steps"]
    rows = (moved / "rows.jsonl").read_text().splitlines()
    (moved / "rows.jsonl").write_text("\n".join(rows[::-1]))
    with pytest.raises(ValueError, match="data_hash: "):
        run(finetune, config, again, allow_change=True)


def test_every_input_that_is_named_is_hashed(base: Path, tmp_path: Path) -> None:
    """An input whose path may change has to be compared by what it holds."""
    given = {
        name: str(base / "rows.jsonl")
        for name in ("data", "corpus", "held_out", "chat_template", "model_json")
    }
    config = ConfigDict(
        {**given, "lm": str(base / "model"), "tokenizer": str(base / "model")}
    )
    found = _training.hashes(config)
    assert found.keys() == {f"{name}_hash" for name in _training.PATHS}
    assert found["lm_hash"] == fingerprint(base / "model")
    assert found["tokenizer_hash"] == fingerprint(base / "model/tokenizer.json")
    config.held_out = None
    assert "held_out_hash" not in _training.hashes(config)


@pytest.mark.slow
def test_a_full_fine_tune_in_bfloat16_products(base: Path, tmp_path: Path) -> None:
    config = finetuning(
        base,
        method="full",
        compute_dtype="bfloat16",
        micro=2,
        packed=False,
        remat=True,
        loss_chunk=4,
    )
    result = run(finetune, config, tmp_path)
    assert result["held_out_last"] < result["held_out_first"] - 0.3
    assert (
        np.abs(logits_of(tmp_path / "model") - logits_of(base / "model")).max() > 1e-2
    )
    assert (
        json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"]
        == "float32"
    )


def test_what_is_learnt_can_be_looked_at(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.start(finetuning(base), epath.Path(tmp_path / "w"), shown=2)
    out = capsys.readouterr().out
    assert out.count("loss\n") == 2 * (
        1 + len("it is blue") + 1
    )  # headlines; a token a character, and the end of the turn
    assert not (tmp_path / "w").exists()


def test_pretraining_from_text_and_going_on(base: Path, tmp_path: Path) -> None:
    result = run(pretrain, pretraining(base), tmp_path / "first")
    assert result["held_out_last"] < result["held_out_first"] - 0.3
    assert result["corpus"]["documents"] == 80
    hf = json.loads((tmp_path / "first/model/config.json").read_text())
    tok = load_tokenizer(tmp_path / "first/model")
    assert (hf["vocab_size"], hf["bos_token_id"]) == (tok.vocab_size, 0)
    (tokens,) = (tmp_path / "first").glob("tokens-*")
    more = pretraining(
        base,
        lm=str(tmp_path / "first/model"),
        corpus=str(tokens),
        tokenizer=None,
        steps=2,
    )
    again = run(pretrain, more, tmp_path / "second")
    assert abs(again["held_out_first"] - result["held_out_last"]) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm": None}, r"the config lacks lm; add --config.lm=PATH"),
        ({"context": 200}, r"context 200 is longer than the model's 128"),
        ({"method": "half"}, r"method 'half' is unknown; choose lora or full"),
        (
            {"context": 20},
            r"rows.jsonl:1: the row has \d+ tokens but the context is 20; .*truncate=True",
        ),
        ({"batch_size": 3, "micro": 2}, r"a batch of 3 rows cannot be cut into 2"),
        (
            {"batch_size": 3, "mesh": "data=2"},
            r"micro-batches of 3 rows cannot be split over data=2",
        ),
        (
            {"held_out_share": 1.0},
            r"held_out_share=1.0 leaves no row of 30 to train on",
        ),
        ({"dtype": "int8"}, r"dtype 'int8' is unknown; choose float32 or bfloat16"),
        (
            {"lora": {"layers": (7,)}},
            r"LoRA layers \[7\] of a model whose layers are 0..1",
        ),
        ({"opt": {"schedule": "step"}}, r"schedule 'step' is unknown"),
        ({"epochs": 0.0}, r"0 steps of 4 rows"),
    ],
)
def test_bad_fine_tunes_write_nothing(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.start(finetuning(base, **change), epath.Path(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, r"the config lacks tokenizer"),
        ({"context": 1000}, r"context 1000 is longer than the model's 512"),
        (
            {"model": {"vocab_size": 50}},
            r"token id \d+ .* is beyond the model's embedding of 50 rows",
        ),
        ({"model": {"model_type": "rnn"}}, r"model_type 'rnn' is not implemented"),
    ],
)
def test_bad_pretraining(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain.start(pretraining(base, **change), epath.Path(tmp_path / "w"))


def test_corpora_that_give_nothing(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for name, message in (("empty", "has no text"), ("latin", "is not UTF-8")):
        with pytest.raises(ValueError, match=message):
            pretrain.start(
                pretraining(base, corpus=str(tmp_path / f"{name}.txt")),
                epath.Path(tmp_path / "w"),
            )


# ---- kills ---------------------------------------------------------------------------


def command(base: Path, workdir: Path) -> list[str]:
    flags = {
        **SMALL,
        "lm": base / "model",
        "data": base / "rows.jsonl",
        "epochs": 4.0,
        "method": "full",
    }
    given = [f"--config.{name}={value}" for name, value in flags.items()]
    return [
        sys.executable,
        "-m",
        "experiments.finetune",
        "--config=configs/finetune.py",
        f"--workdir={workdir}",
        *given,
    ]


def killed_at(base: Path, workdir: Path, step: int) -> None:
    """Starts the run and kills it, with no chance to tidy up, once the checkpoint of
    `step` begins to be written.
    """
    quiet = subprocess.DEVNULL
    checkpoints = workdir / "checkpoints"
    run = command(base, workdir)
    with (
        subprocess.Popen(
            run, cwd=_demo.REPO, env=_demo.environment(), stdout=quiet, stderr=quiet
        ) as process,
        limited(process),
    ):
        begun = lambda: (
            checkpoints.is_dir()
            and any(n.split(".")[0] == str(step) for n in os.listdir(checkpoints))
        )
        while process.poll() is None and not begun():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_fine_tune_killed_twice_ends_as_one_left_alone(
    base: Path, tmp_path: Path
) -> None:
    run_of = lambda workdir: _demo.ended(command(base, workdir))
    calm = run_of(tmp_path / "calm")
    assert calm.returncode == 0, calm.stderr
    for step in (2, 6):
        killed_at(base, tmp_path / "killed", step)
    ended = run_of(tmp_path / "killed")
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "killed/result.json").read_text())
    assert result["continued_from_step"] >= 4
    for name in (
        "curves.csv",
        "held_out.csv",
        "metrics.jsonl",
        "model/model.safetensors",
        "figures/loss.svg",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "calm" / name
        ).read_bytes()


def test_what_is_left_open_follows_the_rows(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = finetune_config.get_config()
    config.update(
        {
            "lm": str(base / "model"),
            "data": str(base / "rows.jsonl"),
            "mesh": "data=1",
            "context": 96,
        }
    )
    with caplog.at_level("WARNING", logger="absl"):
        work = finetune.prepare(config)
    packs = work.datasets[0].count
    assert config.batch_size == 4
    assert (config.epochs, work.steps) == (3.0, -(-3 * packs // 4))
    assert (config.lora.rank, config.lora.alpha) == (4, 8.0)
    assert (config.opt.warmup, config.eval_every) == (1, max(1, work.steps // 8))
    assert f"only {work.steps} steps will be taken" in caplog.text
