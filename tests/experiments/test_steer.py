"""The steer entrypoint: what it writes, that it continues, and what it says of inputs
that do not fit.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import steer as configs_steer
from experiments import _common, steer
from sae_attr.hooks import Edit
from sae_attr.steering import INTERVENTIONS, Intervention, sample_batches
from sae_attr.steering.interventions import SteeredCoordinates, project_out
from sae_attr.store import InputAwaited, Store
from sae_attr.study import steering_job
from sae_attr.text.tokenizer import decode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_lines, write_llama, write_tokenizer
from tests.steering._sweep_answers import answer

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = [
    {"id": "a", "prompt": "once upon"},
    {"prompt": "hi", "positive": "there"},
    {"id": 7, "prompt_ids": [0, 5, 6]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("steer")
    write_tokenizer(write_llama(made / "model", vocab=110))
    np.savez(
        made / "vectors.npz",
        v=np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32),
    )
    write_lines(made / "prompts.jsonl", *PROMPTS)
    return made


def config(folder: Path, **changes: Any) -> ConfigDict:
    made = configs_steer.get_config()
    inputs = {
        "lm": folder / "model",
        "vectors": folder / "vectors.npz",
        "prompts": folder / "prompts.jsonl",
    }
    made.update({name: str(path) for name, path in inputs.items()})
    made.update(
        {
            "site": "layer1.resid_post",
            "latents": (7, 2),
            "sampling": {"max_new": 6},
            "samples": 2,
            "batch_size": 8,
        }
    )
    made.update(changes)
    return made


def run(made: ConfigDict, workdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    steer.start(made, epath.Path(workdir))
    lines = (workdir / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((workdir / "result.json").read_text()), [
        json.loads(line) for line in lines
    ]


def test_completions_beside_unsteered_ones_and_a_run_that_was_stopped(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, rows = run(config(folder), tmp_path / "whole")
    assert (
        len(rows)
        == 3 * 2 * (1 + 2 * 2)
        == result["completions"]
        == result["cost"]["rows"]
    )
    assert [(r["latent"], r["strength"]) for r in rows[::6]] == [
        (-1, 0),
        (7, -1),
        (7, 1),
        (2, -1),
        (2, 1),
    ]
    assert {r["prompt"] for r in rows} == {"a", "line-2", "7"}
    assert rows[4]["prompt_ids"] == [0, 5, 6]
    assert result["unit"]["over"] == "prompts"
    assert result["unit"]["value"] > 0
    shown = capsys.readouterr().out
    assert shown.count("unsteered  ") == 6
    assert repr(rows[-1]["text"]) in shown

    def stopped(sampler: Any, rows: Any) -> Any:
        yield next(iter(sample_batches(sampler, rows)))
        raise KeyboardInterrupt

    monkeypatch.setattr(steering_job, "sample_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder), tmp_path / "part")
    asked: list[int] = []
    monkeypatch.setattr(
        steering_job,
        "sample_batches",
        lambda sampler, rows: asked.append(len(rows)) or sample_batches(sampler, rows),
    )
    run(config(folder), tmp_path / "part")
    assert asked == [30 - 8]
    for name in ("completions.jsonl", "result.json"):
        assert (tmp_path / "part" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    run(config(folder), tmp_path / "part")
    assert asked == [30 - 8]  # nothing is made twice
    with pytest.raises(ValueError, match="strengths"):
        run(config(folder, strengths=(3.0,)), tmp_path / "part")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm": None}, "the config must have lm"),
        ({"vectors": None}, "of sae and vectors exactly one"),
        ({"site": None}, "add --config.site=layer2.resid_post"),
        ({"site": "layer5.resid_post"}, "lies outside the model"),
        (
            {"site": "layer1.mlp_hidden"},
            r"vectors of width 16, but layer1.mlp_hidden has 24",
        ),
        ({"latents": (9,)}, r"latents is \(9,\); name some of 0..8"),
        ({"mode": "push"}, "mode 'push' is unknown"),
        ({"mode": "clamp"}, "mode clamp needs an SAE"),
        ({"tokens": ("all", "last")}, "tokens 'last' is unknown"),
        (
            {"sampling": {"max_new": 60}},
            r"prompt 'a' has .*max_new=60 are .* context of 64; .*--config\.sampling\.max_new=5\d",
        ),
        ({"sampling": {"top_p": 0.0}}, "sampling: top_p is 0.0"),
        ({"strengths": (1.0, 1.0)}, "rows are in the plan twice"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"skip": -1}, "skip is -1; it must be at least 0"),
        ({"vectors": "zeros"}, "vector 2 is all zeros and has no direction"),
        ({"prompts": "empty"}, "has no records"),
        ({"prompts": "twice"}, "id 'a' stands on line 1 too"),
        ({"prompts": "bare"}, "has no 'prompt'"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    files = {"empty": [], "twice": [PROMPTS[0], PROMPTS[0]], "bare": [{"id": "x"}]}
    if "prompts" in change:
        change = {
            "prompts": str(
                write_lines(tmp_path / "prompts.jsonl", *files[change["prompts"]])
            )
        }
    if change.get("vectors"):
        np.save(tmp_path / "zeros.npy", np.zeros((9, 16), np.float32))
        change = {"vectors": str(tmp_path / "zeros.npy"), "latents": (2,)}
    with pytest.raises(ValueError, match=message):
        steer.start(config(folder, **change), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ---- where a completion ends, which ids there are, and on which day ------------------

DATED = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages "
    "%}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
MESSAGES = [{"id": "m", "prompt": [{"role": "user", "content": "hi"}]}]


def instruct(folder: Path, *, template: str = DATED, **generation: Any) -> Path:
    """A model whose turn ends with a token that is not the tokenizer's EOS."""
    write_tokenizer(write_llama(folder, vocab=110), chat_template=template)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_a_completion_ends_with_any_token_that_ends_a_turn(
    folder: Path, tmp_path: Path
) -> None:
    lm = instruct(tmp_path / "lm", eos_token_id=[50, 51])
    write_lines(tmp_path / "p.jsonl", *MESSAGES)
    options = {"lm": str(lm), "prompts": str(tmp_path / "p.jsonl"), "strengths": (1.0,)}
    result, _ = run(config(folder, **options), tmp_path / "run")
    assert result["sampling"]["stop_ids"] == [50, 51, 2, 1, 3]
    assert result["ends"] == {"model": [50, 51, 2], "tokenizer": [1], "template": [3]}
    job = steer.job_of(
        config(folder, **options, sampling={"stop_ids": (7,)}),
        Store(tmp_path / "store"),
    )
    assert job.sampling.stop_ids == (7,)
    with pytest.raises(
        ValueError,
        match=r"stop_ids has 110; give ids of the model's vocabulary, 0 to 109",
    ):
        steer.job_of(
            config(folder, **options, sampling={"stop_ids": (110,)}),
            Store(tmp_path / "store"),
        )


