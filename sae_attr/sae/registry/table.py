"""The table of registered SAEs: read once, from the file that `make_registry` wrote."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_attr.sae.registry.models import MODELS, Model
from sae_attr.sae.registry.rules import LOADERS, Loader

TABLE = Path(__file__).with_name("saes.json.gz")


@dataclass(frozen=True)
class Release:
    """SAEs that were published together.

    Args:
      name: in SAELens' registry.
      model: that they were trained on.
      repo: on the hub.
      loader: how their files are read.
      saes: by id.
    """

    name: str
    model: Model
    repo: str
    loader: Loader
    saes: Mapping[str, RegisteredSAE]


@dataclass(frozen=True)
class RegisteredSAE:
    """One SAE of a release, as far as the registry and its rules know it.

    Args:
      id: within its release.
      path: folder or weight file in the repository.
      site: that it reads, `layer12.resid_post`.
      site_out: that a transcoder writes to; "" for an SAE.
      latents: their number; None where no name states it.
      l0: latents that are active at a token; None where it is not stated.
      neuronpedia: id on Neuronpedia; "" where there is none.
      scale: s = √d / E‖x‖ that the files leave out; None where there is none.
    """

    id: str
    path: str
    site: str
    site_out: str = ""
    latents: int | None = None
    l0: float | None = None
    neuronpedia: str = ""
    scale: float | None = None

    @property
    def layer(self) -> int:
        """The block that it reads."""
        return int(self.site.partition(".")[0].removeprefix("layer"))

    @property
    def sites(self) -> str:
        """What it reads, and behind an arrow what else it writes to."""
        return f"{self.site} → {self.site_out}" if self.site_out else self.site


def weights_of(release: Release, sae: RegisteredSAE) -> int | None:
    """Returns the number of weights of encoder and decoder; None where a width is not
    known.
    """
    width_in = release.model.width_at(sae.site.partition(".")[2])
    width_out = release.model.width_at((sae.site_out or sae.site).partition(".")[2])
    if sae.latents is None or width_in is None or width_out is None:
        return None
    return sae.latents * (width_in + width_out)


@functools.cache
def releases() -> dict[str, Release]:
    """Returns every release by name, in the order of the registry."""
    table = json.loads(gzip.decompress(TABLE.read_bytes()))
    return {name: _release(name, value) for name, value in table["releases"].items()}


@functools.cache
def scales() -> dict[str, float]:
    """Returns the scale of every SAE whose files leave it out, by its path in the
    repository.
    """
    scale_by_path = {}
    for release in releases().values():
        for sae in release.saes.values():
            if sae.scale is not None:
                scale_by_path[sae.path] = sae.scale
    return scale_by_path


def _release(name: str, value: Mapping[str, Any]) -> Release:
    saes = {}
    for sae_id, path, *rest in value["saes"]:
        saes[sae_id] = RegisteredSAE(sae_id, path, *rest)
    model, loader = MODELS[value["model"]], LOADERS[value["loader"]]
    return Release(name, model, value["repo"], loader, saes)
