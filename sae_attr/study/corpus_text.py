"""The corpus of a study: batches of its tokens, and what names them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sae_attr.activations import CorpusBatch
from sae_attr.store import digest, fingerprint
from sae_attr.study.attribution_settings import Settings
from sae_attr.text.batching import TextBatch, corpus_batches, document_batches
from sae_attr.text.chat import options_read
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.masks import Masks
from sae_attr.text.rows import corpus_mask
from sae_attr.text.token_file import (
    TokenFile,
    check_embedding,
    check_tokenizer,
    documents_of,
    is_token_file,
    open_tokens,
)
from sae_attr.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class CorpusText:
    """Ordinary text of the settings as batches of tokens.

    Args:
      vocab: rows of the model's embedding.
      prepend_bos: whether rows begin with BOS; None: as the tokenizer does.
      masks: tokens that count nowhere.
      context: tokens per text.
      batch_size: texts per batch, a multiple of the mesh's data axis.
    """

    settings: Settings
    tokenizer: Tokenizer
    vocab: int
    prepend_bos: bool | None
    masks: Masks
    context: int
    batch_size: int

    @functools.cached_property
    def token_file(self) -> TokenFile | None:
        """The corpus where it is a folder of `write_tokens`; None where it is texts."""
        if not is_token_file(self.settings.corpus):
            return None
        file = open_tokens(self.settings.corpus)
        check_tokenizer(file, self.tokenizer, prepend_bos=self.prepend_bos)
        check_embedding(file, self.vocab)
        return file

    def check(self) -> None:
        """Raises ValueError for a corpus that cannot be read; looks at its first text."""
        if self.token_file is None:
            next(iter(self.texts()))

    def texts(self) -> Iterator[str]:
        """Reads the texts of the corpus."""
        s = self.settings
        return read_corpus(s.corpus, column=s.column, split=s.split, tok=self.tokenizer)

    def unmasked(self, tokens: int) -> Iterator[TextBatch]:
        """Makes batches (tokens, valid, special) of exactly `tokens` positions, no mask
        applied.
        """
        options: dict[str, Any] = {
            "context": self.context,
            "batch_size": self.batch_size,
            "max_tokens": tokens,
        }
        if self.token_file is None:
            return corpus_batches(
                self.texts(), self.tokenizer, prepend_bos=self.prepend_bos, **options
            )
        documents = documents_of(self.token_file)
        return document_batches(documents, self.tokenizer, **options)

    def batches(self, tokens: int | None = None) -> Iterator[CorpusBatch]:
        """Makes batches of exactly `tokens` positions (default: the settings') with the
        masks that the tokens themselves decide.

        Outliers depend on activations: whoever computes these leaves them out.
        """
        for tokens_bt, valid_bt, special_bt in self.unmasked(
            tokens or self.settings.corpus_tokens
        ):
            counted_bt = corpus_mask(
                tokens_bt, valid_bt, special_bt, self.tokenizer, masks=self.masks
            )
            yield CorpusBatch(tokens_bt, valid_bt, counted_bt)

    @functools.cached_property
    def key(self) -> str:
        """Names the corpus by its files' contents, and how texts are read from it."""
        s = self.settings
        return digest(
            [fingerprint(s.corpus), s.column, s.split, options_read(self.tokenizer)]
        )
