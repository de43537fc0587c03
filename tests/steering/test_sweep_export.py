"""A sweep that leaves as files: what they say, and nothing taken over that does not
fit; its tokens are compared in tests/experiments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load

from sae_attr.hooks import Site
from sae_attr.lm.draw import Sampling
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE
from sae_attr.server import relay
from sae_attr.steering.interventions import intervention
from sae_attr.steering.plan import Plan, every_condition
from sae_attr.steering.sweep_completions import completion_files, read_completions
from sae_attr.steering.sweep_export import SweepExport, write_export
from sae_attr.store import InputAwaited
from sae_attr.study.sample_sources import from_files
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_llama, write_tokenizer

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
    with pytest.raises(ValueError, match="mode clamp needs the SAE"):
        replace(export, mode="clamp")
    with pytest.raises(ValueError, match=r"row '.*smaller strengths"):
        write_export(replace(export, unit=3e38), epath.Path(tmp_path / "overflowing"))
    assert not (tmp_path / "overflowing").exists()


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "gated"])
def test_a_clamp_states_what_sets_the_activation_without_the_sae(
    export: SweepExport, gate: str
) -> None:
    draw = np.random.default_rng(1).standard_normal
    cfg = SAEConfig(16, 16, 12, gate=gate, subtract_b_dec=True)
    threshold_n = jnp.full(12, 0.4) if gate == "jumprelu" else None
    matrix = lambda *shape: jnp.asarray(draw(shape), jnp.float32)
    sae = SAE(
        matrix(16, 12),
        matrix(12),
        matrix(12, 16),
        matrix(16),
        threshold_n,
        cfg=cfg,
    )
    if gate == "gated":
        with pytest.raises(ValueError, match="gate gated and norm none"):
            replace(export, mode="clamp", vectors=sae)
        return
    clamp = replace(export, mode="clamp", vectors=sae, rows=PLAN.rows[-1:])
    edit = json.loads(clamp.files["rows.jsonl"])["edits"][0]
    vectors = load(clamp.files["vectors.safetensors"])
    x_td = draw((1, 40, 16)).astype(np.float32)
    pre_t = x_td[0] @ vectors[edit["encoder"]] + edit["bias"]
    code_t = np.where(pre_t > edit.get("threshold", 0.0), np.maximum(pre_t, 0), 0)
    set_to = edit["coefficient"] - code_t
    expected_td = x_td[0] + set_to[:, None] * vectors[edit["vector"]]
    here = intervention(
        jnp.zeros((1, 1, 16)),
        jnp.full((1, 1), edit["coefficient"]),
        mode="clamp",
        sae=sae,
        latents_bm=jnp.array([[9]]),
    )
    np.testing.assert_allclose(
        expected_td, here(jnp.asarray(x_td), jnp.zeros((1, 40), int))[0], atol=1e-5
    )
    assert (code_t == 0).any()
    assert (code_t > 0).any()


@pytest.mark.parametrize("kind", ["add", "set", "project_out"])
def test_the_pages_formulas_are_those_of_the_edits(kind: str) -> None:
    x_td, v_d = np.random.default_rng(2).standard_normal((2, 3, 8)).astype(np.float32)
    v_d, c = v_d[0], 0.6
    along_t = x_td @ v_d
    by_page = {
        "add": x_td + c * v_d,
        "set": x_td + np.outer(c - along_t, v_d) / (v_d @ v_d),
        "project_out": x_td - c * np.outer(along_t, v_d) / (v_d @ v_d),
    }
    edit = intervention(jnp.asarray(v_d)[None, None], jnp.full((1, 1), c), mode=kind)
    here = edit(jnp.asarray(x_td)[None], jnp.zeros((1, 3), int))
    np.testing.assert_allclose(here[0], by_page[kind], atol=1e-5)


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


def test_names_beside_a_sweep_are_shown_printable(
    export: SweepExport, tmp_path: Path
) -> None:
    (tmp_path / "completions-\x1b[31m.jsonl").write_text("{}\n")
    (tmp_path / "completions-2.jsonl").mkdir()
    with pytest.raises(
        ValueError, match=r"\\x1b\[31m.*\(first completions-2.jsonl\)"
    ) as error:
        read_completions(export, completion_files(epath.Path(tmp_path)))
    assert str(error.value).isprintable()
    (tmp_path / "completions-\x1b[31m.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is not JSON") as error:
        read_completions(export, completion_files(epath.Path(tmp_path)))
    assert str(error.value).isprintable()


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


def test_other_processes_get_what_process_0_alone_reads(
    export: SweepExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome() -> str:
        try:
            return str(list(from_files(export, epath.Path(tmp_path), "s")(PLAN.rows)))
        except (InputAwaited, ValueError) as error:
            return f"{type(error).__name__} {error}"

    def of_both() -> str:
        sent: list[str] = []
        monkeypatch.setattr(relay, "is_main", lambda: True)
        monkeypatch.setattr(relay, "text_from_main", sent.append)
        of_main = outcome()
        monkeypatch.setattr(relay, "is_main", lambda: False)
        monkeypatch.setattr(relay, "text_from_main", lambda text: sent.pop(0))
        assert outcome() == of_main
        assert not sent
        return of_main

    assert of_both().startswith("InputAwaited a sweep waits for completions of 20 rows")
    (folder,) = (tmp_path / "sweeps").iterdir()
    file = folder / "completions.jsonl"
    file.write_text("{}\n")
    assert of_both().startswith("ValueError the completions do not fit")
    lines: Lines = [{"sweep": export.digest, "sampling": export.sampling_record}]
    for row in PLAN.rows:
        lines.append({"id": row.id, "ids": [10], "finish_reason": "length"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert of_both().count("SampledRow(") == len(PLAN.rows)
