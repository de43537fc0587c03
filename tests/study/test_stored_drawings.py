"""Pictures of the last run: drawn again where numbers or code changed, else not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from etils import epath
from matplotlib.figure import Figure

from sae_attr.report.figures import Drawing, draw_anew, drawing, render
from sae_attr.study.stored_drawings import StoredDrawings

Drawn = list[Mapping[str, Any]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The numbers of every figure that is drawn."""
    calls: Drawn = []

    def figure(numbers: Mapping[str, Any], panels: Any = None) -> Figure:
        calls.append(numbers)
        figure = Figure((1, 1))
        figure.text(0, 0, f"{numbers['at']} {panels}")
        return figure

    monkeypatch.setattr(f"{__name__}.picture", figure)
    return calls


def picture(numbers: Mapping[str, Any], panels: Any = None) -> Figure:
    """Replaced by the fixture."""
    raise NotImplementedError


def run(path: Path, *drawings: Drawing) -> list[Mapping[str, bytes]]:
    """Draws as a run does, with what the last one left; returns the files."""
    stored = StoredDrawings.read(epath.Path(path))
    files = [render(drawing, stored.draw) for drawing in drawings]
    stored.write()
    return files


def test_a_second_run_draws_what_has_changed_alone(
    tmp_path: Path, drawn: Drawn
) -> None:
    path, one = tmp_path / "drawings", {"at": 1}
    first = run(path, Drawing(picture, one), Drawing(picture, {"at": 2}))
    assert len(drawn) == 2
    before = path.read_bytes()
    again = run(path, Drawing(picture, dict(one)), Drawing(picture, {"at": 2}))
    assert (again, len(drawn), path.read_bytes()) == (first, 2, before)
    assert again[0] == render(Drawing(picture, one))
    drawn.clear()
    changed = run(path, Drawing(picture, one, ("a",)), Drawing(picture, {"at": 3}))
    assert len(drawn) == 2
    assert b"1 ('a',)" in changed[0]["svg"]
    assert b">3 None<" in changed[1]["svg"]


def test_a_figure_on_page_and_disk_is_drawn_once(tmp_path: Path, drawn: Drawn) -> None:
    stored = StoredDrawings.read(epath.Path(tmp_path / "drawings"))
    files = stored.draw(Drawing(picture, {"at": 1}), ("svg", "png"))
    panel = stored.draw(Drawing(picture, {"at": 1}), ("svg",))
    assert (len(drawn), panel["svg"]) == (1, files["svg"])


def test_what_the_last_run_did_not_use_is_gone(tmp_path: Path, drawn: Drawn) -> None:
    path = tmp_path / "drawings"
    run(path, Drawing(picture, {"at": 1}), Drawing(picture, {"at": 2}))
    run(path, Drawing(picture, {"at": 2}))
    assert len(StoredDrawings.read(epath.Path(path)).stored) == 2
    run(path, Drawing(picture, {"at": 1}))
    assert [numbers["at"] for numbers in drawn] == [1, 2, 1]


def test_changed_code_and_settings_draw_again(
    tmp_path: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, one = tmp_path / "drawings", Drawing(picture, {"at": 1})
    run(path, one)
    drawing._code_digest.cache_clear()
    run(path, one)
    assert len(drawn) == 1
    with matplotlib.rc_context({"font.size": 30}):
        drawing._code_digest.cache_clear()
        run(path, one)
        assert len(drawn) == 2
    sources = drawing._sources
    monkeypatch.setattr(drawing, "_sources", lambda at: [*sources(at), "GREY = 1"])
    drawing._code_digest.cache_clear()
    run(path, one)
    assert len(drawn) == 3
    drawing._code_digest.cache_clear()


def test_the_code_that_counts_is_all_of_the_report() -> None:
    texts = drawing._sources(drawing.files("sae_attr.report"))
    names = {text.partition("\n")[0] for text in texts}
    assert {"output.py", "strips.py", "method_style.py", "numbers.py"} <= names


def test_a_damaged_file_is_drawn_anew(tmp_path: Path, drawn: Drawn) -> None:
    path, one = tmp_path / "drawings", Drawing(picture, {"at": 1})
    run(path, one)
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[:-9], whole[:99] + b"?" + whole[100:]):
        drawn.clear()
        path.write_bytes(damaged)
        assert run(path, one) == [render(one, draw_anew)]
        assert (len(drawn), path.read_bytes()) == (2, whole)
