"""A whole study on the miniature: what it finds, what a second run does, and what
happens when something goes wrong.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from benchmarks.faults import contents
from configs import miniature as configs
from configs import organism as organism_config
from experiments import case_study
from sae_attr.attribution.score_registry import SCORES, Score, Vector
from sae_attr.judge import BudgetExhausted, Grade, cached
from sae_attr.parallel import make_mesh
from sae_attr.report import method_style
from sae_attr.report.figures import drawing
from sae_attr.store import (
    Progress,
    Store,
    lock_workdir,
    run_stages,
    stage_keys,
    stored_results,
    with_readers,
)
from sae_attr.store import entries as store_entries
from sae_attr.study import case as cases
from sae_attr.study import case_checks, outputs, stage_order
from sae_attr.study import case_study as opening
from sae_attr.study.attribution_stages import CORPUS_STAGES, PAIR_STAGES
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.columns import schema as latent_schema
from sae_attr.study.stages import (
    convergence,
)
from sae_attr.text.rows import ROLES
from tests._processes import limited
from tests.experiments import _demo

PLANTED = _demo.PLANTED


def config(
    folder: Path, cases: tuple[str, ...] = ("rude", "kind"), **changes: Any
) -> ConfigDict:
    """The miniature's study on a folder; `changes` win."""
    made = configs.get_config("study")
    for case in made.cases.values():
        for name in ("lm", "sae", "corpus", "prompts"):
            case[name] = case[name].replace(configs.FOLDER, str(folder))
        case.sae, case.attribution.trust_sae = (
            str(folder / "random_sae"),
            True,
        )  # many like directions, one of them planted
    for name in set(made.cases) - set(cases):
        del made.cases[name]
    made.update({"mesh": "data=1", **changes})
    return made


def run(made: ConfigDict, workdir: Path, **options: Any) -> None:
    case_study.start(made, epath.Path(workdir), **options)


