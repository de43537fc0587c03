"""Writes the table of registered SAEs from SAELens' registry file.

    python -m sae_attr.sae.registry.make_registry [PRETRAINED_SAES.YAML]

Without a path the file of the installed sae-lens is read; the package itself is not
imported. The same file gives the same table.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sae_attr.sae.registry import rules
from sae_attr.sae.registry.models import MODELS
from sae_attr.sae.registry.table import TABLE

PACKAGE, REGISTRY = "sae-lens", "pretrained_saes.yaml"
# Loaders whose files leave the scale of the input out.
_SCALED = ("sae_lens", "llama_scope_r1_distill")


def installed_registry() -> Path:
    """Returns the registry file of the installed sae-lens.

    Raises:
      FileNotFoundError: it is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == REGISTRY:
            return Path(str(file.locate()))
    raise FileNotFoundError(
        f"{PACKAGE} is not installed; pip install {PACKAGE}, or give the path of its "
        f"{REGISTRY}"
    )


def table_text(registry: Mapping[str, Any]) -> str:
    """Returns the table of a registry as JSON, a line per release.

    Raises:
      ValueError: a place that the rules do not know.
      KeyError: a model or loader that `models` and `rules` do not have.
    """
    lines = []
    for name, release in registry.items():
        value = json.dumps(_release(name, release), separators=(",", ":"))
        lines.append(f"{json.dumps(name)}:{value}")
    joined = ",\n".join(lines)
    return f'{{"releases":{{\n{joined}\n}}}}\n'


def _release(name: str, release: Mapping[str, Any]) -> dict[str, Any]:
    loader = release.get("conversion_func") or "sae_lens"
    model = rules.model_of(name, release["model"])
    width, repo = MODELS[model].width, release["repo_id"]
    saes = [_sae(name, loader, repo, width, sae) for sae in release["saes"]]
    return {"model": model, "repo": repo, "loader": loader, "saes": saes}


def _sae(
    release: str, loader: str, repo: str, width: int | None, sae: Mapping[str, Any]
) -> list[Any]:
    """The fields of `RegisteredSAE`, without those at the end that say nothing."""
    sae_id, path = str(sae["id"]), str(sae["path"])
    neuronpedia = sae.get("neuronpedia") or ""
    fields = [
        sae_id,
        path,
        *rules.sites(loader, release, sae_id, path),
        rules.latents(release, repo, path, neuronpedia, width),
        sae.get("l0"),
        neuronpedia,
        sae.get("norm_scaling_factor") if loader in _SCALED else None,
    ]
    while fields[-1] in ("", None):
        fields.pop()
    return fields


def write_table(registry: Path, path: Path = TABLE) -> None:
    """Writes the table of a registry file, compressed without a time or a name."""
    content = yaml.safe_load(registry.read_text(encoding="utf-8"))
    path.write_bytes(gzip.compress(table_text(content).encode(), mtime=0))


if __name__ == "__main__":
    given = sys.argv[1:]
    write_table(Path(given[0]) if given else installed_registry())
