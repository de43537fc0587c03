"""All that the scores of latents are computed from, in one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution.latent_statistics import CodeStatistics
from sae_attr.attribution.prompt_merge import MergedTokens, merge
from sae_attr.attribution.scores import Moment
from sae_attr.attribution.token_table import TokenTable, table_moment, token_weights
from sae_attr.files.row_source import RowSource
from sae_attr.sae.model import SAE

_BLOCK = 65536  # tokens that are summed at a time


class Skipped(NamedTuple):
    """States why a score of all latents is left out.

    `by_limit`: the dense limit alone is in the way, so that a few latents can have it.
    """

    why: str
    by_limit: bool = False


@dataclass(frozen=True, eq=False)
class Evidence:
    """The tokens of all completions, ordinary text, and the dictionary.

    Args:
      table: activations and gradients of every token.
      mean: ā and the typical norm, over ordinary text.
      codes: the SAE on ordinary text; `tokens` is 0 where nothing is known.
      decoder: rows `[n, d]` of any norm, in memory or on disk.
      sae_cfg: the SAE's config.
      load_sae: gives the SAE of some latents, or with None the whole, which may be
        larger than memory: only scores through the encoder ask for it.
      exclude: kinds of tokens that count nowhere.
      aligned_kd: activations of the second model at the site that the SAE reads, on the
        table's tokens; None where there is none.
      no_second_model: why there is none.
      dense_limit: latents × tokens up to which all latents are scored token by token.
      mesh: that dictionary rows are spread over.
      progress: show bars.
    """

    table: TokenTable
    mean: MeanActivation
    codes: CodeStatistics
    decoder: RowSource
    sae_cfg: Any
    load_sae: Callable[[np.ndarray | None], SAE]
    exclude: frozenset[str] = frozenset()
    aligned_kd: np.ndarray | None = None
    no_second_model: str = "no second model: set lm_aligned"
    dense_limit: int = 2**32
    mesh: jax.sharding.Mesh | None = None
    progress: bool = False
    _merged: dict[str, MergedTokens] = field(default_factory=dict, repr=False)
    _moments: dict[str, Moment] = field(default_factory=dict, repr=False)

    @property
    def mean_d(self) -> jax.Array:
        """ā, float32."""
        return jnp.asarray(self.mean.mean_d, jnp.float32)

    @property
    def sae(self) -> SAE:
        """The whole SAE."""
        return self.load_sae(None)

    def weights(self, scope: str) -> np.ndarray:
        """Returns the signed weight of every token in a scope, `[k]`."""
        return token_weights(self.table.rows, scope, self.exclude)

    def mean_weights(self, scope: str) -> np.ndarray:
        """Returns the weight of every token in the mean over a scope, `[k]`: C and C′
        alike, each prompt as much as another.
        """
        weights_k = np.abs(self.weights(scope))
        return weights_k / weights_k.sum()

    def moment(self, scope: str) -> Moment:
        """Returns the moment of a scope; computed once."""
        if scope not in self._moments:
            self._moments[scope] = table_moment(self.table, self.weights(scope))
        return self._moments[scope]

    def merged(self, scope: str) -> MergedTokens:
        """Returns the counted tokens of a scope, merged within each prompt."""
        if scope not in self._merged:
            # Of the last scope only: it is a copy of every counted token.
            self._merged.clear()
            self._merged[scope] = merge(self.table, scope, self.exclude)
        return self._merged[scope]

    def mean_acts(self, weights_k: np.ndarray) -> jax.Array:
        """Returns Σ_k w_k a_k `[d]`, summed in float64 on the host."""
        total_d = np.zeros(self.table.acts_kd.shape[1])
        for start in range(0, len(weights_k), _BLOCK):
            part = slice(start, start + _BLOCK)
            acts_kd = np.asarray(self.table.acts_kd[part], np.float64)
            total_d += weights_k[part] @ acts_kd
        return jnp.asarray(total_d, jnp.float32)

    def over_limit(self, tokens: int) -> str:
        """Explains why a score of all latents on so many tokens is left out; "" where
        it is within the limit.
        """
        cost = len(self.decoder) * tokens
        if cost <= self.dense_limit:
            return ""
        return f"{cost:.3g} latents x tokens exceed dense_limit {self.dense_limit:.3g}"
