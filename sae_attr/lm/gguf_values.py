"""An architecture's keys in the metadata of a GGUF file, each accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import GgufHeader
from sae_attr.lm.hf_schema import shown


def _shown(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        return f"a list of {len(value):,}"
    return shown(value)


class Values:
    """The keys of `general.architecture`, without its name in front; notes which were
    read.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        name = header.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ValueError(
                f"{header.file} states no general.architecture; give a model's own "
                "file, of a split one the first part"
            )
        self.architecture = name
        self._read: set[str] = set()

    def raw(self, key: str) -> Any:
        """Returns a value as the file has it, None where it has none."""
        self._read.add(key)
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> Any:
        """Returns a number, None where the file has none.

        Float32 numbers are returned as they are written, 1e-05 and not
        9.999999747e-06; a list with one value for every layer is that value.

        Raises:
          ValueError: anything else, or a list of different values.
        """
        value = self.raw(key)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return float(str(np.float32(value)))
        raise ValueError(
            f"{self.header.file}: {self.architecture}.{key} is {_shown(value)}; a model "
            "whose layers differ in it is not read"
        )

    def text(self, key: str) -> str | None:
        """Returns a text, None where the file has none; ValueError for anything else."""
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"{self.header.file}: {self.architecture}.{key} is {_shown(value)}; "
                "expected a text"
            )
        return value

    def count(self, key: str) -> int:
        """Returns a whole number of 1 or more; ValueError for anything else."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"{self.header.file}: {self.architecture}.{key} is {_shown(value)}; "
                "expected a whole number of 1 or more"
            )
        return value

    def need(self, key: str) -> Any:
        """Returns a number; ValueError where the file has none, or one that no part of
        a model has.
        """
        value = self.number(key)
        if value is None:
            raise ValueError(
                f"{self.header.file} lacks {self.architecture}.{key}; fetch it again, "
                "or convert the model anew with llama.cpp"
            )
        if not value > 0:
            raise ValueError(
                f"{self.header.file}: {self.architecture}.{key} is {shown(value)}; "
                "fetch it again"
            )
        return value

    def check_unread(self, silent: Iterable[str]) -> None:
        """Raises ValueError for a key that was not read, is set, and is not one of
        `silent`.
        """
        prefix, passed = f"{self.architecture}.", {*self._read, *silent}
        lines = []
        for key, value in self.header.metadata.items():
            inner = key.removeprefix(prefix)
            if not key.startswith(prefix) or inner in passed:
                continue
            if isinstance(value, int | float) and not value:
                continue
            lines.append(f"{key!r}: {_shown(value)}")
        if lines:
            raise ValueError(
                f"{self.header.file}: these keys are not read for a "
                f"{self.architecture} model and may change what it computes:\n"
                + "\n".join(lines[:20])
            )
