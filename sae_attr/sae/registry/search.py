"""Searches the registered SAEs by model, release, layer, site, width and words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sae_attr.sae.registry.models import MODELS, Model
from sae_attr.sae.registry.names import NamedSAE, nearest
from sae_attr.sae.registry.rules import width_of
from sae_attr.sae.registry.table import Release, releases


@dataclass(frozen=True)
class Query:
    """What is searched for; None and "" leave a field open.

    Args:
      model: hub id, the registry's name, a part of either, or a folder with the
        config.json of a model.
      release: name, or a part of one.
      layer: block that the SAE reads.
      site: point (`resid_post`) or site (`layer12.resid_post`), read or written.
      width: number of latents, `16384` or `16k`.
      match: words that the name or its Neuronpedia id holds, in any order.
    """

    model: str = ""
    release: str = ""
    layer: int | None = None
    site: str = ""
    width: str = ""
    match: str = ""


def search(query: Query) -> list[NamedSAE]:
    """Returns the registered SAEs that fit a query, in the order of the registry.

    Raises:
      ValueError: a model or release that the registry does not have, with the nearest;
        a width that is no number.
    """
    models = models_like(query.model) if query.model else list(MODELS.values())
    chosen = (
        releases_like(query.release) if query.release else list(releases().values())
    )
    latents = width_of(query.width) if query.width else None
    words = query.match.lower().split()
    matches = []
    for release in chosen:
        if release.model not in models:
            continue
        for sae in release.saes.values():
            named = NamedSAE(release, sae)
            if _fits(named, query, latents, words):
                matches.append(named)
    return matches


def _fits(named: NamedSAE, query: Query, latents: int | None, words: list[str]) -> bool:
    sae = named.sae
    if query.layer is not None and sae.layer != query.layer:
        return False
    if latents is not None and sae.latents != latents:
        return False
    sites = [site for site in (sae.site, sae.site_out) if site]
    points = [site.partition(".")[2] for site in sites]
    if query.site and query.site not in (*sites, *points):
        return False
    text = f"{named.name} {sae.neuronpedia} {sae.sites}".lower()
    return all(word in text for word in words)


def models_like(text: str) -> list[Model]:
    """Returns the models that a text means: a hub id or name of the registry, else a
    part of one, else those with the shape of the model in a folder.

    Raises:
      ValueError: no model of the registry, with the nearest.
    """
    if (Path(text) / "config.json").is_file():
        return _models_of_shape(Path(text) / "config.json")
    wanted = text.lower()
    names: dict[str, Model] = {}
    for name, model in MODELS.items():
        for spelling in (name, model.hub_id, model.hub_id.rpartition("/")[2]):
            names[spelling.lower()] = model
    if wanted in names:
        return [names[wanted]]
    similar = {model.hub_id: model for name, model in names.items() if wanted in name}
    if not similar:
        ids = [model.hub_id for model in MODELS.values()]
        raise ValueError(_unknown("model", text, ids))
    return list(similar.values())


def _models_of_shape(config: Path) -> list[Model]:
    """Models with as many layers and channels as a config.json says."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content = content.get("text_config", content)
    layers = content.get("num_hidden_layers", content.get("n_layer"))
    width = content.get("hidden_size", content.get("n_embd"))
    same = [m for m in MODELS.values() if (m.layers, m.width) == (layers, width)]
    if not same:
        raise ValueError(
            f"{config} has {layers} layers of {width} channels, and no model of "
            "SAELens' registry has that shape"
        )
    return same


def releases_like(text: str) -> list[Release]:
    """Returns the release of that name, else those whose names hold the text.

    Raises:
      ValueError: there is none, with the nearest.
    """
    everything = releases()
    if text in everything:
        return [everything[text]]
    similar = [release for name, release in everything.items() if text.lower() in name]
    if not similar:
        raise ValueError(_unknown("release", text, list(everything)))
    return similar


def _unknown(kind: str, text: str, names: list[str]) -> str:
    lower = {name.lower(): name for name in names}
    near = [lower[name] for name in nearest(text.lower(), lower)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"SAELens' registry has no {kind} {text!r}{hint}"
