"""What a dry run found, as text: titled tables, and the faults that a run would end
with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from sae_attr.device_memory import device_memory
from sae_attr.lm.config import LMConfig
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table
from sae_attr.sae.config import SAEConfig
from sae_attr.store import Status
from sae_attr.study.cost import StageCost, cost_table
from sae_attr.study.dry_run.addresses import StandIn
from sae_attr.study.dry_run.judge_trial import Trial, try_judge
from sae_attr.study.dry_run.memory import (
    Held,
    most_held,
    param_shapes,
    parameter_count,
)
from sae_attr.study.dry_run.rates import Rates

_ASSUMED = (
    "every answer has all its new tokens; the work of matrix products alone, without "
    "compiling, loading, judges and statistics"
)


@dataclass
class DryRun:
    """Sections of text in order, and what is wrong.

    Args:
      sections: (title, text).
      faults: what a run would end with, or lack; each a sentence.
      names: path -> what is shown in its place.
    """

    sections: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, title: str, text: str) -> None:
        """Adds a section."""
        self.sections.append((title, text))

    def add_fault(self, fault: str) -> None:
        """Adds a fault, once."""
        if fault not in self.faults:
            self.faults.append(fault)

    def attempt(self, step: Callable[[], Any], of: str = "") -> bool:
        """Runs a step; returns whether it went through. What it raises is a fault.

        Args:
          of: begins the fault.
        """
        try:
            step()
        except (ValueError, OSError) as error:
            self.add_fault(f"{of}: {error}" if of else str(error))
            return False
        return True

    def add_memory(
        self, title: str, parts: Sequence[Held], mesh: jax.sharding.Mesh
    ) -> None:
        """Adds what lies on each device, and a fault where it does not fit."""
        text, fault = memory_text(parts, mesh)
        self.add(title, text)
        if fault:
            self.add_fault(f"{title}: {fault}")

    def add_judges(
        self, specs: Mapping[str, Mapping[str, Any]], mesh: jax.sharding.Mesh
    ) -> None:
        """Asks judges one question each, and adds what came of it; a fault where one
        does not answer.

        Args:
          specs: name -> settings, as for `try_judge`.
        """
        trials = {name: try_judge(spec, mesh) for name, spec in specs.items()}
        kinds = [str(spec.get("kind")) for spec in specs.values()]
        self.add_trials("judge", trials, {"kind": kinds})

    def add_trials(
        self,
        what: str,
        trials: Mapping[str, Trial],
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Adds what came of one question each; a fault where there was no answer.

        Args:
          what: was asked, "judge" or "server".
          trials: whose it is -> outcome.
          columns: further ones of the table.
        """
        for name, trial in trials.items():
            if not trial.answered:
                self.add_fault(f"{name}: its {what}: {trial.words}")
        if not trials:
            return
        table = {
            f"{what} of": [one_line(name) for name in trials],
            **(columns or {}),
            "state": ["ok" if t.answered else "error" for t in trials.values()],
            "one question": [trial.words for trial in trials.values()],
        }
        self.add(f"{what}s", text_table(table))

    def add_stages(
        self,
        costs: Sequence[StageCost],
        rates: Rates | Mapping[str, Rates],
        statuses: Sequence[Status] = (),
    ) -> None:
        """Adds the stages with their states, costs and times.

        Args:
          costs: of the stages that take long.
          rates: of all stages, or by stage; a stage without is not timed.
          statuses: of all stages, in order.
        """
        states = {status.name: status.state for status in statuses}
        order = {status.name: place for place, status in enumerate(statuses)}
        in_order = sorted(costs, key=lambda cost: order.get(cost.stage, len(order)))
        seconds, used = {}, {}
        for cost in in_order:
            of_stage = rates if isinstance(rates, Rates) else rates.get(cost.stage)
            if of_stage is not None:
                seconds[cost.stage] = of_stage.seconds(cost)
                used[of_stage.text] = None
        lines = [cost_table(in_order, states, seconds), *used, f"assumed: {_ASSUMED}"]
        if statuses:
            counts = Counter(states.values())
            summary = ", ".join(f"{count} {state}" for state, count in counts.items())
            lines.append(f"of {len(statuses)} stages: {summary}")
        self.add("stages", "\n".join(lines))

    def add_stand_ins(self, stand_ins: Sequence[StandIn]) -> None:
        """Adds what a run would fetch, and names in the text what was looked at instead."""
        rows = []
        for each in stand_ins:
            self.names[each.path] = each.address
            rows += [(each.address, name, count) for name, count in each.absent.items()]
        if not rows:
            return
        whole = sum(count for _, _, count in rows)
        columns = {
            "of": [address for address, _, _ in rows] + ["together"],
            "file": [name for _, name, _ in rows] + [""],
            "size": [size(count) for _, _, count in rows] + [size(whole)],
        }
        self.add("downloads of a run", text_table(columns, right=("size",)))

    def text(self) -> str:
        """Returns everything for a terminal, the faults last."""
        parts = [f"{title}\n{text}" for title, text in self.sections]
        if self.faults:
            lines = [f"- {fault}" for fault in self.faults]
            parts.append("\n".join(["a run would fail:", *lines]))
        else:
            parts.append("everything fits; nothing was run and nothing written")
        return _renamed("\n\n".join(parts), self.names)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Returns text with other names for paths; columns behind them stay where they
    are, as far as there is room.
    """
    for path, name in names.items():
        shown = one_line(name)
        text = re.sub(
            re.escape(path) + "( *)",
            lambda match, shown=shown: (
                shown.ljust(len(match[0])) if match[1] else shown
            ),
            text,
        )
    return text


def size(count: float) -> str:
    """Returns a number of bytes for readers."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def models_table(models: Mapping[str, LMConfig], dtype: str) -> str:
    """Returns the shapes of models by name."""
    rows = list(models.values())
    counts = [parameter_count(param_shapes(cfg, dtype)) for cfg in rows]
    columns = {
        "model": [one_line(name) for name in models],
        "family": [cfg.family for cfg in rows],
        "layers": [cfg.n_layers for cfg in rows],
        "d": [cfg.d_model for cfg in rows],
        "heads": [f"{cfg.n_heads}/{cfg.n_kv_heads}" for cfg in rows],
        "vocabulary": [cfg.vocab for cfg in rows],
        "context": [cfg.max_len for cfg in rows],
        "parameters": counts,
        "dtype": [dtype] * len(rows),
    }
    return text_table(columns, {"vocabulary": ",", "context": ",", "parameters": ","})


