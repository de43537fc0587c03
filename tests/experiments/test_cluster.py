"""Whole runs on two and four real processes: they give what one process gives, and end
together when one of them is killed.
"""

from __future__ import annotations

import csv
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import contents
from sae_attr.sae.formats import load_sae
from sae_attr.sae.model import SAE
from tests._processes import SECONDS
from tests.experiments._cluster import run, run_once, said, started, write_judge
from tests.experiments._demo import once
from tests.experiments.conftest import shared_folder
from tests.experiments.test_training import write_base

pytestmark = pytest.mark.slow
BEFORE_GRADIENTS = (
    "sae_check",
    "sample",
    "grade",
    "pair",
    "norm_limits",
    "mean_activation",
    "firing",
    "outliers",
)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, SAE, corpus and prompts, made by a member, which compiles quickly."""
    flags_of = lambda out: [f"--out={out}"]
    folder = shared_folder(tmp_path_factory) / "cluster_miniature"
    return run_once("make_miniature", flags_of, 1, folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(shared_folder(tmp_path_factory) / "judge", write_judge)


def study_flags(miniature: Path, judge: Path, workdir: Path) -> list[str]:
    """One small case study with steering and a judge that is a language model here."""
    attribution = {
        "trust_sae": True,
        "ablate": 0,
        "bootstrap": 20,
        "corpus_tokens": 2000,
        "firing_tokens": 1000,
        "sae_check_tokens": 0,
    }
    case = {
        "lm": miniature / "model",
        "sae": miniature / "random_sae",
        "corpus": miniature / "corpus.json",
        "prompts": miniature / "prompts.jsonl",
        "pair_prompts": 16,
        "pair_samples": 8,
        "judge.kind": "local",
        "judge.lm": judge / "model",
        "judge.rubric": judge / "rubric.toml",
        "judge.reply_tokens": 1,
        "judge.batch_size": 64,
        **{f"attribution.{name}": value for name, value in attribution.items()},
    }
    study = {
        "mesh": "data=8",
        "batch_size": 64,
        "methods": "delta_attribution,",
        "top": 2,
        "random": 3,
        "grid": "1.0,",
        "sampling.max_new": 8,
        "strength_prompts": 4,
        "effect_prompts": 6,
        "effect_samples": 2,
        "gradient_signed": False,
        "coherence_by": "judge",
        "ablate_by": "none",
        "resamples": 20,
        "passages": 0,
        "interpreted": 0,
    }
    keys = {f"cases.misalignment.{name}": value for name, value in case.items()} | study
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    return ["--config=case_study", f"--workdir={workdir}", *flags]


def train_flags(base: Path, workdir: Path) -> list[str]:
    """One small SAE, trained over all devices."""
    keys = {
        "lm": base / "model",
        "corpus": base / "corpus.json",
        "site": "layer1.resid_post",
        "mesh": "data=8",
        "tokens": 32 * 20,
        "batch_size": 32,
        "context": 32,
        "log_every": 10,
        "eval_every": 20,
        "save_every": 20,
        "tensorboard": False,  # would import torch where that is installed
        "buffer_tokens": 256,
        "shard_tokens": 256,
        "batch_rows": 8,
        "eval_tokens": 256,
        "held_out_share": 0.15,
        "prepend_bos": True,
        "sae.n_latents": 32,
        "sae.k": 4,
        "sae.warmup": 2,
        "sae.lr": 3e-3,
    }
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    return ["--config=train_sae", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def study_of(
    miniature: Path, judge: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Processes -> workdir of the same study, run once for all workers of a session."""
    shared = shared_folder(tmp_path_factory)
    flags_of = partial(study_flags, miniature, judge)

    def workdir(processes: int) -> Path:
        folder = shared / f"study_of_{processes}"
        return run_once("case_study", flags_of, processes, folder)

    return workdir


@pytest.fixture(scope="module")
def sae_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], SAE]:
    """Processes -> the same SAE, trained once for all workers of a session."""
    shared = shared_folder(tmp_path_factory)
    flags_of = partial(train_flags, once(shared / "cluster_base", write_base))

    def sae(processes: int) -> SAE:
        folder = shared / f"sae_of_{processes}"
        return load_sae(run_once("train_sae", flags_of, processes, folder) / "sae")

    return sae


