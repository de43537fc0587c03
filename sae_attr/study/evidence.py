"""What every score of a latent is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution.corpus import CodeStatistics
from sae_attr.attribution.merged import MergedTokens, merge
from sae_attr.attribution.scores import Moment
from sae_attr.attribution.table import TokenTable, table_moment, token_weights
from sae_attr.study.setup import Setup


@dataclass(frozen=True, eq=False)
class Evidence:
    """A setup with its tokens' activations and gradients, and with what ordinary text
    says of the site and the SAE.
    """

    setup: Setup
    table: TokenTable
    mean: MeanActivation
    codes: CodeStatistics
    _merged: dict[str, MergedTokens] = field(default_factory=dict, repr=False)
    _moments: dict[str, Moment] = field(default_factory=dict, repr=False)

    @property
    def mean_d(self) -> jax.Array:
        """ā, float32."""
        return jnp.asarray(self.mean.mean_d, jnp.float32)

    def weights(self, scope: str) -> np.ndarray:
        """Returns the signed weight of every token in a scope, `[k]`."""
        return token_weights(self.table.rows, scope, self.setup.exclude)

    def moment(self, scope: str) -> Moment:
        """Returns the moment of a scope; computed once."""
        if scope not in self._moments:
            self._moments[scope] = table_moment(self.table, self.weights(scope))
        return self._moments[scope]

    def merged(self, scope: str) -> MergedTokens:
        """Returns the counted tokens of a scope; those of the last scope that was asked
        for are kept.
        """
        if scope not in self._merged:
            self._merged.clear()  # a copy of every counted token
            self._merged[scope] = merge(self.table, scope, self.setup.exclude)
        return self._merged[scope]

    def mean_acts(self, weights_k: np.ndarray) -> jax.Array:
        """Returns Σ_k w_k a_k `[d]`; summed in float64 on the host, a block at a time."""
        total_d = np.zeros(self.table.acts_kd.shape[1])
        for start in range(0, len(weights_k), 65536):
            part = slice(start, start + 65536)
            total_d += weights_k[part] @ np.asarray(
                self.table.acts_kd[part], np.float64
            )
        return jnp.asarray(total_d, jnp.float32)

    def over_limit(self, tokens: int) -> str:
        """Returns why a score that looks at every latent and so many tokens is left
        out; "" where it is not.
        """
        cost, limit = len(self.setup.decoder) * tokens, self.setup.settings.dense_limit
        return (
            f"{cost:.3g} latents x tokens exceed dense_limit {limit:.3g}"
            if cost > limit
            else ""
        )
