"""Inputs of an attribution, loaded lazily: model, SAE, tokenizer, corpus and pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import jax
import numpy as np

from sae_attr.files.row_source import RowSource
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.end_tokens import Ends
from sae_attr.lm.model import Params
from sae_attr.parallel import from_main
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.store import Computed, Progress, Result, Store, run_stage
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.corpus_text import CorpusText
from sae_attr.study.model_files import ModelFiles
from sae_attr.study.sae_files import SAEFiles, training_masks
from sae_attr.text.batching import RowBatch, batches
from sae_attr.text.encoding import EncodedPairs, encode_pairs
from sae_attr.text.masks import Masks
from sae_attr.text.pairs import Pair, read_pairs
from sae_attr.text.rows import TokenRow, scope_mask
from sae_attr.text.tokenizer import Tokenizer


class Draw(IntEnum):
    """Names what a random key is drawn for."""

    SAMPLES = 0
    HALVES = 1
    RANDOM = 2
    BOOTSTRAP = 3
    SPLITS = 4
    POSITIONS = 5
    CONTROL = 6
    ERROR = 7


@dataclass(frozen=True, eq=False)
class Setup:
    """Settings with what they name: files are read when first needed, weights loaded
    only if a stage must run. Without pairs it serves all that needs none.

    Args:
      progress: show bars.
      keys_at: where the settings stand in the run's config, for messages: "" or, in a
        case study, "cases.NAME.attribution.".
      shared: files of the model that another setup has loaded already.
      stated_sae: stands for the config of an SAE that does not exist, where only
        directions are given.

    Raises ValueError from the properties for inputs that do not fit each other.
    """

    settings: Settings
    store: Store
    mesh: jax.sharding.Mesh
    progress: bool = True
    keys_at: str = ""
    shared: ModelFiles | None = None
    stated_sae: SAEConfig | None = None

    def flag(self, setting: str) -> str:
        """Returns the flag that sets one of the settings on the command line."""
        return f"--config.{self.keys_at}{setting}"

    def beside(
        self, sae: str, *, site: str | None = None, site_in: str | None = None
    ) -> Setup:
        """Returns the setup of another SAE on the same model and pairs; the model's
        files are shared.
        """
        settings = replace(self.settings, sae=sae, site=site, site_in=site_in)
        return replace(self, settings=settings, shared=self.model_files)

    # ---- files -----------------------------------------------------------------------

    @functools.cached_property
    def model_files(self) -> ModelFiles:
        """The model's files."""
        return self.shared or ModelFiles(self.settings, self.mesh, self.progress)

    @functools.cached_property
    def sae_files(self) -> SAEFiles:
        """The SAE's files."""
        return SAEFiles(self.settings, self.model_files, self.stated_sae)

    @functools.cached_property
    def corpus(self) -> CorpusText:
        """The corpus as batches of tokens."""
        return CorpusText(
            self.settings,
            self.tokenizer,
            self.cfg.vocab,
            self.prepend_bos,
            self.masks,
            self.corpus_context,
            self._whole(self.settings.corpus_batch),
        )

    @property
    def cfg(self) -> LMConfig:
        """The model's config, before its weights are read."""
        return self.model_files.cfg

    @property
    def params(self) -> Params:
        """The model's weights on the mesh."""
        return self.model_files.params

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with the template options of the settings."""
        return self.model_files.tokenizer

    @property
    def ends(self) -> Ends:
        """The ids that end a completion of the model, by what says so."""
        return self.model_files.ends

    @property
    def lm_key(self) -> str:
        """Names the model by its files' contents; pairs that it sampled carry it."""
        return self.model_files.key

    @property
    def aligned_key(self) -> str:
        """Names the second model of Δ-activation by its files' contents."""
        return self.model_files.aligned_key

    @property
    def no_second_model(self) -> str:
        """Why there is no second model; "" where there is one."""
        return self.model_files.no_second_model

    @property
    def sae_cfg(self) -> Any:
        """The SAE's config."""
        return self.sae_files.cfg

    @property
    def site(self) -> Site:
        """The studied site, checked against the model and the SAE."""
        return self.sae_files.site

    @property
    def read_site(self) -> Site:
        """The site that the SAE encodes: the studied one, or a transcoder's input."""
        return self.sae_files.read_site

    @property
    def sae(self) -> SAE:
        """The whole SAE in memory."""
        return self.sae_files.whole

    def sae_of(self, latents: np.ndarray | None) -> SAE:
        """Reads the SAE of some latents without the rest of it; None: the whole, which
        stays in memory.
        """
        return self.sae if latents is None else self.sae_files.of(latents)

    @property
    def decoder(self) -> RowSource:
        """Decoder rows, read from disk as they are needed."""
        return self.sae_files.decoder

    @property
    def sae_key(self) -> str:
        """Names the SAE by its files' contents and how they were read."""
        return self.sae_files.key

    @property
    def corpus_key(self) -> str:
        """Names the corpus by its files' contents, and how texts are read from it."""
        return self.corpus.key

    # ---- what counts -----------------------------------------------------------------

    @functools.cached_property
    def masks(self) -> Masks:
        """Tokens that count nowhere: the settings' masks, else those of the SAE's
        training, else outliers alone.
        """
        s, masks = self.settings, training_masks(self.sae_cfg)
        if s.exclude is not None:
            masks = replace(masks, exclude=frozenset(s.exclude))
        if s.first_k is not None:
            masks = replace(masks, first_k=s.first_k)
        if s.outlier is not None:
            masks = replace(masks, outlier=s.outlier or None)
        return masks

    @property
    def tested_masks(self) -> Masks:
        """Masks of the SAE check: those of its training where its file says them,
        else the run's.
        """
        return self.masks if self.sae_cfg.masks is None else self.sae_cfg.masks

    @property
    def exclude(self) -> frozenset[str]:
        """Kinds of tokens that count nowhere."""
        return self.masks.exclude

    @functools.cached_property
    def prepend_bos(self) -> bool | None:
        """Whether rows begin with BOS: the settings', else the SAE's training, else the
        tokenizer's habit (None).
        """
        if self.tokenizer.bos_id is None:
            return None
        if self.settings.prepend_bos is not None:
            return self.settings.prepend_bos
        return self.sae_cfg.prepend_bos

    @functools.cached_property
    def context(self) -> int:
        """The longest row that is accepted."""
        return min(self.settings.context or self.cfg.max_len, self.cfg.max_len)

    @functools.cached_property
    def corpus_context(self) -> int:
        """Tokens per corpus text."""
        return min(
            self.settings.corpus_context or self.sae_cfg.context_size or self.context,
            self.context,
        )

    @property
    def firing_positions(self) -> int:
        """Corpus positions that firing rates are counted over; 0 where single tokens
        have no codes.
        """
        s = self.settings
        if self.sae_cfg.no_token_codes:
            return 0
        return min(
            s.dense_limit // self.sae_cfg.n_latents, s.firing_tokens, s.corpus_tokens
        )

    def where(
        self, rows: Sequence[TokenRow], scope: str
    ) -> Callable[[RowBatch, np.ndarray], np.ndarray]:
        """Returns the positions of a batch of these rows that count in a scope, as a function
        `(batch, row_b) -> bool [b, t]`.
        """

        def mask(batch: RowBatch, row_b: np.ndarray) -> np.ndarray:
            where_bt = np.zeros(batch.tokens_bt.shape, bool)
            for b, row in enumerate(row_b):
                if row >= 0:
                    counted = scope_mask(rows[row], scope, exclude=self.exclude)
                    where_bt[b, : len(counted)] = counted
            return where_bt

        return mask

    # ---- pairs -----------------------------------------------------------------------

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The records."""
        return read_pairs(self.settings.pairs)

    @functools.cached_property
    def encoded(self) -> EncodedPairs:
        """Token rows of all completions."""
        return encode_pairs(
            self.pairs,
            self.tokenizer,
            context=self.context,
            path=self.settings.pairs,
            prepend_bos=self.prepend_bos,
        )

    def batched(self, rows: Sequence[TokenRow]) -> list[tuple[RowBatch, np.ndarray]]:
        """Puts rows in batches that the mesh can split."""
        return batches(
            rows, batch_size=self._whole(self.settings.batch_size), context=self.context
        )

    def _whole(self, rows: int) -> int:
        """A batch size rounded up to what the mesh's data axis divides."""
        return -(-rows // self.mesh.shape["data"]) * self.mesh.shape["data"]

    def check(self, *, weights: bool) -> None:
        """Looks at every input, so that what is wrong with one is said before anything
        is computed or written.

        Args:
          weights: also load the model and the SAE, as a first run does anyway.
        """
        if "float64" in (
            self.settings.dtype,
            self.settings.resid_dtype,
        ) and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "float64 needs JAX_ENABLE_X64=1 in the environment; without it JAX has "
                "no float64"
            )
        self.corpus.check()
        if self.settings.lm_aligned:
            self.model_files.same_architecture(
                self.settings.lm_aligned,
                load_config(self.settings.lm_aligned, mesh=self.mesh),
            )
        _ = self.encoded, self.decoder
        if weights:
            _ = self.params
            if self.firing_positions >= 1000 or self.settings.sae_check_tokens:
                _ = self.sae

    # ---- stages ----------------------------------------------------------------------

    def model_fields(self) -> dict[str, Any]:
        """Returns what activations depend on, beside the files."""
        return {
            "site": str(self.site),
            "dtype": self.settings.dtype,
            "resid_dtype": self.cfg.resid_dtype,
        }

    def key(self, draw: int) -> jax.Array:
        """Returns the random key of one purpose."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), draw)

    def stage(
        self,
        name: str,
        fields: Mapping[str, Any],
        inputs: Mapping[str, str],
        fn: Callable[[Progress], Computed],
        *,
        version: int,
    ) -> Result:
        """Loads or computes a stage that stands in no graph; with several hosts all
        compute or none. Arguments are those of `run_stage`.
        """

        def together(progress: Progress) -> Computed:
            computed = fn(progress)
            from_main(True)  # all are done with `progress` before the writer clears it
            return computed

        return run_stage(
            self.store, name, version, fields, inputs, together, agree=from_main
        )
