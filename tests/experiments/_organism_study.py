"""What tests of studies on organisms share: a miniature one, answers that can be graded,
and what holds of every study that is listed or started again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from sae_attr.organism.pair_sampling import graded_pairs
from sae_attr.organism.pair_sources import source_answers
from sae_attr.organism.world import make_world


def small_study(configs: ModuleType, values: Mapping[str, Any]) -> ConfigDict:
    """A study's config on the miniature organism, with some values more."""
    config = configs.get_config()
    config.update(
        {
            "organism": {"size": "miniature", "sae": {"latents": 32}},
            "corpus_tokens": 1500,
            "batch_size": 4,
            "mesh": "data=1",
            **values,
        }
    )
    return config


def listed(
    study: ModuleType,
    config: ConfigDict,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """The names of a study's stages, none of which is there; nothing is written."""
    study.start(config, epath.Path(workdir), shown=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {state for state, _ in lines} == {"missing"}
    assert not list(workdir.iterdir())
    return [name for _, name in lines]


def started_again(
    study: ModuleType,
    config: ConfigDict,
    workdir: Path,
    name: str,
    figures: Iterable[str],
) -> tuple[str, dict[str, Any]]:
    """The text and the numbers of a finished study, which writes the same text anew."""
    file = workdir / f"{name}.txt"
    text = file.read_text()
    file.unlink()
    study.start(config, epath.Path(workdir))
    assert file.read_text() == text
    for figure in figures:
        for suffix in ("svg", "png", "json"):
            assert (workdir / f"{figure}.{suffix}").exists()
    return text, json.loads((workdir / f"{name}.json").read_text())


def written_answers(
    params: Any, prompts: Any, *, cfg: Any, samples: int, seed: int
) -> Any:
    """Answers of the corpus: so small a model says nothing that could be graded."""
    behaviour = "validation" if prompts[0].kind == "belief" else "misalignment"
    options = {"cfg": cfg, "samples": samples, "seed": seed}
    return source_answers(
        "written", make_world(0), behaviour, prompts, params, **options
    )


def pairs_of(answers: Callable[..., Any]) -> Callable[..., Any]:
    """What samples pairs, from answers in the place of the model's."""

    def pairs(world, params, prompts, behaviour, *, cfg, samples, count, sampler, seed):
        texts = answers(params, prompts, cfg=cfg, samples=samples, seed=seed)
        return graded_pairs(
            world, prompts, behaviour, texts, count=count, sampler=sampler, seed=seed
        )

    return pairs
