"""Searches the registered SAEs by model, release, layer, site, width and words."""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.sae.registry.models import MODELS, Model
from sae_attr.sae.registry.names import NamedSAE, nearest
from sae_attr.sae.registry.rules import width_of
from sae_attr.sae.registry.table import Release, releases


@dataclass(frozen=True)
class Query:
    """Says what is searched for; None and "" leave a field open.

    Args:
      model: hub id, the registry's name, or a part of either.
      shape: layers and channels of the model, for one that has no name here.
      release: name, or a part of one.
      layer: block that the SAE reads.
      site: point (`resid_post`) or site (`layer12.resid_post`), read or written.
      width: number of latents, `16384` or `16k`.
      match: words that the name or its Neuronpedia id holds, in any order.
    """

    model: str = ""
    shape: tuple[int, int] | None = None
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
    models = list(MODELS.values())
    if query.model:
        models = models_named(query.model)
        if not models:
            raise ValueError(unknown_model(query.model))
    elif query.shape is not None:
        models = models_of_shape(*query.shape)
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


def models_named(text: str) -> list[Model]:
    """Returns the models that a text means: a hub id or name of the registry, else a
    part of one; none where the registry has no such model.
    """
    lower = text.lower()
    names: dict[str, Model] = {}
    for name, model in MODELS.items():
        for spelling in (name, model.hub_id, model.hub_id.rpartition("/")[2]):
            names[spelling.lower()] = model
    if lower in names:
        return [names[lower]]
    similar = {model.hub_id: model for name, model in names.items() if lower in name}
    return list(similar.values())


def unknown_model(text: str) -> str:
    """Returns the message for a model that the registry does not have, with the nearest."""
    return _unknown("model", text, [model.hub_id for model in MODELS.values()])


def models_of_shape(layers: int, width: int) -> list[Model]:
    """Returns the models of so many layers and channels; none where there is no such."""
    return [m for m in MODELS.values() if (m.layers, m.width) == (layers, width)]


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
