"""SAEs and transcoders trained as a user starts them: what is written, read back,
refused, and a kill at any moment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import train_sae as train_sae_config
from experiments import train_sae
from sae_attr.activations import Masks
from sae_attr.hooks import Site
from sae_attr.lm.config_files import load_config
from sae_attr.sae.formats import load_sae
from sae_attr.sae.metrics import explained_variance, fit
from sae_attr.site_names import parse_site
from tests._compile import quick_compile
from tests.experiments import _demo
from tests.experiments._families import write_adapter
from tests.experiments.test_training import write_base

SMALL = {
    "mesh": "data=1", "tokens": 32 * 60, "batch_size": 32, "context": 32, "log_every": 10, "eval_every": 30,
    "save_every": 20, "buffer_tokens": 512, "shard_tokens": 256, "batch_rows": 4, "eval_tokens": 256,
    "held_out_share": 0.15, "prepend_bos": True,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick_compile():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def settings(base: Path, **changes: Any) -> ConfigDict:
    config = train_sae_config.get_config()
    config.update(
        {
            "lm": str(base / "model"),
            "corpus": str(base / "corpus.json"),
            "site": "layer1.resid_post",
            **SMALL,
        }
    )
    config.sae.update({"n_latents": 32, "k": 4, "warmup": 2, "lr": 3e-3})
    config.update(changes)
    return config


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    return train_sae.start(config, epath.Path(workdir))


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SAEs from one pass."""
    workdir = tmp_path_factory.mktemp("sae") / "run"
    run(settings(base, site="layer0.resid_post,layer1.resid_post"), workdir)
    return workdir


def test_every_file_and_what_it_says(done: Path, base: Path) -> None:
    for layer in (0, 1):
        folder = done / f"layer{layer}.resid_post"
        result = json.loads((folder / "result.json").read_text())
        for name in (
            "sae/cfg.json",
            "dictionary_learning/ae.pt",
            "mean.npz",
            "curves.csv",
            "figures/training.svg",
        ):
            assert (folder / name).exists(), name
        sae = load_sae(folder / "sae")
        assert parse_site(str(sae.cfg.site)) == Site(layer)
        assert (sae.cfg.gate, sae.cfg.expected_l0, sae.cfg.exclude_special) == (
            "jumprelu",
            4,
            True,
        )
        other = load_sae(
            folder / "dictionary_learning", site=f"layer{layer}.resid_post"
        )
        acts_kd = shard_acts(done, layer)
        np.testing.assert_allclose(
            fit(sae, acts_kd).residual, fit(other, acts_kd).residual, rtol=1e-4
        )
        curves = np.genfromtxt(folder / "curves.csv", delimiter=",", names=True)
        assert curves["step"].tolist() == [10, 20, 30, 40, 50, 60]
        assert np.isfinite(curves["held_out_ce_recovered"]).tolist() == [
            False,
            False,
            True,
            False,
            False,
            True,
        ]
        assert result["held_out"]["explained_variance"] == pytest.approx(
            curves["held_out_explained_variance"][-1]
        )
        assert curves["explained_variance"][-1] > curves["explained_variance"][0] + 0.1
        assert (
            abs(
                explained_variance(fit(sae, acts_kd)) - curves["explained_variance"][-1]
            )
            < 0.2
        )
        mean = np.load(folder / "mean.npz")
        np.testing.assert_allclose(
            mean["mean_d"], acts_kd.astype(np.float64).mean(0), atol=1e-5
        )
        assert int(mean["tokens"]) == len(acts_kd) == result["masked"]["kept"]
        assert result["masked"]["bos"] > 0
        assert (
            sae.cfg.masks == other.cfg.masks == Masks()
        )  # what reads it leaves out the same tokens
        assert result["sae_check"]["measured"]["metrics"]["tokens"] >= 100
        assert result["sae_check"]["verdict"].startswith(("fits", "does not fit"))
        assert 0 <= result["silent_share"]["share"] <= 1
        assert (
            result["silent_share"]["tokens"] == result["train"]["dead_tokens"] == 32 * 6
        )


def shard_acts(workdir: Path, layer: int) -> np.ndarray:
    return np.concatenate(
        [
            np.load(p)
            for p in sorted(workdir.glob(f"activations/shard-*/layer{layer}*.npy"))
        ]
    )


