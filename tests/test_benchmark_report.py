"""The page of all benchmarks: each with its text, its plot, and whether it held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import predictions, report


def test_a_page_has_every_benchmarks_text_and_plot(tmp_path: Path) -> None:
    runs = []
    for name, status in (("collectives", 0), ("operations", 1), ("moment", 0)):
        (tmp_path / f"{name}.txt").write_text(f"{name} <table> 12 & 13\n")
        runs.append(report.Run(name, f"python -m benchmarks.{name}", status, 3.0))
    row = {"stage": "scoring", "mesh": "1×8", "bytes": 0, "least_bytes": 2}
    (tmp_path / "collectives.json").write_text(json.dumps({"rows": [row]}))
    page = report.page(runs, tmp_path)
    assert page.count("<svg") == 1
    assert "operations &lt;table&gt; 12 &amp; 13" in page
    for name, outcome in (
        ("collectives", "holds"),
        ("operations", "missed (status 1)"),
        ("moment", "measured"),
    ):
        assert f'<a href="#{name}">{name}</a><td>{outcome}<td>' in page
    assert "Collectives of one step of every stage" in page


def test_a_run_keeps_text_numbers_and_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "benchmarks"
    fake.mkdir()
    (fake / "quick.py").write_text(
        '"""Quick.\n\nMore."""\nimport sys\n'
        "print('text')\nopen(sys.argv[1][6:], 'w').write('{}')  # \"--out\"\nsys.exit(3)\n"
    )
    monkeypatch.setattr(report, "HERE", fake)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.names() == ["quick"]
    assert report.about("quick") == "Quick."
    done = report.run("quick", tmp_path, "")
    assert done.status == 3
    assert report.finished("quick", tmp_path) == done
    assert (tmp_path / "quick.txt").read_text() == "text\n"
    assert (tmp_path / "quick.json").read_text() == "{}"


def test_plots_and_arguments_are_those_of_benchmarks() -> None:
    assert {*report.PLOTS, *report.ARGUMENTS} <= {*report.names()}


def test_predictions_count_the_shapes_that_they_name() -> None:
    small, large = predictions.MODELS
    one, eight, _ = predictions.MACHINES
    assert small.weights == pytest.approx(7.6e9, rel=0.02)
    assert large.weights == pytest.approx(70.6e9, rel=0.02)
    assert predictions.costs(large, one) == []
    alone = {cost.stage: cost for cost in predictions.costs(small, one)}
    spread = {cost.stage: cost for cost in predictions.costs(small, eight)}
    assert alone["steering"].operations == pytest.approx(
        2 * small.weights * predictions.STEERED * predictions.COMPLETION, rel=0.01
    )
    ratio = alone["steering"].seconds / spread["steering"].seconds
    assert ratio == pytest.approx(8, rel=0.01)
    assert {cost.collective_bytes for cost in spread.values()} == {0}
    assert predictions.costs(large, eight)[-1].collective_bytes > 0
