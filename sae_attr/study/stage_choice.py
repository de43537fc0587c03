"""The choice of stages that a run is to go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageChoice:
    """Sets which stages of a graph run.

    Args:
      only, until, force: as for `store.run_stages`.
    """

    only: Sequence[str] = ()
    until: str | None = None
    force: Sequence[str] = ()

    def options(self) -> dict[str, Any]:
        """Returns the keywords for `run_stages`."""
        return {"only": self.only, "until": self.until, "force": self.force}