def saes_table(saes: Sequence[tuple[str, SAEConfig, str]]) -> str:
    """Returns the shapes of SAEs, each given by name, config and the site that is
    studied.
    """
    rows = [cfg for _, cfg, _ in saes]
    columns = {
        "SAE": [one_line(name) for name, _, _ in saes],
        "format": [cfg.source for cfg in rows],
        "gate": [cfg.gate for cfg in rows],
        "latents": [cfg.n_latents for cfg in rows],
        "width": [cfg.d_in for cfg in rows],
        "site": [site for _, _, site in saes],
        "context": [cfg.context_size for cfg in rows],
    }
    return text_table(columns, {"latents": ",", "width": ","})


def memory_text(parts: Sequence[Held], mesh: jax.sharding.Mesh) -> tuple[str, str]:
    """Returns the table of memory on each device, and a fault where it does not fit ("" where
    it does, or where nothing says how much there is).
    """
    rows = [part for part in parts if part.bytes]
    device = mesh.devices.flat[0]
    together = device.platform == "cpu"  # a device of the host has its memory
    phase, most = most_held([row for row in rows if together or not row.on_host])
    during = f", while {phase}" if phase else ""
    columns = {
        "on each device": [_where(part) for part in rows] + [f"most at once{during}"],
        "bytes": [size(part.bytes) for part in rows] + [size(most)],
        "while": [part.phase or "always" for part in rows] + [""],
    }
    there = device_memory(mesh)
    has = "is not known" if there is None else f"is {size(there)}"
    shape = f"data={mesh.shape['data']}, model={mesh.shape['model']}"
    text = text_table(columns, right=("bytes",))
    text += f"\nmesh {shape}; the memory of a device ({device.device_kind}) {has}"
    if there is None or most <= there:
        return text, ""
    return text, (
        f"{size(most)} on each device do not fit its {size(there)}{during}: take a "
        "mesh of more devices (model=N splits the weights), dtype=bfloat16, or smaller "
        "batches"
    )


def _where(part: Held) -> str:
    return f"{part.what} (host)" if part.on_host else part.what
