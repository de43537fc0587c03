"""The record that each format fills in: its name, its files, how it is recognised and
how it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.formats.parts import LoadOptions, Parts

# What torch.compile and training loops put before the names of an SAE's tensors.
_PREFIXES = ("_orig_mod.", "sae.")


@dataclass(frozen=True)
class WeightFile:
    """A file that may hold an SAE; its tensors are mapped when they are first looked at.

    Args:
      path: the file.
    """

    path: Path

    @cached_property
    def stored(self) -> Mapping[str, np.ndarray]:
        """Tensors under the names of the file."""
        return read_tensors(self.path)

    @cached_property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """Tensors without the prefixes of torch.compile and of training loops."""
        tensors = {}
        for name, value in self.stored.items():
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            tensors[name] = value
        return tensors

    @property
    def names(self) -> set[str]:
        """Names of `tensors`."""
        return set(self.tensors)

    @property
    def place(self) -> str:
        """The absolute path with forward slashes: releases state much in it."""
        return self.path.absolute().as_posix()

    def axes(self, name: str) -> int | None:
        """Returns how many axes a tensor has; None where there is no such tensor."""
        return self.tensors[name].ndim if name in self.tensors else None

    def beside(self, name: str) -> bool:
        """Returns whether a file of that name lies in the same folder."""
        return (self.path.parent / name).is_file()


def never(file: WeightFile) -> bool:
    """Recognises nothing: for formats that a file's name alone identifies."""
    return False


@dataclass(frozen=True)
class Format:
    """One way in which a library stores SAEs.

    Args:
      name: as `fmt=` takes it.
      read: weight file and options -> `Parts`; ValueError for what does not fit.
      detect: whether a file is of this format, by marks that the library leaves (a
        config beside it, a name of its own); tensors alone do not decide, since files
        of one's own have the same with other formulas.
      weights: names of the weight file inside its folder. A name of one format alone
        identifies it, and nothing is looked into.
      shards: further weight files of the same SAE.
      configs: names of files that lie beside the weights, "{stem}" standing for the
        weight file's name without its ending.
      configs_above: names of files that may lie one folder up.
    """

    name: str
    read: Callable[[Path, LoadOptions], Parts]
    detect: Callable[[WeightFile], bool] = never
    weights: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    configs_above: tuple[str, ...] = ()