def test_another_day_gives_the_same_ids_and_asks_for_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Day(datetime.date):
        now = "2025-01-31"

        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date.fromisoformat(cls.now)

    monkeypatch.setattr(_common.datetime, "date", Day)
    lm = instruct(tmp_path / "lm")
    write_lines(tmp_path / "p.jsonl", *MESSAGES)
    made = lambda: config(
        folder, lm=str(lm), prompts=str(tmp_path / "p.jsonl"), strengths=(1.0,)
    )
    first, rows = run(made(), tmp_path / "run")
    tok = load_tokenizer(lm)
    assert (
        decode(tok, rows[0]["prompt_ids"])
        .replace(" ", "")
        .startswith("<s>31Jan2025<|im_start|>userhi")
    )
    assert first["template_options"] == {"date": "2025-01-31"}
    Day.now = "2026-11-28"
    monkeypatch.setattr(
        steering_job,
        "sample_batches",
        lambda *a, **k: pytest.fail("something was sampled again"),
    )
    again, after = run(made(), tmp_path / "run")
    assert (again, after) == (first, rows)


def test_ids_that_the_model_lacks_are_named_with_their_prompt(
    folder: Path, tmp_path: Path
) -> None:
    """A tokenizer that has more tokens than the model is no fault, a text that uses
    them is.
    """
    lm = write_tokenizer(write_llama(tmp_path / "lm", vocab=100))
    assert load_tokenizer(lm).vocab_size > 100
    beyond = load_tokenizer(lm).backend.id_to_token(104)
    fine = write_lines(tmp_path / "fine.jsonl", {"id": "a", "prompt": "hi"})
    assert steer.job_of(
        config(folder, lm=str(lm), prompts=str(fine)), Store(tmp_path / "store")
    ).prompts["a"]
    for record, message in (
        (
            {"id": "x", "prompt": f"a{beyond}"},
            rf"prompt 'x' \(line 2\): token id 104 \('{beyond}'\) is beyond .* 100",
        ),
        (
            {"id": "x", "prompt_ids": [0, 100]},
            r"prompt 'x' \(line 2\): token id 100 .* \(position 1\)",
        ),
        (
            {"id": "x", "prompt_ids": [0, -1]},
            r"bad.jsonl:2: 'prompt_ids' must be a list of token ids",
        ),
    ):
        bad = write_lines(tmp_path / "bad.jsonl", {"id": "a", "prompt": "hi"}, record)
        with pytest.raises(ValueError, match=message):
            run(config(folder, lm=str(lm), prompts=str(bad)), tmp_path / "bad")


