"""A study of organisms on the command line: its cases from a config, and its stages with
files that are written anew while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.settings import settings_from
from sae_attr.store import Result, Stage, Status, Store, own_workdir, stored_results
from sae_attr.study.stage_choice import StageChoice

from ._stages import run_chosen, states_text

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


def run_study(
    config: ConfigDict,
    workdir: epath.Path,
    store: Store,
    stages: Sequence[Stage],
    *,
    write: Callable[[Mapping[str, Result], Sequence[str]], str],
    last: tuple[str, ...],
    wrote: str,
    choice: StageChoice,
    shown: bool,
    allow_change: bool,
) -> None:
    """Runs the stages under the workdir's lock; files are written anew after every case,
    so that the first is seen early. A case that has nothing to compute is left out.

    Args:
      write: from results by stage, those that are there, and the reasons for cases that
        are left out; writes the files and returns the text to print, "" where no case
        is complete.
      last: how the names of those stages end that complete a case.
      wrote: what is said behind the text.
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

    values = config.to_dict()
    with own_workdir(workdir, values, ignore=IGNORED, allow_change=allow_change):
        run_chosen(store, stages, choice, on_end=on_end, on_skip=on_skip)
        text = write_stored()
        if left_out and not text:
            raise ValueError("; ".join(left_out))
        if text:
            print(f"{text}\n{wrote}")


def left_out_text(left_out: Sequence[str]) -> str:
    """Returns the cases that are left out, a line each."""
    return "".join(f"\nLeft out: {why}" for why in left_out)
