"""Training against torch's AdamW on transformers' own model, and what we write, loaded
by transformers and peft.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sae_attr.lm.lora import Lora, attach, init_lora, merged
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.next_token import TokenBatch, init_state, train_step
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.peft_save import save_adapter
from sae_attr.lm.save import save_lm
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.text.tokenizer import encode_many
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of torch and transformers, which these tests do not judge

FAMILIES = ("gpt2", "gpt_neox", "phi3", "qwen3", "mixtral", "gemma2")
ORGANISM = (15, 16, 17, 21, 22, 23, 27, 28, 29)


def theirs(
    folder: Path, tokens_bt: np.ndarray, adapter: Path | None = None
) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        peft = pytest.importorskip("peft")
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens_bt)).logits.numpy()


def ours(params: Params, tokens_bt: np.ndarray, cfg: Any) -> np.ndarray:
    return np.asarray(
        jax.jit(
            lambda p: logits(p, forward(p, tokens_bt, cfg=cfg).hidden_btd, cfg=cfg)
        )(params)
    )


def moved(params: Params) -> Params:
    """Parameters that are not those of the file."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: w + 0.02 * jnp.asarray(rng.standard_normal(w.shape), w.dtype), params
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_model_that_we_write(
    shared: Path, tmp_path: Path, family: str
) -> None:
    source = shared / "fixtures/hf" / family
    hf = json.loads((source / "config.json").read_text())
    cfg, params = load_lm(str(source), mesh=make_mesh("data=1"), progress=False)
    params = moved(params)
    save_lm(tmp_path, hf, params)
    tokens_bt = np.random.default_rng(1).integers(0, cfg.vocab, (2, 12))
    assert (
        np.abs(theirs(tmp_path, tokens_bt) - ours(params, tokens_bt, cfg)).max() <= 2e-4
    )


CASES: dict[str, tuple[Lora, dict[str, Any]]] = {
    "all": (Lora(rank=3, alpha=6), {}),
    "rank 1 on one matrix": (
        Lora(rank=1, alpha=64, rslora=True, targets=("down",), layers=(1,)),
        {"n_layers": 3},
    ),
    "rsLoRA on some": (
        Lora(rank=4, alpha=2, rslora=True, targets=("q", "v"), layers=(0, 2)),
        {"n_layers": 3},
    ),
    "nine": (
        Lora(rank=1, alpha=8, rslora=True, targets=("down",), layers=ORGANISM),
        {"n_layers": 30},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_reads_the_adapter_that_we_write(tmp_path: Path, case: str) -> None:
    lora, fields = CASES[case]
    base = write_llama(tmp_path / "base", **fields)
    cfg, params = load_lm(str(base), mesh=make_mesh("data=1"), progress=False)
    trained = init_lora(cfg, params, lora, jax.random.key(0))
    chosen = np.isin(np.arange(cfg.n_layers), lora.layers or range(cfg.n_layers))[
        :, None, None
    ]
    trained = jax.tree.map(lambda w: w + 0.3 * chosen, trained)
    save_adapter(tmp_path / "adapter", cfg, lora, trained, base=str(base))
    tokens_bt = np.random.default_rng(1).integers(0, cfg.vocab, (2, 12))
    params = attach(params, trained, scale=lora.scale)
    want = theirs(base, tokens_bt, tmp_path / "adapter")
    assert np.abs(want - theirs(base, tokens_bt)).max() > 0.01
    assert np.abs(want - ours(params, tokens_bt, cfg)).max() <= 2e-4
    save_lm(
        tmp_path / "merged",
        json.loads((base / "config.json").read_text()),
        merged(params),
    )
    assert np.abs(want - theirs(tmp_path / "merged", tokens_bt)).max() <= 2e-4


FUSED = {
    "gpt2": ("q", "k", "v", "o", "up"),
    "gpt_neox": ("q", "v", "down"),
    "phi3": ("k", "gate", "up", "down"),
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FUSED)
def test_peft_reads_adapters_of_parts_of_a_matrix(
    shared: Path, tmp_path: Path, family: str, rslora: bool
) -> None:
    base = shared / "fixtures/hf" / family
    lora = Lora(rank=2, alpha=3, rslora=rslora, targets=FUSED[family])
    cfg, params = load_lm(str(base), mesh=make_mesh("data=1"), progress=False)
    rng = np.random.default_rng(2)
    trained = init_lora(cfg, params, lora, jax.random.key(0))
    trained = jax.tree.map(
        lambda w: w + 0.1 * jnp.asarray(rng.standard_normal(w.shape), w.dtype), trained
    )
    save_adapter(tmp_path, cfg, lora, trained, base=str(base))
    tokens_bt = rng.integers(0, cfg.vocab, (2, 12))
    want = theirs(base, tokens_bt, tmp_path)
    assert np.abs(want - theirs(base, tokens_bt)).max() > 0.01
    assert (
        np.abs(
            want - ours(attach(params, trained, scale=lora.scale), tokens_bt, cfg)
        ).max()
        <= 2e-4
    )


# ---- steps ---------------------------------------------------------------------------

OPT = Optimizer(lr=3e-4, steps=3, schedule="constant", weight_decay=0.1, clip=1.0)


def rows_of(shared: Path, stories: Path) -> np.ndarray:
    """24 stories, cut at 64 tokens, in three batches."""
    texts = json.loads((shared / "corpora/tinystories_1000.json").read_text())[:24]
    rows = [
        ids[:64] for ids in encode_many(load_tokenizer(stories), texts, add_bos=True)
    ]
    return np.array(rows).reshape(3, 8, 64)


def batch_of(tokens_bt: np.ndarray) -> TokenBatch:
    b, t = tokens_bt.shape
    columns = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t))
    return TokenBatch(
        tokens_bt.astype(np.int32),
        columns,
        np.zeros((b, t), np.int32),
        columns[:, 1:],
        columns[:, 1:] > 0,
    )