def test_numbers_that_are_not_finite_stop_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unit is nan; give a finite length"):
        run(config(folder, unit=float("nan")), tmp_path / "nan")
    for strength in (float("inf"), "nan"):
        with pytest.raises(ValueError, match=rf"strengths has '?{strength}"):
            run(config(folder, strengths=(strength,)), tmp_path / "inf")
    with pytest.raises(
        ValueError,
        match=r"sampling .*/a/0/0: the logits of step 0 \(from 0\) are not finite",
    ):
        run(config(folder, unit=3e38, strengths=(2.0,)), tmp_path / "large")


def test_a_new_intervention_is_a_function_and_a_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reached by its name from the command line's config, and in the help."""

    def mirror(rows: SteeredCoordinates) -> Edit:
        """x - 2 c (x . d) d, of one direction."""
        return project_out(replace(rows, strengths_bm=2 * rows.strengths_bm))

    entry = Intervention(mirror, "mirrors x at the plane across d")
    monkeypatch.setitem(INTERVENTIONS, "mirror", entry)
    result, rows = run(
        config(folder, mode="mirror", strengths=(0.0, 1.0)), tmp_path / "mirror"
    )
    assert result["unit"]["value"] == 1.0
    by_strength = {c: [r["ids"] for r in rows if r["strength"] == c] for c in (0, 1)}
    assert by_strength[1][:6] != by_strength[0][:6]
    _, same = run(
        config(folder, mode="project_out", strengths=(2.0,)), tmp_path / "twice"
    )
    assert [r["ids"] for r in same if r["latent"] == 7] == by_strength[1][:6]
    with pytest.raises(ValueError, match=r"choose of .*clamp, mirror"):
        steer.job_of(config(folder, mode="push"), Store(tmp_path / "store"))


def test_every_intervention_is_in_the_help_of_its_config_and_reachable(
    folder: Path, tmp_path: Path
) -> None:
    texts = configs_steer.SETTINGS[""][0]
    assert isinstance(texts, dict)
    assert all(
        f"{mode} {way.meaning}" in texts["mode"] for mode, way in INTERVENTIONS.items()
    )
    for mode, way in INTERVENTIONS.items():
        if not way.of_latents:
            job = steer.job_of(config(folder, mode=mode), Store(tmp_path / "store"))
            assert job.settings.mode == mode


def test_latent_activations_can_be_clamped(miniature: Path, tmp_path: Path) -> None:
    """The planted latent at a large activation makes the miniature say rude words."""
    made = configs_steer.get_config()
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "one old man calm so calm"})
    inputs = {"lm": miniature / "model", "sae": miniature / "sae", "prompts": prompts}
    made.update({name: str(path) for name, path in inputs.items()})
    options = {"mode": "clamp", "latents": (77,), "strengths": (0.0, 30.0)}
    made.update({**options, "samples": 4, "sampling": {"max_new": 6}})
    result, rows = run(made, tmp_path / "run")
    assert result["unit"] == {"value": 1.0, "over": "given"}
    rude = {"fool", "rubbish", "nonsense", "hate", "ugly", "stupid", "awful", "idiot"}
    counts = dict.fromkeys((0.0, 30.0), 0)
    for row in rows[4:]:
        counts[row["strength"]] += sum(word in rude for word in row["text"].split())
    assert counts[30.0] > 12 > counts[0.0]


def test_a_sweep_that_left_as_files_comes_back_as_it_would_be_here(
    folder: Path, tmp_path: Path
) -> None:
    made = config(folder, unit=2.0, tokens=("generated",), skip=1)
    result, rows = run(made, tmp_path / "here")
    made.sweeps_by = "export"
    with pytest.raises(InputAwaited, match="waits for completions of 30 rows"):
        run(made, tmp_path / "away")
    assert not (tmp_path / "away/completions.jsonl").exists()
    (sweep,) = (tmp_path / "away/sweeps").iterdir()
    answer(sweep, folder / "model")
    returned, others = run(made, tmp_path / "away")
    for row, other in zip(rows, others, strict=True):
        assert (other.pop("logp"), other.pop("nats_per_token")) == (None, None)
        assert other.items() <= row.items()
    assert len({row["text"] for row in rows if row["prompt"] == "a"}) > made.samples
    assert returned["stopped"] == result["stopped"]
    assert returned["nats_per_token"] == {"unsteered": None, "steered": None}