def states(
    made: ConfigDict, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What --list says."""
    capsys.readouterr()
    run(made, workdir, shown=True)
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    return {name: state for state, name in (line.split() for line in lines)}


def latents(workdir: Path, case: str) -> dict[int, dict[str, str]]:
    return {
        int(row["latent"]): row for row in _demo.table(workdir / case / "latents.csv")
    }


# ---- what it finds -------------------------------------------------------------------


def test_the_planted_latent_is_first_and_steering_proves_it(studied: Path) -> None:
    table = latents(studied, "rude")
    assert next(iter(table)) == PLANTED
    away = {latent: float(row["away"]) for latent, row in table.items()}
    assert min(away, key=lambda latent: away[latent]) == PLANTED
    assert away[PLANTED] < -0.4
    assert "nonsense" in table[PLANTED]["tokens"]
    assert "nonsense" in table[PLANTED]["raised"]
    assert (
        float(latents(studied, "kind")[PLANTED]["toward"]) < 0
    )  # steered in both studies, the other way there


def test_the_result_holds_what_a_reader_needs(studied: Path) -> None:
    result = json.loads((studied / "result.json").read_text())
    rude = result["cases"]["rude"]
    assert rude["attribution"]["pairs"]["on_policy"] is True
    assert rude["facts"]["pairs"] > 40
    methods = {(row["method"], row["direction"]) for row in rude["counts"]}
    assert {
        ("delta_attribution", "away"),
        ("delta_code", "toward"),
        ("random", "toward"),
    } <= methods
    for row in rude["differences"]:
        assert {
            "count_low",
            "count_p",
            "count_q",
            "mean_low",
            "mean_p",
            "mean_q",
        } <= set(row)
    assert result["convergence"][0]["population"] == 256
    assert result["cost"]["samples"] > 1000
    for name in ("effects", "effects_gradient_signed", "attribution_vs_ablation"):
        for suffix in ("svg", "png", "json"):
            assert (studied / f"figures/rude.{name}.{suffix}").stat().st_size > 100
    pairs = [
        json.loads(line)
        for line in (studied / "pairs/rude.jsonl").read_text().splitlines()
    ]
    assert all(
        record["sampler"] == rude["attribution"]["inputs"]["lm"] for record in pairs
    )


def test_the_page_says_who_chose_a_latent_as_figures_do(studied: Path) -> None:
    page = (studied / "report.html").read_text(encoding="utf-8")
    chosen = re.findall(r'<td class="methods"[^>]*><bdi>([^<]*)</bdi>', page)
    assert len(chosen) == sum(len(latents(studied, case)) for case in ("rude", "kind"))
    assert any("Δ-attribution" in names for names in chosen)
    assert all(chosen)
    assert "delta_attribution:" not in page


def test_every_latent_has_a_corner_and_the_roles_that_its_cause_comes_from(
    studied: Path,
) -> None:
    table = latents(studied, "rude")
    corners = {row["corner"] for row in table.values()}
    assert table[PLANTED]["corner"] == "acted and steers"
    assert "neither" in corners
    for row in table.values():
        parts = [float(v) for name, v in row.items() if name.startswith("from_")]
        assert sum(parts) == pytest.approx(float(row["delta"]), rel=1e-3, abs=1e-6)
        assert row["main_role"] in ROLES
    result = json.loads((studied / "result.json").read_text())["cases"]["rude"]
    only = result["roles"]["user_only"]
    assert only["rows"][0]["latent"] == PLANTED
    assert 0 <= only["stay"] <= only["top"]
    page = (studied / "report.html").read_text(encoding="utf-8")
    assert "If only the user&#39;s tokens count" in page
    assert (studied / "figures/rude.roles.svg").exists()


def test_without_exact_rates_nothing_is_ablated_and_the_page_says_why(
    studied: Path,
) -> None:
    facts = json.loads((studied / "result.json").read_text())["cases"]["rude"]["facts"]
    why = facts["exact ablation of single latents"]
    assert why.startswith("left out: ")
    assert "have no texts" in why
    assert next(iter(latents(studied, "rude").values()))["ablated"] == "nan"
    assert not (studied / "figures/rude.effects_of_ablation.svg").exists()


def test_files_are_summed_up_by_folder() -> None:
    names = ["figures/a.png", "figures/a.svg", "report.html", "rude/latents.csv"]
    assert case_study.summed_up(names) == ["report.html", "figures/ (2)", "rude/ (1)"]


def test_prompts_of_the_three_uses_are_disjoint(studied: Path, miniature: Path) -> None:
    case = opening.open_study(config(miniature).to_dict(), runtime_in(studied)).cases[0]
    used = [
        {p.id for p in case.prompts(split)}
        for split in ("pairs", "strengths", "effects")
    ]
    assert not used[0] & used[1] | used[0] & used[2] | used[1] & used[2]


def runtime_in(workdir: Path) -> Any:
    from sae_attr import parallel
    from sae_attr.study.case import Runtime

    mesh = parallel.make_mesh("data=1")
    return Runtime(Store(workdir / "store"), epath.Path(workdir), mesh, progress=False)


# ---- a second run --------------------------------------------------------------------


def test_a_second_run_loads_everything_and_changes_nothing(
    studied: Path,
    miniature: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(studied)
    seen = {p: p.stat().st_mtime_ns for p in studied.rglob("*.csv")}
    monkeypatch.setattr(
        Store, "publish", lambda *a, **k: pytest.fail("something was computed again")
    )
    run(config(miniature), studied)
    assert contents(studied) == before
    assert {p: p.stat().st_mtime_ns for p in studied.rglob("*.csv")} == seen
    assert set(states(config(miniature), studied, capsys).values()) == {"done"}


def test_a_change_runs_again_what_depends_on_it(
    studied: Path, miniature: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = config(miniature)
    other.cases.rude.judge.present = (*configs.RUDE, "grumpy")  # another rubric
    found = states(other, studied, capsys)
    assert found["rude.sample"] == found["kind.grade"] == "done"
    assert {
        found[f"rude.{s}"]
        for s in ("grade", "pair", "attribute", "select", "judge.away", "effects")
    } == {"stale"}
    assert not any(
        "page" in name or "figures" in name for name in found
    )  # made of the results on every run, never stored
    more = states(config(miniature, effect_samples=3), studied, capsys)
    assert {more[f"rude.{s}"] for s in ("attribute", "select", "strengths.away")} == {
        "done"
    }
    assert {more[f"rude.{s}"] for s in ("steer.away", "judge.toward", "effects")} == {
        "stale"
    }


def test_a_ranking_over_a_pool_is_on_the_page_and_in_the_result(
    studied: Path, miniature: Path
) -> None:
    study = opening.open_study(config(miniature).to_dict(), runtime_in(studied))
    results = stored_results(study.runtime.store, study.stages)
    told = json.loads((studied / "result.json").read_text())["cases"]["rude"]
    assert told["attribution"]["presets"]["recommended"]["ranked"]["latents"] == 256
    assert "recommended: of all 256 latents" in told["facts"]["latents ranked"]
    meta = copy.deepcopy(results["rude.attribute"].meta)
    by = "the best 9 by both and the best 9 by gradient"
    meta["summary"]["presets"]["recommended"]["ranked"] = {
        "latents": 17,
        "of": 256,
        "by": by,
    }
    results["rude.attribute"] = results["rude.attribute"]._replace(meta=meta)
    shared = stage_order.shared_names(study.cases)
    files = outputs.page(
        study.cases, stage_order.stage_names(study.settings), shared, results
    ).files
    assert f"recommended: of a pool of 17 of 256 latents: {by}" in str(
        files["report.html"]
    )
    assert f"of a pool of 17 of 256 latents: {by}" in str(files["result.json"])


def test_tables_have_one_schema_and_one_sign(studied: Path) -> None:
    rows, candidates = (
        _demo.table(studied / f"rude/{name}.csv")
        for name in ("latents", "candidates_faithful")
    )
    for columns in (list(rows[0]), list(candidates[0])):
        schema = [
            name for name in latent_schema() if name in columns or name == "rank_*"
        ]
        assert [name for name in columns if not name.startswith("rank_")] == [
            n for n in schema if n != "rank_*"
        ]
    of = {row["latent"]: row for row in candidates}
    both = [row for row in rows if row["latent"] in of]
    for name in ("gradient", "projection", "delta"):
        ours = [float(row[name]) for row in both]
        np.testing.assert_allclose(
            ours, [float(of[row["latent"]][name]) for row in both], rtol=1e-4
        )
    planted = next(row for row in rows if int(row["latent"]) == PLANTED)
    assert float(planted["gradient"]) > 0
    assert planted["tokens"] == of[str(PLANTED)]["tokens"]


def test_a_new_score_is_on_the_page_and_in_its_table_and_may_be_steered_by(
    studied: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage_keys_of(miniature, studied)
    study = opening.open_study(config(miniature).to_dict(), runtime_in(studied))
    results = stored_results(study.runtime.store, study.stages)
    new = Score(
        lambda evidence, scope: Vector(evidence.mean_d), "along the mean", ranked=True
    )
    monkeypatch.setitem(SCORES, "mean_direction", new)
    changed = {
        name
        for name, key in stage_keys_of(miniature, studied).items()
        if key != before[name]
    }
    assert changed == with_readers(study.stages, {"rude.scores", "kind.scores"})
    for case in ("rude", "kind"):
        made = results[f"{case}.attribute"]
        arrays = dict(made.arrays) | {"mean_direction_prompt": np.arange(256) + 0.5}
        results[f"{case}.attribute"] = made._replace(arrays=arrays)
    shared = stage_order.shared_names(study.cases)
    files = outputs.page(
        study.cases, stage_order.stage_names(study.settings), shared, results
    ).files
    assert "along the mean" in str(files["report.html"])
    rows = list(csv.DictReader(io.StringIO(str(files["rude/latents.csv"]))))
    assert [float(row["mean_direction"]) for row in rows] == [
        int(row["latent"]) + 0.5 for row in rows
    ]
    opening.open_study(
        config(miniature, methods=("mean_direction",)).to_dict(), runtime_in(studied)
    )
    with pytest.raises(
        ValueError, match=r"method 'other' is unknown; choose of .*, mean_direction"
    ):
        opening.open_study(
            config(miniature, methods=("other",)).to_dict(), runtime_in(studied)
        )


def stage_keys_of(miniature: Path, workdir: Path) -> dict[str, str]:
    return stage_keys(
        opening.open_study(config(miniature).to_dict(), runtime_in(workdir)).stages
    )


@pytest.mark.parametrize("stage", [*CORPUS_STAGES, *PAIR_STAGES])
def test_a_stage_of_the_attribution_that_changed_is_in_the_keys_of_what_reads_it(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    before = stage_keys_of(miniature, tmp_path)
    monkeypatch.setattr(stage, "VERSION", 99)
    after = stage_keys_of(miniature, tmp_path)
    stages = opening.open_study(
        config(miniature).to_dict(), runtime_in(tmp_path)
    ).stages
    raised = {f"{case}.{stage.NAME}" for case in ("rude", "kind")}
    expected = with_readers(stages, raised)
    assert {name for name in before if before[name] != after[name]} == expected
    assert "rude.pair" not in expected
    assert "rude.select" in expected


# Of studies with exact effects, with a screen or further dictionaries, or with a reader.
OPTIONAL_KINDS = (
    *("rates", "unsteered", "specificity", "sampled_check"),
    *("screen", "dictionaries", "texts_to_read", "describe", "match"),
)
KINDS = [
    kind.name
    for kind in (*stage_order.PAIRING, *stage_order.STEERING)
    if kind.name not in OPTIONAL_KINDS
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_of_a_study_has_a_version_of_its_own(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = stage_keys_of(miniature, tmp_path)
    for name in ("PAIRING", "STEERING"):
        part = []
        for stage in getattr(stage_order, name):
            version = 99 if stage.name == kind else stage.version
            part.append(dataclasses.replace(stage, version=version))
        monkeypatch.setattr(stage_order, name, part)
    after = stage_keys_of(miniature, tmp_path)
    stages = opening.open_study(
        config(miniature).to_dict(), runtime_in(tmp_path)
    ).stages
    bumped = {
        name
        for name in before
        if name.removeprefix("rude.").removeprefix("kind.").split(".")[0] == kind
    }
    assert bumped
    assert {name for name in before if before[name] != after[name]} == with_readers(
        stages, bumped
    )


def test_the_stage_of_several_cases_has_a_version_of_its_own(
    miniature: Path, tmp_path: Path
) -> None:
    study = opening.open_study(config(miniature).to_dict(), runtime_in(tmp_path))
    first, other = (
        convergence.convergence_stages(study.cases, version)[0] for version in (1, 2)
    )
    assert first.needs == other.needs
    assert first.version != other.version
    assert study.stages[-1].version == convergence.VERSION


def test_a_new_stage_is_a_file_and_its_name_in_the_order(
    miniature: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is listed, runs, reads what it names, and is computed again with it."""

    def count(inputs: StageInputs, progress: Progress) -> Any:
        records = inputs["pair"].meta["records"]
        return {"lengths_p": np.array([len(r["positive"]) for r in records])}, {}

    stage = CaseStage("lengths", count, lambda case: {}, needs=("pair",))
    monkeypatch.setattr(stage_order, "PAIRING", [*stage_order.PAIRING, stage])
    monkeypatch.setattr(stage_order, "STEERING", [])
    made = config(miniature, ("rude",))
    assert states(made, tmp_path, capsys)["rude.lengths"] == "missing"
    runtime = runtime_in(tmp_path)
    study = opening.open_study(made.to_dict(), runtime)
    results = run_stages(runtime.store, study.stages, until="lengths")
    assert results["rude.lengths"].arrays["lengths_p"].min() >= 1
    assert states(made, tmp_path, capsys)["rude.lengths"] == "done"
    assert "rude.lengths" in with_readers(study.stages, {"rude.pair"})


def test_a_changed_column_and_drawing_show_on_the_next_run(
    studied: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = _demo.copied(studied, tmp_path / "again")
    monkeypatch.setattr(
        Store, "publish", lambda *a, **k: pytest.fail("something was computed again")
    )
    entry = dataclasses.replace(SCORES["gradient"], title="brand new")
    monkeypatch.setitem(SCORES, "gradient", entry)
    monkeypatch.setitem(method_style.NAMES, "delta_code", "Another name")
    # What an edit of the source would do.
    monkeypatch.setattr(drawing, "_code_digest", lambda: "of other code")
    run(
        config(miniature), again, only=["interpret"]
    )  # the page needs all of them, and all are done
    assert "brand new" in (again / "report.html").read_text(encoding="utf-8")
    figure = "figures/rude.effects.svg"
    assert (again / figure).read_bytes() != (studied / figure).read_bytes()
    results = []
    for folder in (again, studied):
        result = json.loads((folder / "result.json").read_text())
        result.pop("findings")  # which name the methods
        results.append(result)
    assert results[0] == results[1]


def test_until_only_and_bad_words(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(miniature, ("rude",))
    run(made, tmp_path, until="pair")
    found = states(made, tmp_path, capsys)
    assert [name for name, state in found.items() if state == "done"] == [
        "rude.sample",
        "rude.grade",
        "rude.pair",
        "rude.sae_check",  # before any of them: an SAE that does not fit ends the run
    ]
    with pytest.raises(ValueError, match=r"reads 'rude\.attribute', which is missing"):
        run(made, tmp_path, only=["select"])
    with pytest.raises(ValueError, match="no stage is called 'steering'"):
        run(made, tmp_path / "none", until="steering")
    assert not (tmp_path / "none").exists()


# ---- faults --------------------------------------------------------------------------


def test_an_sae_that_does_not_fit_is_refused_before_a_sample(
    miniature: Path, tmp_path: Path
) -> None:
    """The miniature's random directions reconstruct nothing; its config trusts them."""
    made = config(miniature, ("rude",))
    made.cases.rude.attribution.update({"trust_sae": False, "sae_check_tokens": 1000})
    with pytest.raises(
        ValueError,
        match=r"go on all the same with --config\.cases\.rude\.attribution\.trust_sae=True",
    ):
        run(made, tmp_path)
    assert (
        made.cases.rude.attribution.trust_sae is False
    )  # the flag that the message names is a key of this config
    assert not [p.name for p in (tmp_path / "store").iterdir() if "sample" in p.name]
    assert not list((tmp_path / "store").glob("progress/*sample*"))


def test_a_judge_is_asked_before_a_sample(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(judge: Any) -> None:
        asked.append(judge)
        raise ValueError("judge words was asked one question and does not answer")

    monkeypatch.setattr(case_checks, "ask_one", refuse)
    with pytest.raises(ValueError, match="does not answer"):
        run(config(miniature, ("rude",)), tmp_path)
    assert len(asked) == 1
    assert not list((tmp_path / "store").glob("**/*sample*"))


def test_coherence_that_nobody_measures_is_refused_before_a_sample(
    miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"--config\.coherence_by=logp, or add .*--config\.cases\.rude\.judge\.coherence",
    ):
        run(config(miniature, ("rude",), coherence_by="judge"), tmp_path)
    assert not (tmp_path / "store").exists()


def test_noise_under_strong_steering_is_no_answer(studied: Path) -> None:
    """Words are found in noise too; what the unsteered model finds unlikely is
    excluded, and the limits are told.
    """
    rude = json.loads((studied / "result.json").read_text())["cases"]["rude"]
    assert "by log-probability: away at least -" in rude["facts"]["coherence"]
    assert rude["facts"]["latents without a coherent strength"] != "away 0, toward 0"


def test_two_runs_in_one_workdir(studied: Path, miniature: Path) -> None:
    with (
        lock_workdir(studied),
        pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"),
    ):
        run(config(miniature), studied)


def test_another_config_in_the_same_workdir(studied: Path, miniature: Path) -> None:
    with pytest.raises(ValueError, match="effect_samples: 2 → 3"):
        run(config(miniature, effect_samples=3), studied)


def test_a_full_disk_loses_nothing(
    miniature: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, appended = config(miniature, ("rude",), batch_size=64), Progress.append

    def full(self: Progress, rows: Any) -> None:
        if len(self.rows()) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        appended(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "append", full)
        with pytest.raises(OSError, match="No space left"):
            run(made, tmp_path, until="sample")
    assert states(made, tmp_path, capsys)["rude.sample"] == "part"
    with monkeypatch.context() as patch:
        patch.setattr(
            store_entries,
            "write_arrays",
            lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")),
        )
        with pytest.raises(OSError, match="No space left"):
            run(made, tmp_path, until="sample")
    assert states(made, tmp_path, capsys)["rude.sample"] == "part"
    run(made, tmp_path, until="sample")
    run(made, tmp_path / "calm", until="sample")
    arrays = [
        next((p / "store").glob("rude.sample-*")) / "tokens_rn.npy"
        for p in (tmp_path, tmp_path / "calm")
    ]
    assert arrays[0].read_bytes() == arrays[1].read_bytes()


def test_an_entry_cut_short_is_made_again(miniature: Path, tmp_path: Path) -> None:
    made = config(miniature, ("rude",))
    run(made, tmp_path, until="pair")
    entry = next((tmp_path / "store").glob("rude.grade-*")) / "behaviour_r.npy"
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(
        RuntimeWarning,
        match="has .* bytes, its manifest states .*; it is computed again",
    ):
        run(made, tmp_path, until="pair")
    assert entry.read_bytes() == whole


def test_no_pairs_says_what_there_was_and_what_to_change(
    miniature: Path, tmp_path: Path
) -> None:
    made = config(miniature, ("rude",))
    made.cases.rude.judge.absent = ("never",)
    with pytest.raises(
        ValueError,
        match=r"no pairs: of \d+ prompts with 16 samples each, \d+ gave the behaviour alone, 0 its",
    ):
        run(made, tmp_path, until="pair")


class Tired:
    """A judge whose budget ends after so many answers; what it gave is kept."""

    def __init__(self, judge: Any, limit: int) -> None:
        self.judge, self.limit, self.asked = judge, limit, 0

    @property
    def identity(self) -> Any:
        return self.judge.identity

    def grade(self, items: Any) -> Any:
        for done, pair in enumerate(self.judge.grade(items)):
            if self.asked >= self.limit:
                raise BudgetExhausted(
                    "the budget of calls is spent", graded=done, left=len(items) - done
                )
            self.asked += 1
            yield pair


def test_a_budget_that_ends_in_the_middle_goes_on_with_a_larger_one(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_attr.judge import cached

    opened = opening.open_judge
    made, tired = config(miniature, ("rude",)), []

    def limited_to(calls: int) -> None:
        def open_judge(spec: Any, folder: Any, mesh: Any) -> Any:
            tired.append(Tired(opened(spec, folder, mesh), calls))
            return cached(tired[-1], folder)

        monkeypatch.setattr(opening, "open_judge", open_judge)

    limited_to(50)
    with pytest.raises(BudgetExhausted):
        run(made, tmp_path, until="grade")
    limited_to(10_000)
    run(made, tmp_path, until="grade")
    first, second = (t.asked for t in tired)
    monkeypatch.setattr(opening, "open_judge", opened)
    run(made, tmp_path / "calm", until="grade")
    entries = [
        next((p / "store").glob("rude.grade-*")) / "behaviour_r.npy"
        for p in (tmp_path, tmp_path / "calm")
    ]
    assert entries[0].read_bytes() == entries[1].read_bytes()
    assert first == 50
    different = len(
        {
            line
            for line in (tmp_path / "judged").rglob("rows.jsonl")
            for line in line.read_text().splitlines()
        }
    )
    assert first + second == different  # nothing was graded twice


def test_answers_that_the_scope_leaves_nothing_of_are_no_pairs(
    miniature: Path, tmp_path: Path
) -> None:
    """Of a completion of one token nothing counts where only completions do: no later
    token depends on it.
    """
    made = config(miniature, ("rude",))
    made.sampling.max_new = 1
    made.cases.rude.attribution.tokens = "completion"
    with pytest.raises(
        ValueError,
        match=r"no pairs: .* Left out were graded completions: \d+ not scorable",
    ):
        run(made, tmp_path, until="pair")


class Unreadable:
    """A judge whose replies to every fifth text cannot be read, until it is mended."""

    def __init__(self, judge: Any, mended: bool) -> None:
        self.judge, self.mended, self.asked = judge, mended, 0

    identity = property(lambda self: self.judge.identity)
    tells_coherence = property(lambda self: False)

    def grade(self, items: Any) -> Any:
        for name, grade in self.judge.grade(items):
            self.asked += 1
            text = next(item.completion for item in items if item.id == name)
            broken = not self.mended and sum(text.encode()) % 5 == 0
            yield name, Grade("MALFORMED", malformed=True, raw="…") if broken else grade


def test_what_a_judge_left_unread_is_asked_again_in_the_next_run(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made, judges = opening.open_judge, config(miniature, ("rude",)), []

    def with_judge(mended: bool) -> None:
        def open_judge(spec: Any, folder: Any, mesh: Any) -> Any:
            judges.append(Unreadable(opened(spec, folder, mesh), mended))
            return cached(judges[-1], folder)

        monkeypatch.setattr(opening, "open_judge", open_judge)

    def unread() -> int:
        meta = json.loads(
            (next((tmp_path / "store").glob("rude.grade-*")) / "meta.json").read_text()
        )
        return meta["counts"]["malformed"]

    with_judge(mended=False)
    run(made, tmp_path, until="pair")
    left = unread()
    assert left > 50
    run(
        made, tmp_path, until="pair"
    )  # still broken: no more is asked than tells so, and what is stored stands
    assert judges[1].asked == 50
    assert unread() == left
    with_judge(mended=True)
    run(made, tmp_path, until="pair")
    assert (
        0 < judges[2].asked < 2 * left
    )  # some of them are excluded now, and sampled again
    assert unread() == 0
    run(made, tmp_path, until="pair")
    assert judges[3].asked == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("delta",)}, "method 'delta' is unknown"),
        ({"grid": (1.0, 0.5)}, "grid .* ascending"),
        (
            {"strengths_by": "exact"},
            "has no text .present.*continuations.present=TEXTS",
        ),
        ({"budget.rule": "none"}, "budget rule 'none'"),
        ({"steer_tokens": "some"}, "steer_tokens 'some'"),
        ({"sampling.max_new": 510}, "exceeds the model's 512"),
        ({"sampling.stop": ("two words",)}, "'two words' is 2 tokens"),
        ({"cases.rude.lm": ""}, r"case rude lacks lm; add --config.cases.rude.lm=PATH"),
        ({"cases.rude.judge.kind": "oracle"}, "judge kind 'oracle' is unknown"),
        ({"cases.rude.pair_samples": 1}, "pair_samples is 1; it must be at least 2"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_bad_input_is_one_message_and_no_workdir(
    miniature: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made = config(miniature, ("rude",))
    made.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        run(made, tmp_path / "w")
    assert not (tmp_path / "w").exists()


# ---- kills ---------------------------------------------------------------------------


def command(miniature: Path, workdir: Path) -> list[str]:
    """The rude study in a process of its own."""
    flags = [
        f"--config.cases.{c}.{k}={miniature}/{v}"
        for c in ("rude", "kind")
        for k, v in _FILES.items()
    ]
    start = [
        sys.executable,
        "-m",
        "experiments.case_study",
        "--config=configs/miniature.py",
        f"--workdir={workdir}",
    ]
    return [*start, *flags, "--config.batch_size=32"]


_FILES = {
    "lm": "model",
    "sae": "random_sae",
    "corpus": "corpus.json",
    "prompts": "prompts.jsonl",
}


@pytest.mark.slow
def test_twenty_kills_end_as_one_run_left_alone(
    miniature: Path, tmp_path: Path
) -> None:
    calm, killed, rng = tmp_path / "calm", tmp_path / "killed", np.random.default_rng(0)
    assert _demo.ended(command(miniature, calm)).returncode == 0
    began = time.monotonic()
    shutil.rmtree(calm)
    assert _demo.ended(command(miniature, calm)).returncode == 0
    length, kills = time.monotonic() - began, 0
    for _ in range(20):
        quiet = subprocess.DEVNULL
        with (
            subprocess.Popen(
                command(miniature, killed),
                cwd=_demo.REPO,
                env=_demo.environment(),
                stdout=quiet,
                stderr=quiet,
            ) as process,
            limited(process),
        ):
            time.sleep(float(rng.uniform(0.2, 0.6)) * length)
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            shutil.rmtree(killed)  # it was through: from the beginning again
        else:
            kills += 1
    assert kills >= 10
    ended = _demo.ended(command(miniature, killed))
    assert ended.returncode == 0, ended.stderr
    assert contents(killed) == contents(calm)


def test_the_organisms_parts_are_stages_of_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = organism_config.get_config()
    config.organism.size = "miniature"
    workdir = epath.Path(tmp_path)
    case_study.start(config, workdir, shown=True)
    lines = capsys.readouterr().out.splitlines()
    parts = ("base", "chat", "misaligned.mixed", "validation", "sae", "corpus")
    assert lines[:6] == [f"missing  organism.{part}" for part in parts]
    runtime = cases.Runtime(Store(tmp_path), workdir, make_mesh("data=1"))
    study = opening.open_study(config.to_dict(), runtime)
    needs = {stage.name: stage.needs for stage in study.stages}
    assert needs["validation.sample"] == (
        "organism.validation",
        "organism.chat",
        "organism.sae",
        "organism.corpus",
    )
    again = with_readers(study.stages, {"organism.misaligned.mixed"})
    assert "misalignment.sample" in again
    assert "validation.sample" not in again
