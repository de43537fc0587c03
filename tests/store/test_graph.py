"""Chains of stages: keys without computing, states, and running a part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from sae_attr.store import (
    InputAwaited,
    NothingToCompute,
    Stage,
    StageOutput,
    Store,
    matching_names,
    run_stages,
    stage_keys,
    stage_statuses,
    stored_results,
)


def chain(log: list[str], **fields: Any) -> list[Stage]:
    """a → b.one → c, and b.two beside it; each appends its name when it is computed."""

    def adds(name: str, *needs: str) -> Callable[..., Any]:
        def run(inputs: Any, progress: Any) -> Any:
            log.append(name)
            assert tuple(inputs) == needs
            total = 1 + sum(float(r.arrays["x"]) for r in inputs.values())
            return {"x": np.array(total)}, {"name": name}

        return run

    return [
        Stage("a", adds("a"), {"seed": fields.get("a", 0)}),
        Stage("b.one", adds("b.one", "a"), {"k": fields.get("b", 0)}, ("a",)),
        Stage("b.two", adds("b.two", "a"), {}, ("a",)),
        Stage("c", adds("c", "b.one", "b.two"), {}, ("b.one", "b.two")),
    ]


def states(store: Store, stages: list[Stage]) -> dict[str, str]:
    return {s.name: s.state for s in stage_statuses(store, stages)}


def test_all_run_once_and_then_load(tmp_path: Path) -> None:
    log: list[str] = []
    store = Store(tmp_path)
    assert set(states(store, chain(log)).values()) == {"missing"}
    results = run_stages(store, chain(log))
    assert log == ["a", "b.one", "b.two", "c"]
    assert float(results["c"].arrays["x"]) == 5
    assert set(states(store, chain(log)).values()) == {"done"}
    again = run_stages(store, chain(log))
    assert len(log) == 4
    assert all(r.cached for r in again.values())


def test_a_changed_field_makes_its_readers_stale_and_nothing_else(
    tmp_path: Path,
) -> None:
    log: list[str] = []
    store = Store(tmp_path)
    run_stages(store, chain(log))
    assert states(store, chain(log, b=1)) == {
        "a": "done",
        "b.one": "stale",
        "b.two": "done",
        "c": "stale",
    }
    log.clear()
    run_stages(store, chain(log, b=1))
    assert log == ["b.one", "c"]


def test_until_only_and_force(tmp_path: Path) -> None:
    log: list[str] = []
    store = Store(tmp_path)
    assert set(run_stages(store, chain(log), until="b.one")) == {"a", "b.one"}
    with pytest.raises(ValueError, match=r"'c' reads 'b.two', which is missing"):
        run_stages(store, chain(log), only=["c"])
    log.clear()
    run_stages(store, chain(log), only=["b"])
    assert log == ["b.two"]
    run_stages(store, chain(log), only=["c"])
    log.clear()
    run_stages(store, chain(log), force=["b.one"])
    assert log == ["b.one", "c"]
    log.clear()
    run_stages(store, chain(log), only=["b.two"], force=["a"])
    assert log == [
        "b.two"
    ]  # what is forced but not chosen is left alone, what reads it is not


def test_a_stage_leaves_files_that_its_readers_find_by_path(tmp_path: Path) -> None:
    log: list[str] = []

    def writes(inputs: Any, progress: Any) -> StageOutput:
        log.append("model")

        def write(folder: epath.Path) -> None:
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text("{}")

        return StageOutput({}, {"loss": 0.5}, write)

    def reads(inputs: Any, progress: Any) -> Any:
        text = (inputs["model"].folder / "model" / "config.json").read_text()
        return {}, {"text": text}

    store = Store(tmp_path)
    stages = [Stage("model", writes), Stage("reader", reads, needs=("model",))]
    results = run_stages(store, stages)
    assert results["reader"].meta["text"] == "{}"
    assert results["model"].meta["loss"] == 0.5
    file = results["model"].folder / "model" / "config.json"
    assert run_stages(store, stages)["model"].folder == results["model"].folder
    file.write_text("[]")
    with pytest.warns(RuntimeWarning, match="config.json has other contents"):
        run_stages(store, stages)
    assert log == ["model", "model"]
    assert file.read_text() == "{}"


def test_the_seconds_of_computing_stay_with_a_result(tmp_path: Path) -> None:
    first = run_stages(Store(tmp_path), chain([]))
    again = run_stages(Store(tmp_path), chain([]))
    assert all(result.meta["seconds"] >= 0 for result in first.values())
    assert all(again[name].meta == first[name].meta for name in first)


def test_a_word_is_a_name_its_beginning_or_else_a_part_inside() -> None:
    names = ("organism.base", "organism.validation", "validation.steer.away", "other.steer.toward")  # fmt: skip
    stages = [Stage(name, lambda inputs, progress: ({}, {})) for name in names]
    match = lambda *words: sorted(matching_names(stages, words))
    assert match("validation") == ["validation.steer.away"]
    assert match("organism.validation") == ["organism.validation"]
    assert match("organism") == ["organism.base", "organism.validation"]
    assert match("steer") == ["other.steer.toward", "validation.steer.away"]
    assert match("steer.away", "base") == ["organism.base", "validation.steer.away"]


def test_what_a_stage_calls_is_part_of_its_key_and_of_its_readers() -> None:
    stages = chain([])
    calls = lambda version: [
        replace(s, calls={"other.mean": version}) if s.name == "b.one" else s
        for s in stages
    ]
    plain, one, two = stage_keys(stages), stage_keys(calls(1)), stage_keys(calls(2))
    assert {name for name in one if one[name] != two[name]} == {"b.one", "c"}
    assert {name for name in one if one[name] != plain[name]} == {"b.one", "c"}


def test_stored_results_are_those_that_are_done(tmp_path: Path) -> None:
    store, stages = Store(tmp_path), chain([])
    assert stored_results(store, stages) == {}
    run_stages(store, stages, until="b.one")
    assert set(stored_results(store, stages)) == {"a", "b.one"}
    assert float(stored_results(store, stages)["b.one"].arrays["x"]) == 2


def test_a_stopped_stage_is_in_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stages = chain([])
    store.progress(stage_keys(stages)["a"]).append([{"row": 1}])
    assert states(store, stages)["a"] == "part"


def test_a_damaged_input_is_computed_again_even_where_only_its_reader_is_asked_for(
    tmp_path: Path,
) -> None:
    log: list[str] = []
    store = Store(tmp_path)
    run_stages(store, chain(log))
    file = store.path(stage_keys(chain(log))["b.two"]) / "x.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    log.clear()
    with pytest.warns(RuntimeWarning, match="other contents"):
        run_stages(store, chain(log), only=["c"], force=["c"])
    assert log == ["b.two", "c"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"only": ["d"]}, "no stage is called 'd'; the stages are a, b.one, b.two, c"),
        ({"until": "on"}, "no stage is called 'on'"),
        ({"force": ["x"]}, "no stage is called 'x'"),
        ({"only": ["a"], "until": "c"}, "both given"),
    ],
)
def test_words_that_name_nothing(
    tmp_path: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(Store(tmp_path), chain([]), **words)


def test_chains_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="two stages are called 'a'"):
        stage_keys([*chain([]), Stage("a", lambda i, p: ({}, {}))])
    with pytest.raises(
        ValueError, match="'z' needs 'y', which does not come before it"
    ):
        stage_keys([Stage("z", lambda i, p: ({}, {}), needs=("y",))])


def test_a_result_that_is_refused_is_kept_and_can_be_accepted(tmp_path: Path) -> None:
    """What decides is no part of the key: the second run loads what the first refused."""
    computed: list[str] = []

    def run(results: Any, progress: Any) -> Any:
        computed.append("check")
        return {}, {"fits": False}

    def refuse(result: Any) -> None:
        raise ValueError("does not fit")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        run_stages(store, [Stage("check", run, accept=refuse)])
    with pytest.raises(ValueError, match="does not fit"):  # loaded, and refused again
        run_stages(store, [Stage("check", run, accept=refuse)])
    results = run_stages(store, [Stage("check", run)])
    assert results["check"].cached
    assert computed == ["check"]


def test_a_stage_with_nothing_to_compute_leaves_out_its_readers_alone(
    tmp_path: Path,
) -> None:
    def nothing(inputs: Any, progress: Any) -> Any:
        raise NothingToCompute("b.one: no rows; give more")

    log: list[str] = []
    store, stages = Store(tmp_path), chain(log)
    stages[1] = replace(stages[1], run=nothing)
    with pytest.raises(NothingToCompute, match="no rows"):
        run_stages(store, stages)
    left_out: list[tuple[str, str]] = []
    skip = lambda status, why: left_out.append((status.name, why))
    results = run_stages(store, stages, on_skip=skip)
    assert left_out == [("b.one", "b.one: no rows; give more")]
    assert set(results) == {"a", "b.two"}
    assert log == ["a", "b.two"]


def test_a_run_whose_stages_wait_does_the_rest_and_ends_with_all_of_them(
    tmp_path: Path,
) -> None:
    def waits(inputs: Any, progress: Any) -> Any:
        raise InputAwaited("waits for completions")

    log: list[str] = []
    store, stages = Store(tmp_path), chain(log)
    waiting = list(stages)
    for place, stage in enumerate(stages):
        if stage.name in ("b.one", "b.two"):
            waiting[place] = replace(stage, run=waits)
    with pytest.raises(InputAwaited) as error:
        run_stages(store, waiting)
    text = "waits for completions"
    assert str(error.value) == f"b.one: {text}\nb.two: {text}"
    assert log == ["a"]
    run_stages(store, stages)
    assert sorted(log) == ["a", "b.one", "b.two", "c"]
