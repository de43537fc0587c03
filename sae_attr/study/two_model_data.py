"""Activations of a model and of the one before its fine-tune, for a crosscoder or an SAE
of their difference: what the two models must share, and their held-out tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sae_attr.activations import DIFFERENCE, SIDE_BY_SIDE, ActivationSource
from sae_attr.activations.blocks import Collect
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.report.safe_text import one_line
from sae_attr.sae.train_choices import CROSSCODERS
from sae_attr.sae_check import HeldOut
from sae_attr.sae_check.held_out import check_enough, documents_with
from sae_attr.text.packed_rows import Packing
from sae_attr.text.token_file import TokenFile, check_tokenizer
from sae_attr.text.tokenizer import token_strings
from sae_attr.text.tokenizer_folder import load_tokenizer

_COMPARED = 50_000  # tokens of the corpus whose texts are compared


def join_of(objective: str, lm_base: str | None) -> str:
    """Returns how the activations of two models are joined for an objective; "" where
    there is one model.

    Raises:
      ValueError: a crosscoder of one model.
    """
    if objective in CROSSCODERS:
        if not lm_base:
            raise ValueError(
                f"objective {objective} reads two models, but lm_base is unset; give "
                "the model that lm was fine-tuned from"
            )
        return SIDE_BY_SIDE
    return DIFFERENCE if lm_base else ""


def check_widths(base: LMConfig, tuned: LMConfig) -> None:
    """Raises ValueError for models whose activations at a site are not comparable."""
    for name in ("d_model", "n_layers", "vocab"):
        ours, other = getattr(tuned, name), getattr(base, name)
        if ours != other:
            raise ValueError(
                f"lm has {name}={ours} and lm_base {name}={other}; a comparison needs a "
                "model and its own fine-tune"
            )


def check_base(lm_base: str, tuned: LMConfig, lm: str, file: TokenFile) -> None:
    """Checks that a token file of one model says the same to the other.

    Raises:
      ValueError: other widths, or tokens that are other text.
    """
    base = load_config(lm_base)
    check_widths(base, tuned)
    tokenizers = []
    for name in (lm, lm_base):
        folder = resolve_model(name)
        tokenizers.append(load_tokenizer(folder, embedding_rows=base.vocab))
    check_tokenizer(file, tokenizers[1])
    ids = np.unique(np.asarray(file.ids_k[:_COMPARED]))
    texts = [token_strings(tok, ids) for tok in tokenizers]
    for token, tuned_text, base_text in zip(ids, *texts, strict=True):
        if tuned_text != base_text:
            raise ValueError(
                f"token {token} is {one_line(repr(tuned_text))} to lm and "
                f"{one_line(repr(base_text))} to lm_base; a comparison needs one "
                "tokenizer"
            )


def joined_held_out(
    collect: Collect, source: ActivationSource, documents: range, tokens: int
) -> HeldOut:
    """Collects joined activations of about `tokens` positions of whole documents; no
    loss is measured on them, since two models read them.

    Args:
      collect: of the source of `held_out_source`.

    Raises:
      ValueError: too few tokens count.
    """
    rows = documents_with(source, source.packing, documents, tokens)
    collected = collect(np.asarray(rows))
    check_enough(len(collected.ids_k2), len(documents))
    acts = {site: x_kd[:tokens] for site, x_kd in collected.acts.items()}
    return HeldOut(acts, {}, tokens)


def held_out_source(source: ActivationSource, documents: range) -> ActivationSource:
    """Returns the source of held-out documents, one a row, under the same masks and norm
    limits.
    """
    packing = Packing(
        source.packing.context, documents="cut", row_bos=source.packing.row_bos
    )
    return replace(source, packing=packing, rows=documents)
