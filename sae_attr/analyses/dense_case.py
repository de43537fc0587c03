"""A case of a finished study as a study of dense latents sees it: its model, SAE and
text, and the passes over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sae_attr.activations import measure_corpus
from sae_attr.analyses.dense_settings import DenseSettings
from sae_attr.analyses.dense_statistics import (
    Vocabulary,
    covariance_statistic,
    places_statistic,
    read_words,
    vocabulary_of,
)
from sae_attr.attribution.latent_statistics import (
    codes_statistic,
    firings,
    latent_statistic,
)
from sae_attr.lm.model import unembedding
from sae_attr.study.finished_study import FinishedCase
from sae_attr.study.stages import mean_activation, norm_limits
from sae_attr.text.tokenizer import token_strings

# Points whose activations are the residual stream, or are added to it.
WRITTEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class DenseCase(FinishedCase):
    """A case of a finished study whose SAE's dense latents are looked at."""

    settings: DenseSettings

    def check(self) -> None:
        """Raises ValueError for an SAE whose latents have no activation of a single
        token, for settings that do not fit the model, and for words that are none of
        its tokens.
        """
        setup = self.case.setup
        why = setup.sae_cfg.no_token_codes
        if why:
            raise ValueError(f"case {self.case.name}: no density to count, since {why}")
        width = setup.cfg.d_model
        if self.settings.null_directions >= width:
            raise ValueError(
                f"null_directions is {self.settings.null_directions}, but the residual "
                f"stream has {width} directions; take a few of them"
            )
        if self.settings.words:
            _ = self.vocabulary

    @cached_property
    def tokens(self) -> list[str]:
        """Text of every token of the model's embedding; "" of rows without a token."""
        setup = self.case.setup
        count = min(setup.tokenizer.vocab_size, setup.cfg.vocab)
        texts = token_strings(setup.tokenizer, np.arange(count))
        return texts + [""] * (setup.cfg.vocab - count)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokens are: ends of sentences, words of a class."""
        words = read_words(self.settings.words) if self.settings.words else {}
        return vocabulary_of(self.tokens, words)

    @cached_property
    def writes_residual(self) -> bool:
        """Whether decoder rows are directions in the residual stream."""
        setup = self.case.setup
        return setup.site.point in WRITTEN and setup.sae_cfg.d_out == setup.cfg.d_model

    @cached_property
    def unembedding(self) -> np.ndarray:
        """Unembedding vectors `[v, d]`, the final norm's gain folded in."""
        setup = self.case.setup
        return np.asarray(unembedding(setup.params, cfg=setup.cfg))

    # ---- passes over the corpus ------------------------------------------------------

    def statistics(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Measures firing rates `[n]`, the covariance at the site `[d, d]`, and the
        number of tokens that count.
        """
        setup = self.case.setup
        mean = mean_activation.mean_of(self.result(mean_activation.NAME))
        rates = latent_statistic(
            setup.sae, {"rate_n": firings}, site=setup.site, read=setup.read_site
        )
        covariance = covariance_statistic(setup.site, mean.mean_d)
        statistics = {"rates": rates, "covariance": covariance}
        measured = self._measure(statistics, self.settings.tokens, "density")
        means, tokens = measured["rates"]
        return means["rate_n"], measured["covariance"], tokens

    def sample(self, latents_k: np.ndarray) -> tuple[np.ndarray, Any]:
        """Measures activations `[x, k]` of some latents on sampled tokens, and the
        `Places` of these tokens.
        """
        setup = self.case.setup
        codes = codes_statistic(setup.sae, latents_k, site=setup.read_site)
        statistics = {"codes": codes, "places": places_statistic(self.vocabulary)}
        measured = self._measure(statistics, self.settings.sample_tokens, "sample")
        return measured["codes"], measured["places"]

    def _measure(self, statistics: Any, tokens: int, description: str) -> Any:
        setup = self.case.setup
        return measure_corpus(
            setup.params,
            setup.corpus.batches(tokens),
            statistics,
            cfg=setup.cfg,
            mesh=setup.mesh,
            limits=norm_limits.limits_of(self.result(norm_limits.NAME)),
            description=description,
            progress=setup.progress,
        )
