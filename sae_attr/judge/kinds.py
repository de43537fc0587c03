"""The record that each kind of judge fills in: its settings, and how it is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from sae_attr.judge.base import Judge
from sae_attr.judge.rubrics import Rubric
from sae_attr.settings import settings_from

SECRETS = ("api_key",)  # fields that are read from the environment, never from a config


@dataclass(frozen=True)
class Workplace:
    """States where a judge works.

    Args:
      folder: for what lasts beyond a run: stored grades, the ledger of a budget.
      mesh: devices of a judge that is a language model here.
    """

    folder: epath.Path
    mesh: jax.sharding.Mesh


@dataclass(frozen=True)
class JudgeKind:
    """One kind of judge.

    Args:
      name: as `judge.kind` takes it.
      settings: dataclasses whose fields are the kind's settings; each field is a key of
        a config, `judge.FIELD`.
      open: one object of each of `settings` and a `Workplace` -> a function that makes
        the judge of a rubric. It is called once for the rubrics of behaviour and
        coherence, so that both judges share a model and a budget.
      needs: settings without which it cannot work.
      has_rubric: False for rules: the rubric is None, and grades are not stored.
      writes: it can answer with a text, and so describe latents.
      quick: settings under which a first question ends within seconds; None where
        asking it would load a model.
      together: a question is a program of all processes; of another kind, process 0
        alone asks.
    """

    name: str
    settings: tuple[type, ...]
    open: Callable[..., Callable[[Rubric | None], Judge]]
    needs: tuple[str, ...] = ()
    has_rubric: bool = True
    writes: bool = False
    quick: Mapping[str, Any] | None = field(default_factory=dict)
    together: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all settings."""
        keys: list[str] = []
        for kind in self.settings:
            keys += _fields(kind).difference(SECRETS)
        return tuple(dict.fromkeys(keys))

    def opened(
        self, values: Mapping[str, Any], workplace: Workplace
    ) -> Callable[[Rubric | None], Judge]:
        """Returns the function that makes the judge of a rubric.

        Args:
          values: settings by name.

        Raises:
          ValueError: a setting that the kind does not have.
        """
        unknown = sorted(set(values) - {*self.keys})
        if unknown:
            raise ValueError(
                f"judge {self.name} has no {unknown[0]!r}; it knows "
                f"{', '.join(sorted(self.keys))}"
            )
        parts = []
        for kind in self.settings:
            names = _fields(kind) & values.keys()
            part = {name: values[name] for name in names}
            parts.append(settings_from(kind, part, where="judge"))
        return self.open(*parts, workplace)


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}
