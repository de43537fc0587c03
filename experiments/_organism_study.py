"""A study of organisms on the command line: its cases from a config, and its stages with
files that are written anew while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.figures import Drawing, render
from sae_attr.report.tables import json_text
from sae_attr.settings import settings_from
from sae_attr.store import (
    Result,
    Stage,
    Status,
    Store,
    stored_results,
    write_atomic,
)
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._stages import ALL, run_chosen, states_text

# Where and how fast, and where else its tables go: not what.
IGNORED = ("mesh", "batch_size", "publish")
Case = TypeVar("Case")


def cases_of_config(
    config: ConfigDict,
    settings_class: type[Any],
    cases_of: Callable[..., list[Case]],
    *,
    store: Store,
    workdir: epath.Path,
    leave_out: Sequence[str] = (),
) -> list[Case]:
    """Returns the cases that a config names; nothing is loaded yet.

    Args:
      cases_of: from settings, and values of the organism's recipe.
      leave_out: keys that belong to something else.
    """
    values = config.to_dict()
    for name in leave_out:
        del values[name]
    organism, mesh = values.pop("organism"), values.pop("mesh")
    values.pop("publish", None)
    settings = settings_from(settings_class, values)
    mesh = parallel.make_mesh(str(mesh))
    return cases_of(settings, organism, store=store, workdir=workdir, mesh=mesh)


@dataclass(frozen=True)
class StudyReport:
    """What a study shows.

    Args:
      text: its tables.
      numbers: that they and the figures show; plain values.
      figures: the name of each file, without its ending, and what it draws.
    """

    text: str
    numbers: Mapping[str, Any]
    figures: Mapping[str, Drawing]


def write_report(
    name: str,
    config: ConfigDict,
    workdir: epath.Path,
    report: Callable[[Mapping[str, Result]], StudyReport | None],
    results: Mapping[str, Result],
    left_out: Sequence[str] = (),
) -> str:
    """Writes NAME.txt, NAME.json and the figures of a study's report; returns the text,
    "" where there is no report yet.

    Args:
      report: from results by stage, those that are there; None where no case is
        complete.
      left_out: why cases are left out.
    """
    reported = report(results)
    if reported is None:
        return ""
    text = reported.text + left_out_text(left_out)
    content = {
        **reported.numbers,
        "left_out": list(left_out),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / f"{name}.txt", text)
    write_atomic(workdir / f"{name}.json", json_text(content))
    for figure, drawing in reported.figures.items():
        for suffix, data in render(drawing).items():
            write_atomic(workdir / f"{figure}.{suffix}", data)
    return text


def run_study(
    config: ConfigDict,
    workdir: epath.Path,
    store: Store,
    stages: Sequence[Stage],
    *,
    write: Callable[[Mapping[str, Result], Sequence[str]], str],
    last: tuple[str, ...],
    wrote: str,
    choice: StageChoice = ALL,
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Runs the stages under the workdir's lock; files are written anew after every case,
    so that the first is seen early. A case that has nothing to compute is left out.

    Args:
      write: from results by stage, those that are there, and the reasons for cases that
        are left out; writes the files and returns the text to print, "" where no case
        is complete.
      last: how the names of those stages end that complete a case.
      wrote: what is said behind the text.
      choice: the stages that run.
      shown: list the stages and stop.

    Raises:
      ValueError: every case that could be complete is left out.
    """
    if shown:
        print(states_text(store, stages))
        return

    left_out: list[str] = []

    def write_stored() -> str:
        return write(stored_results(store, stages), left_out)

    def on_skip(status: Status, why: str) -> None:
        left_out.append(why)
        logging.warning("left out: %s", why)

    def on_end(status: Status, result: Result) -> None:
        if status.name.endswith(last) and not result.cached:
            write_stored()
            logging.info("%s is done", status.name.rpartition(".")[0])

    with _common.own_workdir_of(
        config, workdir, ignore=IGNORED, allow_change=allow_change
    ):
        run_chosen(store, stages, choice, on_end=on_end, on_skip=on_skip)
        text = write_stored()
        if left_out and not text:
            raise ValueError("; ".join(left_out))
        if text:
            print(f"{text}\n{wrote}")


def left_out_text(left_out: Sequence[str]) -> str:
    """Returns the cases that are left out, a line each."""
    return "".join(f"\nLeft out: {why}" for why in left_out)
