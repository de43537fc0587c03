"""A study: settings together with the model, SAE, pairs and corpus that they name,
looked at when first needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from sae_attr.activations import CorpusBatch, norm_limits, rows_beyond
from sae_attr.attribution.scores import check_width
from sae_attr.attribution.sites import after_gain, read_site
from sae_attr.files.tensors import RowSource
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.ends import Ends, turn_ends
from sae_attr.lm.model import Params, check_site, site_named
from sae_attr.lm.weights import load_config, load_lm, resolve_model
from sae_attr.parallel import from_main
from sae_attr.sae.formats import (
    LoadOptions,
    identity,
    load_sae,
    open_decoder,
    pinned,
    read_config,
)
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.store import Progress, Result, Store, digest, fingerprint, run_stage
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.versions import VERSIONS, called_by
from sae_attr.text.batching import RowBatch, batches, corpus_batches, document_batches
from sae_attr.text.chat import options_read, with_options
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.encoding import EncodedPairs, encode_pairs
from sae_attr.text.masks import Masks
from sae_attr.text.pairs import Pair, read_pairs
from sae_attr.text.rows import TokenRow, corpus_mask, scope_mask
from sae_attr.text.token_file import (
    TokenFile,
    check_embedding,
    check_tokenizer,
    documents_of,
    is_token_file,
    open_tokens,
)
from sae_attr.text.tokenizer import Tokenizer, folder_template, load_tokenizer

_LIMIT_TOKENS = 8192  # of the corpus, for the median norms


@dataclass(frozen=True, eq=False)
class Study:
    """Settings with what they name: files are looked at when first asked for, weights
    loaded only if a stage must run.

    Args:
      progress: show bars.
      keys_at: where the settings stand in the run's config, for messages: "" or, in a
        case study, "cases.NAME.attribution.".

    Raises ValueError from the properties for inputs that do not fit each other.
    """

    settings: Settings
    store: Store
    mesh: jax.sharding.Mesh
    progress: bool = True
    keys_at: str = ""

    def flag(self, setting: str) -> str:
        """The flag that sets one of the settings on the command line."""
        return f"--config.{self.keys_at}{setting}"

    @functools.cached_property
    def cfg(self) -> LMConfig:
        """The model's config, before its weights are read."""
        resid = self.settings.resid_dtype or (
            "float64" if self.settings.dtype == "float64" else "float32"
        )
        return load_config(self.settings.lm, resid_dtype=resid, mesh=self.mesh)

    @functools.cached_property
    def params(self) -> Params:
        """The model's weights on the mesh."""
        return self.load(self.settings.lm, adapter=self.settings.adapter)

    def load(self, path: str, *, adapter: str | None = None) -> Params:
        """Weights of a model of the studied architecture, with an adapter merged into
        them.
        """
        cfg, params = load_lm(
            path,
            mesh=self.mesh,
            dtype=self.settings.dtype,
            resid_dtype=self.cfg.resid_dtype,
            adapter=adapter,
            progress=self.progress,
        )
        self.same_architecture(path, cfg)
        return params

    def same_architecture(self, path: str, cfg: LMConfig) -> None:
        """Raises ValueError if another model's config differs from the studied one's in
        more than its special tokens.
        """
        other, ours = (
            replace(c, bos_id=None, eos_id=None, resid_dtype="")
            for c in (cfg, self.cfg)
        )
        if other != ours:
            raise ValueError(
                f"{path} and {self.settings.lm} have different configs; both must be "
                "the same architecture"
            )

    @functools.cached_property
    def sae_source(self) -> str:
        """Where the SAE lies; on the hub with a commit for its revision, so that a run
        reads one state of a branch.
        """
        return (
            pinned(self.settings.sae)
            if self.settings.sae.startswith("hf://")
            else self.settings.sae
        )

    @functools.cached_property
    def sae_cfg(self) -> Any:
        """The SAE's config."""
        cfg = read_config(
            self.sae_source, self.settings.sae_format, **self.settings.sae_options
        )
        check_width(cfg.d_out, self.cfg.width(self.site_of(cfg).point))
        return cfg

    def site_of(self, sae_cfg: Any) -> Site:
        """The site that is studied: the settings', or the one that the SAE's file says
        it writes to.
        """
        name = self.settings.site or sae_cfg.site_out or sae_cfg.site
        if name is None:
            raise ValueError(
                f"{self.settings.sae} does not say where it reads; set site, for "
                "instance layer2.resid_post"
            )
        return site_named(self.cfg, name)

    @functools.cached_property
    def site(self) -> Site:
        """The studied site, checked against the model and the SAE."""
        return self.site_of(self.sae_cfg)

    @functools.cached_property
    def read_site(self) -> Site:
        """The site that the SAE encodes: the studied one, or a transcoder's input."""
        stated = self.settings.site_in
        if stated is None and self.sae_cfg.site_out in (None, self.sae_cfg.site):
            return self.site
        if stated:
            return site_named(self.cfg, stated)
        site, _ = read_site(self.sae_cfg.site, norms_behind=self.cfg.post_norm)
        check_site(self.cfg, site)
        return site

    @functools.cached_property
    def sae(self) -> SAE:
        """The whole SAE in memory, for codes; a transcoder that reads before a norm's
        gain reads after it here.
        """
        return self.sae_of(None)

    def sae_of(self, latents: np.ndarray | None) -> SAE:
        """The SAE of a few latents, read without the rest of the file, or the whole;
        see `load_sae`.
        """
        s = self.settings
        sae = load_sae(
            self.sae_source, fmt=s.sae_format, latents=latents, **s.sae_options
        )
        named = (
            None
            if self.settings.site_in or self.read_site == self.site
            else self.sae_cfg.site
        )
        if named and read_site(named)[1]:
            sae = after_gain(sae, self.params, self.read_site.layer, cfg=self.cfg)
        return sae

    @functools.cached_property
    def decoder(self) -> RowSource:
        """Decoder rows, read from disk as they are needed."""
        return open_decoder(
            self.sae_source, fmt=self.settings.sae_format, **self.settings.sae_options
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with the template options of the settings; an
        adapter's own chat template goes before.
        """
        tok = load_tokenizer(
            resolve_model(self.settings.lm), embedding_rows=self.cfg.vocab
        )
        template = (
            folder_template(resolve_model(self.settings.adapter))
            if self.settings.adapter
            else None
        )
        if template is not None:
            tok = replace(tok, chat_template=template)
        return with_options(tok, self.settings.template_options)

    @functools.cached_property
    def ends(self) -> Ends:
        """The ids that end a completion of the model, by what says so."""
        return turn_ends(self.settings.lm, self.tokenizer, vocab=self.cfg.vocab)

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
        """Masks of the SAE's self-test: those of its training where its file says them,
        else the run's.
        """
        return self.masks if self.sae_cfg.masks is None else self.sae_cfg.masks

    @property
    def exclude(self) -> frozenset[str]:
        """Kinds of tokens that count nowhere."""
        return self.masks.exclude

    @functools.cached_property
    def limits(self) -> dict[Site, float]:
        """Site -> largest norm that counts, measured on the corpus; empty where
        outliers count.
        """
        if self.masks.outlier is None:
            return {}
        sites = tuple(dict.fromkeys((self.site, self.read_site)))

        def compute(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
            work = self.corpus_work(min(_LIMIT_TOKENS, self.settings.corpus_tokens))
            limits = norm_limits(
                self.params,
                work,
                self.masks.outlier,
                cfg=self.cfg,
                sites=sites,
                mesh=self.mesh,
            )
            return {}, {"limits": {str(site): limit for site, limit in limits.items()}}

        fields = {**self.corpus_fields(), "sites": [str(site) for site in sites]}
        result = self.stage(
            "norm-limits",
            fields,
            {"lm": self.lm_key, "corpus": self.corpus_key},
            compute,
        )
        return {site: float(result.meta["limits"][str(site)]) for site in sites}

    @functools.cached_property
    def rows(self) -> list[TokenRow]:
        """Rows of all completions, with the first k and the outliers of each masked."""
        rows = self.encoded.rows
        first_r = [np.arange(len(row.ids)) < self.masks.first_k for row in rows]
        masked_r = [
            first | beyond
            for first, beyond in zip(first_r, self._beyond(rows), strict=True)
        ]
        return [
            replace(row, masked=masked)
            for row, masked in zip(rows, masked_r, strict=True)
        ]

    def _beyond(self, rows: Sequence[TokenRow]) -> list[np.ndarray]:
        """Per row, the tokens whose norm exceeds a limit, bool `[t]`."""
        limits = self.limits
        if not limits:
            return [np.zeros(len(row.ids), bool) for row in rows]

        def compute(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
            beyond = rows_beyond(
                self.params, self.batched(rows), limits, cfg=self.cfg, mesh=self.mesh
            )
            return {
                "beyond_k": np.concatenate(
                    [beyond[r][: len(row.ids)] for r, row in enumerate(rows)]
                )
            }, {}

        ids = [row.ids for row in rows]
        fields = {
            **self.model_fields(),
            "ids": digest(ids),
            "limits": {str(site): x for site, x in limits.items()},
        }
        result = self.stage("outliers", fields, {"lm": self.lm_key}, compute)
        return np.split(
            np.asarray(result.arrays["beyond_k"]), np.cumsum([len(i) for i in ids])[:-1]
        )

    @functools.cached_property
    def prepend_bos(self) -> bool | None:
        """Whether rows begin with BOS: the settings', else the SAE's training, else the
        tokenizer's habit (None).
        """
        asked = (
            self.settings.prepend_bos
            if self.settings.prepend_bos is not None
            else self.sae_cfg.prepend_bos
        )
        return asked if self.tokenizer.bos_id is not None else None

    @functools.cached_property
    def context(self) -> int:
        """The longest row that is accepted."""
        return min(self.settings.context or self.cfg.max_len, self.cfg.max_len)

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

    @functools.cached_property
    def lm_key(self) -> str:
        """Names the model, with its adapter, by its files' contents: pairs that it
        sampled carry it as their sampler.
        """
        name = fingerprint(resolve_model(self.settings.lm))
        adapter = self.settings.adapter
        return digest([name, fingerprint(resolve_model(adapter))]) if adapter else name

    @functools.cached_property
    def aligned_key(self) -> str:
        """Names the second model of Δ-activation by its files' contents."""
        return fingerprint(resolve_model(str(self.settings.lm_aligned)))

    @property
    def no_second_model(self) -> str:
        """Why no other model stands beside the studied one: none is given, or the same
        is given twice; "" where one does.
        """
        if not self.settings.lm_aligned:
            return "no second model: set lm_aligned"
        if self.aligned_key == self.lm_key:
            return f"lm_aligned ({self.settings.lm_aligned}) has the same weights as lm: give another model, or none"
        return ""

    @functools.cached_property
    def sae_key(self) -> str:
        """Names the SAE by its files' contents and how they were read."""
        local = not self.settings.sae.startswith("hf://")
        name = fingerprint(self.settings.sae) if local else self.sae_source
        return digest(
            [
                name,
                self.settings.sae_format,
                identity(LoadOptions(**self.settings.sae_options)),
            ]
        )

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
        self.check_corpus()
        if self.settings.lm_aligned:
            self.same_architecture(
                self.settings.lm_aligned,
                load_config(self.settings.lm_aligned, mesh=self.mesh),
            )
        _ = self.encoded, self.decoder
        if weights:
            _ = self.params
            if self.firing_positions >= 1000 or self.settings.fitness_tokens:
                _ = self.sae

    def where(
        self, rows: Sequence[TokenRow], scope: str
    ) -> Callable[[RowBatch, np.ndarray], np.ndarray]:
        """The positions of a batch of these rows that count in a scope: `(batch, row_b)
        -> bool [b, t]`.
        """

        def mask(batch: RowBatch, row_b: np.ndarray) -> np.ndarray:
            where_bt = np.zeros(batch.tokens_bt.shape, bool)
            for b, row in enumerate(row_b):
                if row >= 0:
                    counted = scope_mask(rows[row], scope, exclude=self.exclude)
                    where_bt[b, : len(counted)] = counted
            return where_bt

        return mask

    def beside(
        self, sae: str, *, site: str | None = None, site_in: str | None = None
    ) -> Study:
        """The study of another SAE on the same model and pairs; what was loaded already
        is shared.
        """
        other = replace(
            self, settings=replace(self.settings, sae=sae, site=site, site_in=site_in)
        )
        for name in ("cfg", "params", "tokenizer", "pairs", "lm_key"):
            other.__dict__[name] = getattr(
                self, name
            )  # where cached_property keeps its value
        return other

    def model_fields(self) -> dict[str, Any]:
        """What activations depend on, beside the files."""
        return {
            "site": str(self.site),
            "dtype": self.settings.dtype,
            "resid_dtype": self.cfg.resid_dtype,
        }

    def key(self, number: int) -> jax.Array:
        """The random key of one purpose."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)

    def stage(
        self,
        name: str,
        fields: Mapping[str, Any],
        inputs: Mapping[str, str],
        fn: Callable[[Progress], tuple[Mapping[str, Any], Mapping[str, Any]]],
        *,
        version: int | None = None,
    ) -> Result:
        """Loads or computes a stage; with several hosts all compute or none.

        Args:
          fields, inputs, fn: as for `run_stage`.
          version: of a stage that is none of the attribution's; None: as `VERSIONS` has
            it.
        """

        def together(progress: Progress) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            computed = fn(progress)
            from_main(True)  # all are done with `progress` before the writer clears it
            return computed

        number = VERSIONS[name] if version is None else version
        calls = called_by(name)
        declared = {**fields, "calls": calls} if calls else fields
        return run_stage(
            self.store, name, number, declared, inputs, together, agree=from_main
        )

    def batched(self, rows: Sequence[TokenRow]) -> list[tuple[RowBatch, np.ndarray]]:
        """Rows in batches that the mesh can split."""
        return batches(
            rows, batch_size=self._whole(self.settings.batch_size), context=self.context
        )

    def _whole(self, rows: int) -> int:
        """A batch size rounded up to what the mesh's data axis divides."""
        return -(-rows // self.mesh.shape["data"]) * self.mesh.shape["data"]

    @functools.cached_property
    def token_file(self) -> TokenFile | None:
        """The corpus where it is a folder of `write_tokens`; None where it is texts."""
        if not is_token_file(self.settings.corpus):
            return None
        file = open_tokens(self.settings.corpus)
        check_tokenizer(file, self.tokenizer, prepend_bos=self.prepend_bos)
        check_embedding(file, self.cfg.vocab)
        return file

    def check_corpus(self) -> None:
        """Raises ValueError for a corpus that cannot be read; looks at its first text."""
        if self.token_file is None:
            next(iter(self.texts()))

    def texts(self) -> Iterator[str]:
        """Texts of the corpus."""
        s = self.settings
        return read_corpus(s.corpus, column=s.column, split=s.split, tok=self.tokenizer)

    def text_work(self, tokens: int) -> Iterator[CorpusBatch]:
        """Corpus batches (tokens, valid, special) up to exactly `tokens` positions, no
        mask applied.
        """
        rows = self._whole(self.settings.corpus_batch)
        options: dict[str, Any] = {
            "context": self.corpus_context,
            "batch_size": rows,
            "max_tokens": tokens,
        }
        if self.token_file is not None:
            return document_batches(
                documents_of(self.token_file), self.tokenizer, **options
            )
        return corpus_batches(
            self.texts(), self.tokenizer, prepend_bos=self.prepend_bos, **options
        )

    def corpus_work(self, tokens: int | None = None) -> Iterator[CorpusBatch]:
        """Corpus batches up to exactly `tokens` positions (default: the settings'),
        with the masks that tokens tell.

        Outliers are left out by what reads them, with `limits`.
        """
        for tokens_bt, valid_bt, special_bt in self.text_work(
            tokens or self.settings.corpus_tokens
        ):
            yield (
                tokens_bt,
                valid_bt,
                corpus_mask(
                    tokens_bt, valid_bt, special_bt, self.tokenizer, masks=self.masks
                ),
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

    @functools.cached_property
    def corpus_context(self) -> int:
        """Tokens per corpus text."""
        return min(
            self.settings.corpus_context or self.sae_cfg.context_size or self.context,
            self.context,
        )

    @functools.cached_property
    def corpus_key(self) -> str:
        """Names the corpus by its files' contents, and how texts are read from it."""
        s = self.settings
        return digest(
            [fingerprint(s.corpus), s.column, s.split, options_read(self.tokenizer)]
        )

    def corpus_fields(self) -> dict[str, Any]:
        """What corpus statistics depend on, beside the files; the batch size is not
        among it.
        """
        s = self.settings
        rows = {
            "masks": self.masks.to_dict(),
            "prepend_bos": self.prepend_bos,
            "context": self.corpus_context,
        }
        return {**self.model_fields(), **rows, "tokens": s.corpus_tokens}


def training_masks(cfg: SAEConfig) -> Masks:
    """Masks of an SAE's training as far as its file tells; outliers are left out where
    it is silent.
    """
    if cfg.masks is not None:
        return cfg.masks
    return Masks(frozenset({"special"} if cfg.exclude_special else ()))