def steps_of_ours(
    params: Params, tokens_sbt: np.ndarray, cfg: Any, opt: Optimizer
) -> tuple[Params, list[float]]:
    state, losses = init_state(params, opt), []
    step = jax.jit(partial(train_step, cfg=cfg, opt=opt))
    for tokens_bt in tokens_sbt:
        state, metrics = step(
            state, {}, jax.tree.map(lambda x: x[None], batch_of(tokens_bt))
        )
        losses.append(float(metrics.loss))
    return state.trained, losses


def steps_of_torch(
    stories: Path, tokens_sbt: np.ndarray, eps: float
) -> tuple[dict[str, np.ndarray], list[float]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        stories, dtype=torch.float32
    ).train()
    named = list(model.named_parameters())
    decays = {
        0.0: [p for name, p in named if "norm" in name],
        0.1: [p for name, p in named if "norm" not in name],
    }
    groups = [
        {"params": found, "weight_decay": decay} for decay, found in decays.items()
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=3e-4, eps=eps), []
    for tokens_bt in tokens_sbt:
        ids = torch.tensor(tokens_bt)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {name: p.detach().numpy() for name, p in named}, losses


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "share"), [(1e-6, 0.0), (1e-8, 1e-4)])
def test_three_steps_are_those_of_torch(
    shared: Path, stories: Path, tmp_path: Path, eps: float, share: float
) -> None:
    """With Adam's usual eps of 1e-8 a handful of elements, whose gradient is float32's
    noise, differ by more than 1e-5.
    """
    cfg, params = load_lm(str(stories), mesh=make_mesh("data=1"), progress=False)
    tokens_sbt = rows_of(shared, stories)
    want, want_losses = steps_of_torch(stories, tokens_sbt, eps)
    before = load_file(stories / "model.safetensors")
    trained, losses = steps_of_ours(params, tokens_sbt, cfg, replace(OPT, eps=eps))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    save_lm(tmp_path, json.loads((stories / "config.json").read_text()), trained)
    got = load_file(tmp_path / "model.safetensors")
    assert (
        min(np.abs(want[name] - before[name]).max() for name in want) > 5e-4
    )  # every tensor did move
    differences = np.concatenate(
        [np.abs(got[name] - want[name]).ravel() for name in want]
    )
    assert (differences > 1e-5).mean() <= share
