"""A case of a finished study as a mitigation study sees it: which latents are
suppressed together, and on which prompts that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from sae_attr.analyses.layer_facts import residual_sites
from sae_attr.analyses.mitigation_settings import (
    AT_LAYERS,
    AT_SITE,
    CAUSE,
    LEVER,
    RANDOM,
    MitigationSettings,
    Suppression,
    direction_conditions,
    latent_conditions,
)
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.ranking import random_matched, rank
from sae_attr.hooks import Site
from sae_attr.study.finished_study import FinishedCase
from sae_attr.study.selection import Selection, method_scores
from sae_attr.study.stages.specificity import median_strength
from sae_attr.study.stages.steer import strengths_of

EFFECTS = "effects"


@dataclass(frozen=True, eq=False)
class Mitigation(FinishedCase):
    """A case of a finished study, and what is done to it."""

    settings: MitigationSettings

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The sets of prompts that are measured: the effects' first, then benign ones."""
        sets = (*self.settings.benign_present, *self.settings.benign_absent)
        names = [EFFECTS]
        for name in dict.fromkeys(sets):
            if name in self.case.split_prompts:
                names.append(name)
        return tuple(names)

    @cached_property
    def layers(self) -> tuple[Site, ...]:
        """The residual stream after every layer."""
        return residual_sites(self.case.setup.cfg.n_layers)

    @cached_property
    def blocks(self) -> dict[str, list[Suppression]]:
        """Block of conditions -> the conditions that are measured together."""
        blocks = {}
        for by in self.settings.suppress_by:
            blocks[by] = latent_conditions(self.settings)
        blocks[AT_SITE] = direction_conditions(self.settings, 1)
        blocks[AT_LAYERS] = direction_conditions(self.settings, len(self.layers))
        return blocks

    @cached_property
    def strength(self) -> float:
        """Length of `steer`, in units of the site's mean norm."""
        if (
            self.settings.strength is not None
            or "steer" not in self.settings.suppress_by
        ):
            return self.settings.strength or 0.0
        selection = Selection.load(self.result("select").arrays)
        stored = self.result("strengths.away")
        median = median_strength(selection, strengths_of(self.case, "away", stored))
        if not median:
            raise ValueError(
                f"the study steers no latent of case {self.case.name} away at a coherent "
                "strength; give strength, in units of the site's mean norm"
            )
        return abs(median)

    # ---- latents ---------------------------------------------------------------------

    @cached_property
    def latents(self) -> dict[tuple[str, int], np.ndarray]:
        """(method, draw) -> its latents, best first, as many as the largest count.

        Raises ValueError where fewer are ranked.
        """
        attribution, most = self.result("attribute"), self.settings.most
        names = {CAUSE: self.settings.cause, LEVER: self.settings.lever}
        latents: dict[tuple[str, int], np.ndarray] = {}
        for method, name in names.items():
            scores_n = method_scores(attribution, name)
            latents[method, 0] = rank(name, scores_n, most).latents_k
            self._check_enough(len(latents[method, 0]), f"{name} ranks")
        used = np.unique(np.concatenate(list(latents.values())))
        rates_n = np.asarray(attribution.arrays["firing_rate"])
        if not np.isfinite(rates_n).all():
            rates_n = np.full(len(rates_n), np.nan)
        for draw in range(self.settings.draws):
            key = jax.random.fold_in(jax.random.key(self.settings.seed), draw)
            like = latents[CAUSE, 0]
            drawn = random_matched(RANDOM, rates_n, like, most, key, avoid=used)
            latents[RANDOM, draw] = drawn.latents_k
            self._check_enough(len(drawn.latents_k), "random draws find")
        return latents

    def _check_enough(self, count: int, who: str) -> None:
        most = self.settings.most
        if count < most:
            raise ValueError(
                f"case {self.case.name}: {most} latents are to be suppressed together, "
                f"but {who} {count}; lower counts"
            )

    def rows(self) -> np.ndarray:
        """Returns the unit rows of every condition that suppresses latents, after a
        condition without any; `[1 + k, most, d]`, zeros beyond a condition's count.
        """
        setup = self.case.setup
        units = {}
        for key, latents in self.latents.items():
            units[key] = np.asarray(decoder_rows(setup.decoder, latents))
        conditions = latent_conditions(self.settings)
        width = setup.cfg.width(setup.site.point)
        shape = (1 + len(conditions), self.settings.most, width)
        rows_kmd = np.zeros(shape, np.float32)
        for k, row in enumerate(conditions):
            rows_kmd[1 + k, : row.count] = units[row.method, row.draw][: row.count]
        return rows_kmd
