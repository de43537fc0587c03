"""SAEs by name: what `RELEASE/ID` stands for, what is nearest to a name that stands for
nothing, and whether a registered SAE belongs to a model.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sae_attr.hooks import Site
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.registry.table import RegisteredSAE, Release, releases
from sae_attr.site_names import parse_site

_NEAREST = 3  # names that a message suggests
_PAGE = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # MODEL/SAE on Neuronpedia


@dataclass(frozen=True)
class NamedSAE:
    """An SAE that a name stands for.

    Args:
      release: that it belongs to.
      sae: its entry.
      revision: branch, tag or commit of the hub repository; None for the main branch.
    """

    release: Release
    sae: RegisteredSAE
    revision: str | None = None

    @property
    def name(self) -> str:
        """`RELEASE/ID`, without a revision."""
        return f"{self.release.name}/{self.sae.id}"

    @property
    def site(self) -> Site:
        """The site whose latents it has: a transcoder's output."""
        return parse_site(self.sae.site_out or self.sae.site)

    @property
    def url(self) -> str:
        """The hub address; a folder ends in a slash, since some are called like files."""
        slash = "" if self.release.loader.is_file else "/"
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.release.repo}/{self.sae.path}{slash}{revision}"

    def page(self, latent: int) -> str:
        """Returns the address of a latent's page on Neuronpedia; "" where the registry
        knows none for the SAE.
        """
        name = self.sae.neuronpedia
        # It becomes a link that readers follow: nothing but a plain id does.
        if not _PAGE.fullmatch(name):
            return ""
        return f"https://www.neuronpedia.org/{name}/{latent}"

    def pinned(self, commit: str) -> str:
        """Returns the name with a commit for its revision."""
        return f"{self.name}@{commit}"

    def check_read(self) -> None:
        """Raises ValueError if no format reads the SAE's files."""
        if self.release.loader.unread:
            raise ValueError(
                f"{self.name} ({self.release.repo}) cannot be loaded: "
                f"{self.release.loader.unread}"
            )


def named_sae(sae: str | os.PathLike[str]) -> NamedSAE | None:
    """Returns the registered SAE that a text stands for; None for a hub address and for
    a path, and a path that exists goes before a name.

    Args:
      sae: `RELEASE/ID`, or `RELEASE/ID@REVISION`.

    Raises:
      ValueError: a release without an id, or a name that is nearly one; with the
        nearest names.
    """
    text = os.fspath(sae)
    if text.startswith("hf://") or Path(text).exists():
        return None
    release_name, _, rest = text.partition("/")
    release = releases().get(release_name)
    if release is None:
        _refuse_nearly(text, release_name, rest)
        return None
    sae_id, _, revision = rest.partition("@")
    if sae_id not in release.saes:
        raise ValueError(_unknown_id(release, sae_id))
    return NamedSAE(release, release.saes[sae_id], revision or None)


def is_remote(sae: str | os.PathLike[str]) -> bool:
    """Returns whether an SAE lies on the hub: an address `hf://…`, or a name."""
    return os.fspath(sae).startswith("hf://") or named_sae(sae) is not None


def nearest(text: str, names: Iterable[str], n: int = _NEAREST) -> list[str]:
    """Returns the names that are most like a text, best first; [] where none is."""
    return difflib.get_close_matches(text, list(names), n=n, cutoff=0.6)


def _refuse_nearly(text: str, release_name: str, rest: str) -> None:
    """Raises ValueError for a name whose release is misspelt."""
    # What begins like a path is meant as one, whatever it resembles.
    if text.startswith((".", "/", "~")) or not release_name:
        return
    close = difflib.get_close_matches(release_name, list(releases()), n=3, cutoff=0.8)
    if not close:
        return
    suggestions = []
    for name in close:
        ids = releases()[name].saes
        near = [rest] if rest in ids else nearest(rest, ids, 1)
        suggestions.append("/".join([name, *near]))
    raise ValueError(
        f"{text!r} is no path here, and SAELens' registry has no release "
        f"{release_name!r}; did you mean {_either(suggestions)}?"
    )


def _unknown_id(release: Release, sae_id: str) -> str:
    """The message for an id that a release does not have."""
    ids = list(release.saes)
    suggestions = nearest(sae_id, ids) or ids[:_NEAREST]
    names = _either([f"{release.name}/{near}" for near in suggestions])
    says = f"has no SAE {sae_id!r}" if sae_id else "is a release, and no SAE"
    return (
        f"{release.name} {says}; did you mean {names}? "
        f"experiments.list_saes --release={release.name} lists all {len(ids)}"
    )


def _either(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# ---- the model, and what the files leave out -----------------------------------------


def check_model(named: NamedSAE, lm: str, *, layers: int, width: int) -> None:
    """Checks, before anything is downloaded, that a model can have been the SAE's; warns
    where a hub id names another model of the same shape.

    Args:
      named: the SAE.
      lm: the model, for the message.
      layers, width: of the model, the width at the point that the SAE writes to.

    Raises:
      ValueError: another number of layers or another width than those of the SAE's
        model.
    """
    model = named.release.model
    expected = model.width_at(named.site.point)
    if layers == model.layers and expected in (None, width):
        if _names_another(lm, model.hub_id):
            warnings.warn(
                f"{named.name} is an SAE of {model.hub_id}, and the model is {lm}, of the "
                "same shape; the SAE check measures how well it fits",
                stacklevel=3,
            )
        return
    raise ValueError(
        f"{named.name} is an SAE of {model.hub_id}, which has {model.layers} layers "
        f"and {expected or 'an unknown number of'} channels at {named.site}; {lm} has "
        f"{layers} layers and {width} channels there. Take that model or a fine-tune "
        "of it, or an SAE of this one: experiments.list_saes --model shows them"
    )


def _names_another(lm: str, hub_id: str) -> bool:
    """Whether a hub id has another model name; the owner of a copy may be another one."""
    is_hub_id = "/" in lm and not Path(lm).exists() and not lm.startswith((".", "/"))
    name = lm.partition("@")[0].rpartition("/")[2]
    return is_hub_id and name.lower() != hub_id.rpartition("/")[2].lower()


def completed(named: NamedSAE, cfg: SAEConfig, *, stated_site: bool) -> SAEConfig:
    """Returns the config of a loaded SAE with what its files leave out and the registry
    has: site, model, L0.

    Args:
      named: the SAE.
      cfg: what its files say.
      stated_site: the user said the site, so that it is not compared.

    Raises:
      ValueError: the files say another site than the registry.
    """
    sae = named.sae
    if cfg.site is None:
        cfg = replace(cfg, site=sae.site, site_out=sae.site_out or None)
    elif not stated_site:
        _check_site(named, cfg.site_out or cfg.site)
    l0 = cfg.expected_l0 if cfg.expected_l0 is not None else sae.l0
    model = cfg.model_name or named.release.model.hub_id
    return replace(cfg, expected_l0=l0, model_name=model)


def _check_site(named: NamedSAE, stated: str) -> None:
    """Raises ValueError for a site that is not the registry's."""
    try:
        # Without norms behind a sublayer its own output is what it adds to the stream.
        site = parse_site(stated, norms_behind=False)
    except ValueError:
        return  # a spelling that only the model explains
    if site != named.site:
        raise ValueError(
            f"{named.name} belongs at {named.site} by the registry, and its own files "
            f"say {stated} ({site}); say which one holds with the option site="
        )
