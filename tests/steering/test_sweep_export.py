"""A sweep that leaves as files: the same tokens when it comes back, and nothing taken over
that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open

from sae_attr.hooks import Site
from sae_attr.lm.draw import Sampling
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.steering.plan import Plan, every_condition
from sae_attr.steering.sampler import Sampler
from sae_attr.steering.sweep import SampledRow, sample_batches
from sae_attr.steering.sweep_completions import completion_files, read_completions
from sae_attr.steering.sweep_export import SweepExport, write_export
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_llama, write_tokenizer
from tests.steering._sweep_answers import answer

pytestmark = pytest.mark.usefixtures("quick")

PROMPTS = {"a": [0, 10, 11, 12], "b": [0, 13]}
PLAN = Plan(every_condition([7, 9], (-1.0, 2.0), tokens=("generated",)), ("a", "b"), 2)
SITE = Site(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_tokenizer(write_llama(folder, vocab=110))


@pytest.fixture(scope="module")
def export(model: Path) -> SweepExport:
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    rows = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    return SweepExport(
        PLAN.rows,
        PROMPTS,
        dict(
            zip((7, 9), rows / np.linalg.norm(rows, axis=1, keepdims=True), strict=True)
        ),
        load_tokenizer(model),
        jax.random.key(3),
        Sampling(max_new=5, stop_ids=tuple(range(0, 110, 9))),
        SITE,
        unit=0.7,
        skip=1,
        model="tiny",
    )


def tokens_of(sampled: list[SampledRow]) -> dict[str, Any]:
    return {row.row.id: (row.ids, row.stopped) for row in sampled}


def test_an_engine_that_reads_the_files_draws_the_tokens_of_the_sweep(
    model: Path, export: SweepExport, tmp_path: Path
) -> None:
    write_export(export, epath.Path(tmp_path))
    answer(tmp_path, model)
    read = read_completions(export, completion_files(epath.Path(tmp_path)))
    mesh = make_mesh("data=1")
    cfg, params = load_lm(model, mesh=mesh)
    sampler = Sampler(
        params,
        PROMPTS,
        export.vectors,
        export.key,
        cfg,
        SITE,
        mesh,
        8,
        sampling=export.sampling,
        unit=export.unit,
        skip=1,
    )
    here = [row for batch in sample_batches(sampler, PLAN.rows) for row in batch]
    assert tokens_of(read) == tokens_of(here)
    assert [row.row for row in read] == list(PLAN.rows)
    by_condition: dict[Any, list[Any]] = {}
    for row in read:
        by_condition.setdefault(row.row.condition, []).append(row.ids)
    assert (
        len({str(ids) for ids in by_condition.values()}) > 1
    )  # steering does something


def test_the_files_say_what_they_are_and_name_themselves_by_their_contents(
    export: SweepExport, tmp_path: Path
) -> None:
    write_export(export, epath.Path(tmp_path))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(PLAN.rows)
    unsteered, steered = json.loads(lines[0]), json.loads(lines[-1])
    assert (unsteered["arm"], unsteered["edits"]) == ("unsteered", [])
    assert steered["arm"] == "latent 9, +2, generated"
    assert steered["prompt_ids"] == PROMPTS["b"]
    (edit,) = steered["edits"]
    assert edit == {
        "site": "layer0.resid_post",
        "kind": "add",
        "vector": "latent.9",
        "coefficient": float(np.float32(2.0) * np.float32(0.7)),
        "start": 2,
        "stop": None,
    }
    assert steered["seed"] != unsteered["seed"]
    with safe_open(tmp_path / "vectors.safetensors", "numpy") as file:
        assert sorted(file.keys()) == ["latent.7", "latent.9"]
        about = json.loads(file.metadata()["sae_attr.sweep"])
    assert (about["site"], about["unit"]) == ("layer0.resid_post", 0.7)
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("sae_attr.sweep", 1)
    assert manifest["digest"] == export.digest == export.of(PLAN.rows).digest
    assert export.of(PLAN.rows[1:]).digest != export.digest
    with pytest.raises(ValueError, match="mode clamp reads the encoder"):
        replace(export, mode="clamp")


Lines = list[dict[str, Any]]


def _drop(lines: Lines) -> None:
    del lines[3:5]


def _twice(lines: Lines) -> None:
    lines.append(lines[1])


def _unknown(lines: Lines) -> None:
    lines.append({**lines[1], "id": "\x1b[31mnobody"})


def _other_sweep(lines: Lines) -> None:
    lines[0]["sweep"] = "0" * 32


def _other_sampling(lines: Lines) -> None:
    lines[0]["sampling"] = {**lines[0]["sampling"], "temperature": 0.5}


def _no_header(lines: Lines) -> None:
    del lines[0]


def _unusable(lines: Lines) -> None:
    lines[1]["ids"] = [10, 4000]
    lines[2]["finish_reason"] = "abort"
    lines[3] = {"id": lines[3]["id"], "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, r"sweep of 20 rows: 2 rows have no completion \(first '"),
        (_twice, r": 1 rows have two completions \(first completions.jsonl:22"),
        (_unknown, r": 1 lines have no id of the sweep \(first .*'\\x1b\[31mnobody'"),
        (_other_sweep, r"1 files answer another sweep \(first completions.jsonl that"),
        (
            _other_sampling,
            r"1 files were sampled with other .*temperature 0.5, not 1.0",
        ),
        (_no_header, r"1 files do not begin with the record of their sweep"),
        (
            _unusable,
            r": 3 completions cannot be used .*4000 is beyond .*again, or remove",
        ),
    ],
)
def test_what_does_not_fit_is_one_message_with_counts(
    export: SweepExport,
    tmp_path: Path,
    change: Callable[[Lines], None],
    words: str,
) -> None:
    lines: Lines = [{"sweep": export.digest, "sampling": export.sampling_record}]
    for row in PLAN.rows:
        lines.append({"id": row.id, "ids": [10, 11], "finish_reason": "stop"})
    change(lines)
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=words) as error:
        read_completions(export, [file])
    assert "\n" not in str(error.value)


def test_several_files_answer_one_sweep(export: SweepExport, tmp_path: Path) -> None:
    header = {"sweep": export.digest, "sampling": export.sampling_record}
    for part in (0, 1):
        lines: Lines = [header]
        for row in PLAN.rows[part::2]:
            lines.append({"id": row.id, "ids": [10, 0], "finish_reason": "length"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"completions-{part}.jsonl").write_text(text)
    read = read_completions(export, completion_files(epath.Path(tmp_path)))
    # 0 is a stop token.
    assert {(row.ids, row.stopped) for row in read} == {((10,), True)}