def test_held_out_documents_are_in_no_training_row(done: Path, base: Path) -> None:
    result = json.loads((done / "layer1.resid_post/result.json").read_text())
    first, stop = result["held_out_documents"]
    assert stop == len(json.loads((base / "corpus.json").read_text()))
    starts = np.fromfile(next(done.glob("tokens-*")) / "starts.bin", np.int64)
    window = result["config"]["context"] - bool(
        result["activations"]["tokens"]["prepend_bos"]
    )
    assert starts[first] >= result["activations"]["rows"][1] * window
    assert first < stop


def test_the_verdict_and_the_masks_are_printed(
    done: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(base, site="layer0.resid_post,layer1.resid_post"), done)
    printed = capsys.readouterr().out
    assert printed.count("SAE check: ") == 2
    assert re.search(r"[\d.]+% of [\d,]+ tokens masked \(\d+ bos", printed)
    assert "of training" in printed


@pytest.mark.slow
def test_what_train_sae_writes_passes_the_check(
    shared: Path, stories: Path, tmp_path: Path
) -> None:
    config = train_sae_config.get_config()
    corpus = str(shared / "corpora/tinystories_1000.json")
    config.update(
        {
            "lm": str(stories),
            "corpus": corpus,
            "site": "layer2.resid_post",
            "tokens": 400_000,
        }
    )
    config.update({"batch_size": 1024, "mesh": "data=1", "context": 256})
    config.sae.update({"n_latents": 768, "k": 16})
    result = run(config, tmp_path / "w")["layer2.resid_post"]
    assert result["sae_check"]["passes"], result["sae_check"]["verdict"]
    assert result["held_out"]["explained_variance"] > 0.8


def test_a_second_run_only_loads(done: Path, base: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in done.glob("layer*/*.*")} | {
        p: p.read_bytes() for p in done.glob("*/sae/*")
    }
    run(settings(base, site="layer0.resid_post,layer1.resid_post"), done)
    assert before == {p: p.read_bytes() for p in before}


def test_live_activations_and_one_site_give_the_same_kind_of_run(
    base: Path, tmp_path: Path
) -> None:
    found = run(settings(base, cache=False, tokens=32 * 20), tmp_path / "w")
    assert 0 < found["layer1.resid_post"]["held_out"]["explained_variance"] < 1
    assert (tmp_path / "w/sae/cfg.json").exists()
    assert not (tmp_path / "w/mean.npz").exists()
    assert not (tmp_path / "w/activations").exists()


