"""What a dry run counts, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.device_memory import host_memory
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.parallel import make_mesh
from sae_attr.sae.config import SAEConfig
from sae_attr.study.cost import StageCost, cost_table
from sae_attr.study.dry_run import memory
from sae_attr.study.dry_run import rates as measuring
from sae_attr.study.dry_run.judge_trial import try_judge
from sae_attr.study.dry_run.rates import (
    Batch,
    Rates,
    layer_parameters,
    measured_rates,
    stand_in,
    stated_rates,
)
from sae_attr.study.dry_run.report import memory_text, models_table, size
from tests import miniatures

# Of a layer: q and o 16 × 16, k and v 16 × 8, three of 16 × 24, two norms of 16.
LAYER = 2 * 256 + 2 * 128 + 3 * 384 + 2 * 16
WHOLE = 2 * LAYER + 2 * 40 * 16 + 16  # two layers, embedding and head, a norm


def llama(**keys: Any) -> LMConfig:
    return config_from_hf(miniatures.llama_config(**keys))


def one_device() -> jax.sharding.Mesh:
    return make_mesh("data=1")


# ---- sizes ---------------------------------------------------------------------------


def test_parameters_and_bytes_of_weights() -> None:
    cfg = llama()
    assert memory.parameter_count(memory.param_shapes(cfg, "float32")) == WHOLE
    assert memory.weight_bytes(cfg, one_device(), "float32") == 4 * WHOLE
    assert memory.weight_bytes(cfg, one_device(), "bfloat16") == 2 * WHOLE
    assert layer_parameters(cfg) == LAYER


def test_a_mesh_splits_what_its_rules_split() -> None:
    cfg = llama()
    replicated = 2 * 2 * 16 + 16  # norms
    split = memory.weight_bytes(cfg, make_mesh("model=2"), "float32")
    assert split == 4 * ((WHOLE - replicated) // 2 + replicated)


def test_bytes_of_keys_and_values() -> None:
    # Keys and values of 2 layers, 4 rows, 2 heads, 10 slots, 4 numbers.
    count = memory.cache_bytes(llama(), one_device(), "float32", rows=4, slots=10)
    assert count == 2 * 2 * 4 * 2 * 10 * 4 * 4


def test_bytes_of_an_sae() -> None:
    cfg = SAEConfig(d_in=16, d_out=16, n_latents=32)
    # Rows, a bias and a threshold of each latent, the decoder's bias.
    assert memory.sae_bytes(cfg) == {
        "encoder": 4 * (32 * 16 + 2 * 32 + 16),
        "decoder": 4 * 32 * 16,
    }


def test_a_backward_pass_keeps_the_products_of_its_layers() -> None:
    kept = memory.backward_bytes(
        llama(), one_device(), "float32", rows=2, width=5, layers=1
    )
    # q and attention's output 16 each, k and v 8 each, scores 4 · 5, o and down 16 each,
    # gate, up and their product 24 each, what enters 16.
    assert kept == 4 * 2 * 5 * (2 * 16 + 2 * 8 + 4 * 5 + 2 * 16 + 3 * 24 + 16)


def test_what_is_held_together_counts_together() -> None:
    parts = [
        memory.Held("weights", 100),
        memory.Held("a", 5, "reading"),
        memory.Held("b", 7, "writing"),
        memory.Held("c", 6, "reading"),
    ]
    assert memory.most_held(parts) == ("reading", 111)


def test_what_does_not_fit_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, mesh = [memory.Held("weights", 2_000_000)], one_device()
    place = "sae_attr.study.dry_run.report.device_memory"
    monkeypatch.setattr(place, lambda mesh: 3_000_000)
    assert memory_text(parts, mesh)[1] == ""
    monkeypatch.setattr(place, lambda mesh: 1_000_000)
    assert "2.0 MB on each device do not fit its 1.0 MB" in memory_text(parts, mesh)[1]
    monkeypatch.setattr(place, lambda mesh: None)
    assert memory_text(parts, mesh)[1] == ""


def test_the_memory_of_this_machine_is_known() -> None:
    whole = host_memory()
    assert whole is not None
    assert whole > 1e8


def test_sizes_for_readers() -> None:
    assert [size(999), size(538_060_032), size(2.5e12)] == [
        "999 B",
        "538.1 MB",
        "2.5 TB",
    ]


def test_names_of_models_cannot_act_on_a_terminal() -> None:
    assert "\x1b" not in models_table({"a\x1b[31m": llama()}, "float32")


# ---- time ----------------------------------------------------------------------------


def test_time_is_work_times_rates_and_nothing_for_what_is_done() -> None:
    rates = Rates(read=1.0, head=10.0, step=100.0, flop=1000.0, source="test")
    cost = StageCost("a.sample", samples=1, read=2, heads=3, steps=4, flops=5)
    assert rates.seconds(cost) == 2 + 30 + 400 + 5000
    times = {"a.sample": 90.0}
    open_table = cost_table([cost], {}, times).splitlines()
    assert "1 min 30 s" in open_table[2]
    assert "1 min 30 s" in open_table[3]
    finished = cost_table([cost], {"a.sample": "done"}, times).splitlines()
    assert "1 min 30 s" not in "".join(finished)


def test_stated_rates_give_back_what_was_stated() -> None:
    cfg = llama()
    rates = stated_rates(cfg, read=200.0, sampled=50.0, rows=8)
    assert np.isclose(cfg.n_layers * rates.read + rates.head, 1 / 200, rtol=0.05)
    assert rates.step == 8 / 50


def test_a_mixture_counts_the_experts_of_a_token() -> None:
    mixture = LMConfig(
        family="mixtral", vocab=40, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2,
        head_dim=4, d_mlp=24, max_len=64, n_experts=8, n_chosen=2,
    )  # fmt: skip
    assert layer_parameters(mixture) == LAYER + 3 * 16 * 24


def test_a_stand_in_is_short_and_small() -> None:
    cfg = llama(
        n_layers=12, d=4096, d_mlp=14336, n_heads=32, n_kv_heads=8, vocab=128256
    )
    short = stand_in(cfg)
    assert short.n_layers == 2
    assert short.d_model == 4096
    assert memory.parameter_count(memory.param_shapes(short, "float32")) < 3e8


@pytest.mark.usefixtures("quick")
def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    rates = measured_rates(llama(), one_device(), batch=Batch(4), dtype="float32")
    assert 0 < rates.read < rates.step
    assert min(rates.head, rates.flop) > 0
    assert "measured" in rates.source


# ---- judges --------------------------------------------------------------------------


def test_rules_are_not_asked() -> None:
    trial = try_judge(
        {"kind": "keywords", "present": ("yes",), "absent": ("no",)}, one_device()
    )
    assert trial.answered
    assert "nobody to ask" in trial.words


def test_a_server_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("openai")
    spec = {"kind": "openai", "rubric": "validation", "model": "m"}
    spec["base_url"] = "http://127.0.0.1:9/v1"
    trial = try_judge(spec, one_device())
    assert not trial.answered
    assert trial.words


def test_a_local_judge_without_files_is_an_error(tmp_path: Path) -> None:
    spec = {"kind": "local", "rubric": "validation", "lm": str(tmp_path / "nowhere")}
    trial = try_judge(spec, one_device())
    assert not trial.answered
    assert "nowhere" in trial.words
