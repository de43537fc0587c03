"""An SAE where it lies: its config, as much of it as is needed, and the name of its
contents.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sae_attr.files.row_source import RowSource
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import (
    LoadOptions,
    identity,
    load_sae,
    open_decoder,
    pinned,
    read_config,
)
from sae_attr.sae.model import SAE
from sae_attr.sae.registry.names import is_remote
from sae_attr.store import digest, fingerprint


@dataclass(frozen=True, eq=False)
class StoredSAE:
    """Reads the files of an SAE when they are first needed.

    Args:
      path: folder, `RELEASE/ID` of SAELens' registry, or `hf://` address.
      fmt, options: as for `load_sae`.
    """

    path: str
    fmt: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def source(self) -> str:
        """Where it lies; on the hub with a commit for its revision, so that a run reads
        one state of a branch.
        """
        return pinned(self.path) if is_remote(self.path) else self.path

    def config(self) -> SAEConfig:
        """Reads its config."""
        return read_config(self.source, self.fmt, **self.options)

    def load(self, latents: np.ndarray | None = None) -> SAE:
        """Reads the whole, or the SAE of a few latents without the rest of the file."""
        return load_sae(self.source, fmt=self.fmt, latents=latents, **self.options)

    @functools.cached_property
    def decoder(self) -> RowSource:
        """Decoder rows, read from disk as they are needed."""
        return open_decoder(self.source, fmt=self.fmt, **self.options)

    @functools.cached_property
    def key(self) -> str:
        """Names it by its files' contents and how they are read."""
        name = self.source if is_remote(self.path) else fingerprint(self.path)
        return digest([name, self.fmt, identity(LoadOptions(**self.options))])
