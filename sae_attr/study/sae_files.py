"""The files of the studied SAE: its config, its site, and as much of it as is needed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.attribution.decoder_pass import check_width
from sae_attr.attribution.sites import after_gain, read_site
from sae_attr.files.row_source import RowSource
from sae_attr.hooks import Site
from sae_attr.lm.sites import check_site, site_named
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE
from sae_attr.sae.registry.names import check_model, named_sae
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.model_files import ModelFiles
from sae_attr.study.stored_sae import StoredSAE
from sae_attr.text.masks import Masks


@dataclass(frozen=True, eq=False)
class SAEFiles:
    """The studied SAE and where in the model it belongs; read when first needed.

    Args:
      stated: stands for the config of an SAE that does not exist, where only directions
        are given.
    """

    settings: Settings
    model: ModelFiles
    stated: SAEConfig | None = None

    @functools.cached_property
    def stored(self) -> StoredSAE:
        """Its files.

        Raises ValueError for a registered SAE of another model, before it is fetched.
        """
        s = self.settings
        if named := named_sae(s.sae):
            lm = self.model.cfg
            width = lm.width(named.site.point)
            check_model(named, s.lm, layers=lm.n_layers, width=width)
        return StoredSAE(s.sae, s.sae_format, s.sae_options)

    @property
    def source(self) -> str:
        """Where the SAE lies."""
        return self.stored.source

    def latent_page(self, latent: int) -> str:
        """Returns the address of a latent's page on Neuronpedia; "" where the SAE is
        not named, or has none.
        """
        named = named_sae(self.settings.sae)
        return named.page(latent) if named else ""

    @functools.cached_property
    def cfg(self) -> Any:
        """The SAE's config."""
        if self.stated is not None:
            return self.stated
        cfg = self.stored.config()
        check_width(cfg.d_out, self.model.cfg.width(self.site_of(cfg).point))
        return cfg

    def site_of(self, sae_cfg: Any) -> Site:
        """Returns the site that is studied: the settings', or the one that the SAE's file says
        it writes to.
        """
        name = self.settings.site or sae_cfg.site_out or sae_cfg.site
        if name is None:
            raise ValueError(
                f"{self.settings.sae} does not say where it reads; set site, for "
                "instance layer2.resid_post"
            )
        return site_named(self.model.cfg, name)

    @functools.cached_property
    def site(self) -> Site:
        """The studied site, checked against the model and the SAE."""
        return self.site_of(self.cfg)

    @functools.cached_property
    def read_site(self) -> Site:
        """The site that the SAE encodes: the studied one, or a transcoder's input."""
        name = self.settings.site_in
        if name is None and self.cfg.site_out in (None, self.cfg.site):
            return self.site
        if name:
            return site_named(self.model.cfg, name)
        site, _ = read_site(self.cfg.site, norms_behind=self.model.cfg.post_norm)
        check_site(self.model.cfg, site)
        return site

    @functools.cached_property
    def whole(self) -> SAE:
        """The whole SAE in memory, for codes; a transcoder that reads before a norm's
        gain reads after it here.
        """
        return self.of(None)

    def of(self, latents: np.ndarray | None) -> SAE:
        """Reads the SAE of a few latents without the rest of the file, or the whole; see
        `load_sae`.
        """
        sae = self.stored.load(latents)
        named = (
            None
            if self.settings.site_in or self.read_site == self.site
            else self.cfg.site
        )
        if named and read_site(named)[1]:
            sae = after_gain(
                sae, self.model.params, self.read_site.layer, cfg=self.model.cfg
            )
        return sae

    @property
    def decoder(self) -> RowSource:
        """Decoder rows, read from disk as they are needed."""
        return self.stored.decoder

    @property
    def key(self) -> str:
        """Names the SAE by its files' contents and how they were read."""
        return self.stored.key


def training_masks(cfg: SAEConfig) -> Masks:
    """Masks of an SAE's training as far as its file tells; outliers are left out where
    it is silent.
    """
    if cfg.masks is not None:
        return cfg.masks
    return Masks(frozenset({"special"} if cfg.exclude_special else ()))
