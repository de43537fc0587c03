"""The demo's miniature and runs on it, made once per test session even with several
pytest workers.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from absl.testing import flagsaver
from etils import epath
from ml_collections import ConfigDict

from configs import miniature
from experiments import attribute, make_miniature
from sae_attr.organism import planted
from tests._processes import SECONDS

REPO = Path(__file__).resolve().parent.parent.parent
PLANTED = planted.PLANTED
FIGURES = tuple(
    f"figures/attribution_vs_ablation.{suffix}" for suffix in ("json", "svg", "png")
)
RESULTS = ("latents.csv", "latents_recommended.csv", "scores.npz", *FIGURES)
# Small enough for seconds; what is ranked is the same as in the demo.
SMALL = {
    "mesh": "data=1",
    "ablate": 3,
    "ablate_rows": 16,
    "ablate_positions": 8,
    "bootstrap": 100,
    "corpus_tokens": 4000,
    "firing_tokens": 2000,
    "sae_check_tokens": 600,
    "trust_sae": True,  # random directions reconstruct nothing, and the SAE check says so
}


def once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """`folder`, filled by `make` in whichever worker comes first; the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder


def write_miniature(folder: Path, seed: int = 0) -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(
        (make_miniature.OUT, str(folder)), (make_miniature.SEED, seed)
    ):
        make_miniature.main([])


def config(folder: Path, **changes: Any) -> ConfigDict:
    """The demo's config on a miniature, small; `changes` win."""
    made = miniature.get_config("attribute")
    made.update(
        {
            "lm": str(folder / "model"),
            "sae": str(folder / "random_sae"),
            "pairs": str(folder / "pairs.jsonl"),
            "corpus": str(folder / "corpus.json"),
        }
    )
    made.update(SMALL)
    made.update(changes)
    return made


def run(config: ConfigDict, workdir: Path, **options: Any) -> dict[str, Any]:
    """A whole run in this process; what result.json then holds."""
    attribute.start(config, epath.Path(workdir), **options)
    return json.loads((workdir / "result.json").read_text())


def flag_list(config: ConfigDict, workdir: Path) -> list[str]:
    """The same run as command line flags."""
    plain = {
        k: v
        for k, v in config.to_dict().items()
        if v is not None and k not in ("sae_options", "exclude")
    }
    return [
        "--config=configs/miniature.py:attribute",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in plain.items()),
    ]


def command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "experiments.attribute", *flags]


def environment(**extra: str) -> dict[str, str]:
    """One CPU device, unlike the four that the tests simulate, and the tests' compile
    cache.
    """
    cache = os.path.join(
        os.path.dirname(os.environ["JAX_COMPILATION_CACHE_DIR"]), "runs"
    )
    return {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "SAE_ATTR_CACHE": cache,
        **extra,
    }


def shell(flags: Sequence[str], **extra: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, started as a user would."""
    return ended(command(flags), **extra)


def ended(command: Sequence[str], **extra: str) -> subprocess.CompletedProcess[str]:
    """A command in the repository with the environment of the tests; TimeoutExpired if
    it does not end.
    """
    env = environment(**extra)
    return subprocess.run(
        command, cwd=REPO, env=env, capture_output=True, text=True, timeout=SECONDS
    )


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows: Sequence[Mapping[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows])


def scores(workdir: Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "scores.npz") as file:
        return dict(file)


def contents(workdir: Path, names: Sequence[str] = RESULTS) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in names}


def loaded(result: Mapping[str, Any]) -> set[str]:
    """Names of the stages that were loaded and not computed."""
    return {name for name, timing in result["timings"].items() if timing["loaded"]}
