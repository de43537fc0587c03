"""A case's further dictionaries, opened and checked against the studied site, and the
numbers of their latents behind those of the case's SAE.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from sae_attr.comparison_records import LatentName
from sae_attr.files.row_source import RowSource
from sae_attr.lm.sites import site_named
from sae_attr.report.safe_text import one_line
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE
from sae_attr.sae.two_models import FINE_TUNED, check_two_models
from sae_attr.study.dictionary_settings import (
    AUTO,
    DELTA_NORM,
    DIFFERENCE,
    MEAN_CODE,
    SITE,
    DictionarySettings,
)
from sae_attr.study.setup import Setup
from sae_attr.study.stored_sae import StoredSAE

T = TypeVar("T")
# What a dictionary encodes, beside `READS`.
BOTH, NOT_KNOWN = "both models", "not known"


@dataclass(frozen=True, eq=False)
class FurtherDictionary:
    """A dictionary whose latents are steered beside those of the studied SAE; files are
    read when first needed.

    Args:
      settings: of it.
      where: of the settings in the config, for messages.

    Raises ValueError from the properties for a folder that is no SAE.
    """

    settings: DictionarySettings
    where: str

    @property
    def name(self) -> str:
        """Its name, and that of its method."""
        return self.settings.name

    @functools.cached_property
    def _as_stated(self) -> StoredSAE:
        s = self.settings
        return StoredSAE(s.sae, s.sae_format, s.sae_options)

    @functools.cached_property
    def _stored(self) -> StoredSAE:
        """Its files, of a crosscoder as the fine-tuned model's dictionary."""
        stored = self._as_stated
        if "model" in stored.options or "layer" in stored.options:
            return stored
        if stored.config().streams != 2:
            return stored
        return replace(stored, options={**stored.options, "model": FINE_TUNED})

    @functools.cached_property
    def source(self) -> str:
        """Where it lies; on the hub with a commit for its revision."""
        return self._reading(lambda: self._as_stated.source)

    @functools.cached_property
    def cfg(self) -> SAEConfig:
        """Its config."""
        return self._reading(lambda: self._stored.config())

    @functools.cached_property
    def decoder(self) -> RowSource:
        """Its decoder rows `[n, d]`, of the fine-tuned model where it has two."""
        return self._reading(lambda: self._stored.decoder)

    def sae(self, latents: np.ndarray | None = None) -> SAE:
        """Reads the whole, or the SAE of a few latents."""
        return self._stored.load(latents)

    @functools.cached_property
    def key(self) -> str:
        """Names it by its files' contents and how they are read."""
        return self._reading(lambda: self._as_stated.key)

    def _reading(self, read: Callable[[], T]) -> T:
        """Returns what is read, or says whose files cannot be."""
        try:
            return read()
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self.where}: {error}; give the folder of an SAE or crosscoder: "
                f"--{self.where}.sae=PATH"
            ) from error

    @property
    def by(self) -> str:
        """What ranks its latents."""
        if self.settings.by != AUTO:
            return self.settings.by
        return DELTA_NORM if self.cfg.streams == 2 else "delta_attribution"

    @property
    def reads(self) -> str:
        """What it encodes: `BOTH`, `SITE`, `DIFFERENCE` or `NOT_KNOWN`."""
        if self.cfg.streams == 2:
            return BOTH
        if self.settings.reads != AUTO:
            return self.settings.reads
        names_site = self.cfg.site and self.cfg.site_out in (None, self.cfg.site)
        return SITE if names_site else NOT_KNOWN


# ---- checks --------------------------------------------------------------------------


def check_kind(dictionary: FurtherDictionary, *, two_models: bool) -> None:
    """Checks what is asked of a dictionary against its config.

    Args:
      two_models: the case has a model without the behaviour.

    Raises:
      ValueError: no crosscoder of two models where it has several streams; a ranking or
        an input that it does not have.
    """
    cfg, where = dictionary.cfg, dictionary.where
    if cfg.streams > 1:
        try:
            check_two_models(cfg)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if cfg.streams > 1 and dictionary.settings.reads != AUTO:
        raise ValueError(
            f"{where}.reads is {dictionary.settings.reads}, but the crosscoder in "
            f"{one_line(dictionary.source)} reads both models; leave it out"
        )
    if dictionary.by == DELTA_NORM and cfg.streams != 2:
        raise ValueError(
            f"{where}.by is {DELTA_NORM}, which compares the two decoder rows of a "
            f"crosscoder's latent; {one_line(dictionary.source)} has {cfg.streams} "
            f"stream: set --{where}.by=delta_attribution"
        )
    needs_two = dictionary.reads == DIFFERENCE or (
        dictionary.reads == BOTH and dictionary.by == MEAN_CODE
    )
    if needs_two and not two_models:
        raise ValueError(
            f"{where}: latents of {one_line(dictionary.source)} are active on two "
            "models, but the case has no lm_aligned; give the model without the "
            f"behaviour, or rank by decoder rows: --{where}.by=delta_attribution"
        )
    if dictionary.by == MEAN_CODE and dictionary.reads == NOT_KNOWN:
        raise ValueError(
            f"{where}.by is {MEAN_CODE}, but its file does not say what it encodes; set "
            f"--{where}.reads={SITE} or {DIFFERENCE}"
        )