def stored_arrays(workdir: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted((workdir / "store").rglob("*.npy")):
        yield str(path.relative_to(workdir)), np.load(path)


def files(workdir: Path) -> dict[str, bytes]:
    """Every file of a run but the one that holds times alone."""
    by_name = contents(workdir)
    del by_name["metrics.jsonl"]
    return by_name


def best_latents(workdir: Path) -> list[tuple[str, float]]:
    with (workdir / "misalignment/latents.csv").open(newline="") as file:
        return [(row["latent"], float(row["delta"])) for row in csv.DictReader(file)]


def stopped_before_gradients(study: Path, workdir: Path) -> None:
    """Makes the workdir of a run that ended when its pairs and statistics were there."""
    (workdir / "store").mkdir(parents=True)
    shutil.copy(study / "config.json", workdir)
    shutil.copytree(study / "judged", workdir / "judged")
    for stage in BEFORE_GRADIENTS:
        (finished,) = (study / "store").glob(f"misalignment.{stage}-*")
        shutil.copytree(finished, workdir / "store" / finished.name)


def killed(flags: list[str], victim: int, at: str, workdir: Path, logs: Path) -> str:
    """Kills one of two processes as soon as a file of a stage is in the store, and
    returns what the other one said before it ended by itself.
    """
    with started("case_study", flags, 2, logs) as members:
        began = time.monotonic()
        while not list(workdir.glob(at)):
            assert members[victim].exitcode is None, said(logs)
            assert time.monotonic() - began < SECONDS, said(logs)
            time.sleep(0.05)
        members[victim].kill()
        members[1 - victim].join(60)
        code = members[1 - victim].exitcode
    text = said(logs)[1 - victim]
    # Where the coordinator is gone, jax itself aborts the others.
    assert code == (75 if victim else -signal.SIGABRT), text
    return text


def test_killed_processes_end_their_runs_and_a_rerun_gives_the_same_files(
    study_of: Callable[[int], Path], miniature: Path, judge: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "w"
    flags = study_flags(miniature, judge, workdir)
    stopped_before_gradients(study_of(2), workdir)
    for victim, at in enumerate(("store/*.gradients-*", "store/*.strengths.away-*")):
        text = killed(flags, victim, at, workdir, tmp_path / f"logs{victim}")
        assert "another process of the run" in text or "another task died" in text
    assert run("case_study", flags, 2, tmp_path / "again") == [0, 0]
    assert files(workdir) == files(study_of(2))


def test_hosts_with_other_configs_or_without_the_data_are_named_at_the_start(
    miniature: Path, judge: Path, tmp_path: Path
) -> None:
    flags = study_flags(miniature, judge, tmp_path / "w")
    absent = f"--config.cases.misalignment.corpus={tmp_path}/absent.json"
    own = [["--config.seed=1"], ["--config.seed=2", absent]]
    assert run("case_study", flags, 2, tmp_path / "logs", own) == [1, 1]
    for text in said(tmp_path / "logs"):
        assert "error: the hosts of this run differ:\n  process 1 on " in text
        assert "was started with config.seed=2, process 0" in text
        assert f"corpus={miniature}/corpus.json: (absent) for process 1" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


# Of two workers the second begins here, and waits for nothing of the first.
@pytest.mark.parametrize("processes", [4, 2])
def test_an_sae_trained_on_several_processes_is_that_of_one(
    sae_of: Callable[[int], SAE], processes: int
) -> None:
    one, several = sae_of(1), sae_of(processes)
    for name in ("dec_nm", "enc_dn", "enc_bias_n", "dec_bias_m"):
        here, there = getattr(one, name), getattr(several, name)
        assert np.linalg.norm(there - here) <= 1e-5 * np.linalg.norm(here), name


@pytest.mark.parametrize("processes", [4, 2])
def test_a_study_on_several_processes_is_that_of_one(
    study_of: Callable[[int], Path], processes: int
) -> None:
    one, several = study_of(1), study_of(processes)
    assert contents(one).keys() == contents(several).keys()
    other = dict(stored_arrays(several))
    for name, array in stored_arrays(one):
        if array.dtype.kind != "f":  # tokens, counts, candidates
            np.testing.assert_array_equal(array, other[name], name)
            continue
        there = np.isfinite(array)
        np.testing.assert_array_equal(there, np.isfinite(other[name]), name)
        distance = np.linalg.norm(array[there] - other[name][there])
        assert distance <= 1e-5 * np.linalg.norm(array[there]), name
    here, there = best_latents(one), best_latents(several)
    for (latent, delta), (same, value) in zip(here, there, strict=True):
        assert latent == same or abs(delta - value) <= 1e-5 * abs(delta)
    assert "Steering" in (several / "report.html").read_text()