def test_a_transcoder(base: Path, tmp_path: Path) -> None:
    config = settings(
        base, site="layer1.mlp_in", site_out="layer1.mlp_out", tokens=32 * 20
    )
    config.sae.objective = "topk"
    found = run(config, tmp_path / "w")["layer1.mlp_in"]
    cfg = load_sae(tmp_path / "w/sae").cfg if (tmp_path / "w/sae").exists() else None
    if cfg is not None:
        assert (parse_site(str(cfg.site)), parse_site(str(cfg.site_out))) == (
            Site(1, "mlp_in"),
            Site(1, "mlp_out"),
        )
    assert found["site_out"] == "layer1.mlp_out"
    assert np.isnan(found["held_out"]["encoder_decoder_cosine"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"site": None}, "the config lacks site"),
        ({"site": "layer9.resid_post"}, "lies outside the model"),
        ({"site": "layer1.resid_post,layer1.resid_post"}, "each site once"),
        ({"tokens": 10}, "10 tokens are no batch of 32"),
        ({"held_out_share": 0.999}, "leaves none of"),
        (
            {"held_out_share": 1e-9, "context": 8},
            "no whole document lies in the last 1 of",
        ),
        ({"mesh": "data=3"}, "batch_size=32 rows cannot be split over data=3"),
        ({"save_every": 15}, "save_every=15 is no multiple of log_every=10"),
    ],
)
def test_bad_input(
    base: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(settings(base, **changes), tmp_path / "w")
    assert not list(tmp_path.glob("w/**/checkpoints/*"))


def test_k_that_does_not_fit_and_another_config(
    base: Path, done: Path, tmp_path: Path
) -> None:
    config = settings(base)
    config.sae.k = 40
    with pytest.raises(
        ValueError, match="batch_topk with k=40 needs 40 latents, but there are 32"
    ):
        run(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    with pytest.raises(ValueError, match="another config"):
        run(settings(base, site="layer0.resid_post,layer1.resid_post", seed=5), done)


def test_a_run_does_not_go_on_with_another_corpus(base: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    run(settings(base, cache=False, tokens=32 * 20), work)
    texts = json.loads((base / "corpus.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(texts[::-1]))
    config = settings(
        base, cache=False, tokens=32 * 20, corpus=str(tmp_path / "other.json")
    )
    before = (work / "config.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"was written with another config:\n  tokens: .*sha256"
    ):
        train_sae.start(config, epath.Path(work), allow_change=True)
    assert (work / "config.json").read_bytes() == before
    (tmp_path / "moved.json").write_text(json.dumps(texts))
    config.corpus = str(tmp_path / "moved.json")
    assert train_sae.start(config, epath.Path(work), allow_change=True)


def test_a_corpus_that_cannot_be_read_does_not_bind_the_workdir(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for name, said in (("empty", "has no text"), ("latin", "is not UTF-8")):
        with pytest.raises(
            ValueError, match=said
        ):  # the second is not refused for another config than the first's
            run(settings(base, corpus=str(tmp_path / f"{name}.txt")), tmp_path / "w")
    assert not (tmp_path / "w/config.json").exists()


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(base: Path, tmp_path: Path) -> None:
    """SIGKILL while activations are written and while the SAE is trained; the files are
    those of an undisturbed run.
    """
    config = settings(base, tokens=32 * 200, save_every=10, eval_every=0)
    flags = [
        f"--config.{k}={v}"
        for k, v in config.to_dict().items()
        if isinstance(v, (str, int, float))
    ]
    flags += [
        f"--config.sae.{k}={v}"
        for k, v in {"n_latents": 32, "k": 4, "warmup": 2, "lr": 3e-3}.items()
    ]
    command = [
        sys.executable,
        "-m",
        "experiments.train_sae",
        "--config=configs/train_sae.py",
        *flags,
    ]
    options: dict[str, Any] = {
        "cwd": _demo.REPO,
        "env": _demo.environment(),
        "stderr": subprocess.DEVNULL,
    }
    options["stdout"] = subprocess.DEVNULL
    finish = lambda name: subprocess.run(
        [*command, f"--workdir={tmp_path / name}"], timeout=300, check=True, **options
    )
    finish("whole")
    for name in ("activations/shard-000001", "checkpoints/30", "checkpoints/90"):
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'killed'}"], **options
        )
        limit = time.monotonic() + 120
        while (
            not (tmp_path / "killed" / name).exists()
            and process.poll() is None
            and time.monotonic() < limit
        ):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finish("killed")
    files = ("sae/sae_weights.safetensors", "curves.csv", "mean.npz", "metrics.jsonl")
    for name in files:
        ours, theirs = (
            (tmp_path / run / name).read_bytes() for run in ("killed", "whole")
        )
        assert ours == theirs, name


@pytest.mark.slow
def test_two_models_are_read_side_by_side_or_as_a_difference(
    base: Path, tmp_path: Path
) -> None:
    """With the model itself as the base: both halves are the same, and a difference of
    nothing is refused.
    """
    both = {"lm_base": str(base / "model"), "tokens": 32 * 20, "eval_every": 20}
    config = settings(base, **both)
    config.sae.objective = "crosscoder"
    result = run(config, tmp_path / "cc")["layer1.resid_post"]
    assert result["written"] == ["crosscoder"]
    assert result["join"] == "side_by_side"
    sae = load_sae(tmp_path / "cc/crosscoder", model=1)
    assert (sae.cfg.streams, sae.cfg.n_latents) == (2, 32)
    acts_kd = shard_acts(tmp_path / "cc", 1)
    width = sae.cfg.d_in
    np.testing.assert_array_equal(acts_kd[:, :width], acts_kd[:, width:])
    assert 0 < result["held_out"]["explained_variance"] < 1
    config = settings(base, **both)
    with pytest.raises(ValueError, match="mean square"):
        run(config, tmp_path / "difference")
    write_adapter(tmp_path / "adapter", load_config(base / "model"), str(base))
    config = settings(base, **both, adapter=str(tmp_path / "adapter"))
    config.sae.objective = "crosscoder"
    run(config, tmp_path / "adapted")
    acts_kd = shard_acts(tmp_path / "adapted", 1)
    assert np.abs(acts_kd[:, :width] - acts_kd[:, width:]).max() > 0.01
    config = settings(base)
    config.sae.objective = "crosscoder"
    with pytest.raises(ValueError, match="lm_base is unset"):
        run(config, tmp_path / "one")