def check_place(dictionary: FurtherDictionary, setup: Setup) -> None:
    """Raises ValueError for a dictionary of another width, site or layer than the
    studied one's.
    """
    cfg, where, site = dictionary.cfg, dictionary.where, setup.site
    width = setup.cfg.width(site.point)
    source = one_line(dictionary.source)
    if cfg.d_out != width:
        raise ValueError(
            f"{where}: decoder rows of {source} have {cfg.d_out} numbers, but {site} of "
            f"the case's model has {width}; it belongs to another model or another "
            "site, give one that was trained on this model there"
        )
    site_name = cfg.site_out or cfg.site
    if site_name is not None:
        written = site_named(setup.cfg, site_name)
        if written != site:
            raise ValueError(
                f"{where}: {source} was trained at {written}, but the case is studied "
                f"at {site}; give one of that site"
            )
    elif cfg.layer not in (None, site.layer):
        raise ValueError(
            f"{where}: {source} was trained at layer {cfg.layer}, but the case is "
            f"studied at {site}, which is layer {site.layer}; give one of that layer"
        )


# ---- numbers of latents --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StudyLatents:
    """The latents of a case, numbered through: those of its SAE have their own numbers,
    those of the first further dictionary come behind them, and so on.

    A number stands for one latent, so that sweeps, effects and files need no second
    kind of name; readers see `NAME:NUMBER`.

    Args:
      setup: of the case.
      further: its further dictionaries.
    """

    setup: Setup
    further: tuple[FurtherDictionary, ...] = ()

    @functools.cached_property
    def _starts(self) -> dict[str, int]:
        """Dictionary -> number of its first latent."""
        starts, start = {}, len(self.setup.decoder)
        for dictionary in self.further:
            starts[dictionary.name] = start
            start += len(dictionary.decoder)
        return starts

    def numbers(self, name: str, latents_k: np.ndarray) -> np.ndarray:
        """Returns the numbers of a further dictionary's latents."""
        return self._starts[name] + np.asarray(latents_k, np.int64)

    def rows(self, i: int, j: int) -> np.ndarray:
        """Returns decoder rows i..j, all of one dictionary, as `RowSource.rows` does."""
        dictionary, start = self._owner(i)
        source = self.setup.decoder if dictionary is None else dictionary.decoder
        return source.rows(i - start, j - start)

    def label(self, latent: int) -> LatentName:
        """Returns how readers see a latent: its number in the case's SAE, or the name
        of a further dictionary with the number there.
        """
        dictionary, start = self._owner(latent)
        return latent if dictionary is None else f"{dictionary.name}:{latent - start}"

    def labels(self, latents: Sequence[int]) -> list[LatentName]:
        """Returns how readers see some latents."""
        return [self.label(latent) for latent in latents]

    def is_of_sae(self, latent: int) -> bool:
        """Returns whether a latent is the case's SAE's."""
        return self._owner(latent)[0] is None

    def of_sae(self, latents_k: np.ndarray) -> np.ndarray:
        """Returns those of some latents that are the case's SAE's."""
        if not self.further:
            return latents_k
        return latents_k[latents_k < len(self.setup.decoder)]

    def _owner(self, latent: int) -> tuple[FurtherDictionary | None, int]:
        """Returns the further dictionary that a number belongs to, None for the case's
        SAE, and the number of its first latent.
        """
        owner: tuple[FurtherDictionary | None, int] = (None, 0)
        for dictionary in self.further:
            start = self._starts[dictionary.name]
            if latent >= start:
                owner = (dictionary, start)
        return owner


def further_dictionaries(
    settings: Sequence[DictionarySettings], case: str
) -> tuple[FurtherDictionary, ...]:
    """Returns a case's further dictionaries; nothing is read yet."""
    opened = []
    for of_one in settings:
        where = f"config.cases.{case}.dictionaries.{of_one.name}"
        opened.append(FurtherDictionary(of_one, where))
    return tuple(opened)


def about(dictionary: FurtherDictionary) -> dict[str, Any]:
    """Returns what the record says of a dictionary."""
    cfg = dictionary.cfg
    return {
        "key": dictionary.key,
        "architecture": cfg.architecture or cfg.gate,
        "latents": cfg.n_latents,
        "by": dictionary.by,
        "reads": dictionary.reads,
    }
