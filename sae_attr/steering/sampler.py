"""What a sweep samples with, and the arrays of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.prompts import Prompts, check_prompts, make_prompts, prompt_width
from sae_attr.lm.sample import check_sampling
from sae_attr.lm.sites import check_site
from sae_attr.parallel import shard_batch
from sae_attr.sae.model import SAE
from sae_attr.steering.coordinates import site_coordinates
from sae_attr.steering.interventions import scope
from sae_attr.steering.plan import NO_LATENT, SweepRow
from sae_attr.steering.rolling import Programs, Steering


@dataclass(frozen=True, eq=False)
class Sampler:
    """Turns rows into completions.

    Args:
      prompts: token ids by prompt id; all batches are as wide as the longest of them,
        whichever rows are left, so that a continued run computes what an uninterrupted
        one would.
      vectors: direction `[d]` of every latent that occurs; or an SAE, for its unit
        decoder rows, and for modes that set latent activations.
      key: typed random key; a row folds its own numbers into it.
      batch_size: places for rows; a multiple of the mesh's data axis.
      mode, unit, skip: as for `steer`.
    """

    params: Params
    prompts: Mapping[str, Sequence[int]]
    vectors: Mapping[int, Any] | SAE
    key: jax.Array
    cfg: LMConfig
    site: Site
    mesh: jax.sharding.Mesh
    batch_size: int
    mode: str = "add"
    sampling: Sampling = Sampling()
    unit: float = 1.0
    skip: int = 0

    @cached_property
    def programs(self) -> Programs:
        """What the programs are compiled for.

        Raises:
          ValueError: a batch that the mesh does not divide; a site, stop ids or lengths
            that the model lacks.
        """
        across = self.mesh.shape["data"]
        if self.batch_size < 1 or self.batch_size % across:
            raise ValueError(
                f"batch_size is {self.batch_size}, but the mesh spreads rows over "
                f"data={across}; make it a multiple of {across}"
            )
        check_site(self.cfg, self.site)
        # Of all prompts, not of those that are left: one width is one compiled program, and
        # sums over another width differ in their last bits, which can change a drawn token.
        lengths = [len(ids) for ids in self.prompts.values()]
        width = prompt_width(lengths, cfg=self.cfg, sampling=self.sampling)
        check_sampling(self.cfg, self.sampling, width)
        return Programs(self.cfg, self.site, self.mode, self.sampling, width, self.mesh)

    def packed(self, rows: Sequence[SweepRow | None]) -> Prompts:
        """Returns the rows' prompts, on the host."""
        ids = [list(self.prompts[row.prompt]) if row else [] for row in rows]
        prompts = make_prompts(ids, width=self.programs.width)
        check_prompts(self.cfg, prompts)
        return prompts

    def placed(self, rows: Sequence[SweepRow | None]) -> Prompts:
        """Returns the rows' prompts, on the mesh."""
        return shard_batch(self.packed(rows), self.mesh)

    def steering(self, rows: Sequence[SweepRow | None]) -> Steering:
        """Returns what is done to each of the rows, on the mesh."""
        count = len(rows)
        latents_b = np.full(count, NO_LATENT)
        strengths_b = np.zeros(count, np.float32)
        lengths_b = np.zeros(count, np.int32)
        tokens_b = np.full(count, "all", object)
        for b, row in enumerate(rows):
            if row is not None:
                latents_b[b] = row.condition.latent
                strengths_b[b] = row.condition.strength
                lengths_b[b] = len(self.prompts[row.prompt])
                tokens_b[b] = row.condition.tokens or "all"
        sae = self.vectors if isinstance(self.vectors, SAE) else None
        directions = latents_b if sae is not None else _stacked(self, latents_b)
        width = self.programs.cfg.width(self.site.point)
        directions_bmd, strengths_bm, sae, latents_bm = site_coordinates(
            directions, strengths_b, self.unit, count, width, self.mode, sae
        )
        scope_b: Any = _scopes(tokens_b, lengths_b, self.skip)
        directions_bmd, strengths_bm, latents_bm, scope_b = shard_batch(
            (directions_bmd, strengths_bm, latents_bm, scope_b), self.mesh
        )
        return Steering((directions_bmd, strengths_bm, sae, latents_bm), scope_b)


def _scopes(
    tokens_b: np.ndarray, lengths_b: np.ndarray, skip: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the half-open range of positions on which each row is steered."""
    start_b, stop_b = np.zeros_like(lengths_b), np.zeros_like(lengths_b)
    for tokens in set(tokens_b):
        here_b = tokens_b == tokens
        start, stop = scope(tokens, lengths_b, skip=skip)
        start_b[here_b] = np.asarray(start)[here_b]
        stop_b[here_b] = np.asarray(stop)[here_b]
    return start_b, stop_b


def _stacked(sampler: Sampler, latents_b: np.ndarray) -> np.ndarray:
    """Returns the direction of every row `[b, d]`, zeros where nothing is steered."""
    vectors = sampler.vectors
    assert not isinstance(vectors, SAE)  # steering
    absent = sorted(set(latents_b.tolist()) - {NO_LATENT, *vectors})
    if absent:
        names = ", ".join(map(str, sorted(vectors)))
        raise ValueError(
            f"latent {absent[0]} has no vector; there are {names or 'none'}"
        )
    width = sampler.cfg.width(sampler.site.point)
    rows_bd = np.zeros((len(latents_b), width), np.float32)
    for b, latent in enumerate(latents_b.tolist()):
        if latent != NO_LATENT:
            rows_bd[b] = vectors[latent]
    return rows_bd
