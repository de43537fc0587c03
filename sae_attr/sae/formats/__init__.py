"""SAE weights of other libraries as one pytree: `load_sae`, `open_decoder`,
`read_config`.

A path is a folder, a weight file, a name of SAELens' registry (`RELEASE/ID`), or
`hf://owner/repo/folder@revision`; names and tensors tell the format.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from sae_attr.files.row_source import RowSource
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import (
    circuit_tracer,
    crosscoder,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    kissane,
    linear,
    llama_scope,
    llamascopium,
    locate,
    openai,
    plain,
    saelens,
    sparsify,
    temporal,
)
from sae_attr.sae.formats.checks import check_options, escaped
from sae_attr.sae.formats.format import Format
from sae_attr.sae.formats.locate import parse_hub
from sae_attr.sae.formats.parts import LoadOptions, Parts, materialise, subset
from sae_attr.sae.model import SAE
from sae_attr.sae.registry.names import completed, named_sae
from sae_attr.store import fingerprint

__all__ = [
    "FORMATS",
    "LoadOptions",
    "identity",
    "load_sae",
    "open_decoder",
    "parse_hub",
    "pinned",
    "read_config",
]

_ALL = (
    gemma_scope.FORMAT,
    openai.FORMAT,
    linear.GOODFIRE,
    gemma_scope_2.FORMAT,
    gemma_scope_2.CROSSCODER,
    llamascopium.FORMAT,
    crosscoder.FORMAT,
    kissane.CROSSCODER,
    sparsify.FORMAT,
    llama_scope.FORMAT,
    linear.QRESEARCH,
    circuit_tracer.FORMAT,
    saelens.FORMAT,
    temporal.FORMAT,
    kissane.HOOK_Z,
    linear.QWEN_SCOPE,
    dictionary_learning.FORMAT,
    plain.FORMAT,
)
# Name -> format, in the order of detection: from releases with marks of their own to
# libraries whose files look alike, and to files of no library. A new format is a module
# with its record, and one line here.
FORMATS: dict[str, Format] = {known.name: known for known in _ALL}


def load_sae(
    path: str | os.PathLike[str],
    *,
    fmt: str = "auto",
    dtype: str = "float32",
    latents: Sequence[int] | np.ndarray | None = None,
    **options: Unpack[LoadOptions],
) -> SAE:
    """Loads an SAE, transcoder or crosscoder of any known format, with the codes of the
    library that wrote it.

    Everything that folds exactly is folded in float32 before the cast
    (`SAEConfig.folded` says what).

    Args:
      path: folder, weight file, `RELEASE/ID` of SAELens' registry with or without
        `@revision`, or `hf://owner/repo/folder@revision`. What exists here goes first.
      fmt: one of `FORMATS`, or "auto".
      dtype: of the weights in memory and so of the arithmetic; "bfloat16" does as
        SAELens does with a bfloat16 SAE.
      latents: these alone, in this order, become an SAE of their own, and the rest of
        the file stays unread; for gates that look at one latent at a time.
      **options: answers to what a file leaves open, see `LoadOptions`.

    Raises:
      ValueError: no format or several; config and tensors that disagree; NaN or
        infinite weights; anything that the file leaves open, with the option that
        settles it; `latents` of an SAE whose gate compares them.
      FileNotFoundError: nothing at the path.
    """
    parts = _parts(path, fmt, options)
    return materialise(
        parts if latents is None else subset(parts, np.asarray(latents, np.int64)),
        dtype,
    )


def open_decoder(
    path: str | os.PathLike[str], *, fmt: str = "auto", **options: Unpack[LoadOptions]
) -> RowSource:
    """Opens the decoder: rows `[n, m]` that are read from disk as they are asked for,
    equal to those of `load_sae(path)`.

    Errors as for `load_sae`, and a ValueError for a crosscoder without `layer=` or
    `model=`. Weights are not scanned for NaN here.
    """
    return _parts(path, fmt, options).dec


def read_config(
    path: str | os.PathLike[str], fmt: str = "auto", **options: Unpack[LoadOptions]
) -> SAEConfig:
    """Reads the config alone; the weights are mapped to learn their shapes.

    Errors as for `load_sae`.
    """
    return _parts(path, fmt, options).cfg


def identity(options: LoadOptions) -> dict[str, Any]:
    """Returns the options as a name for what is loaded with them: a file that one of
    them names counts by its contents.
    """
    named = dict(options)
    mean = options.get("mean")
    if mean is not None and Path(mean).is_file():
        named["mean"] = fingerprint(mean)
    return named


def pinned(url: str) -> str:
    """Returns a hub address or a registered name with the commit that its branch or tag
    stands for now, so that everything later reads that commit.

    Errors as for `load_sae`.
    """
    named = named_sae(url)
    if named is None:
        return locate.pinned(url, FORMATS)
    named.check_read()
    return named.pinned(locate.commit_of(named.url, FORMATS))


def _parts(path: str | os.PathLike[str], fmt: str, options: LoadOptions) -> Parts:
    if fmt != "auto" and fmt not in FORMATS:
        raise ValueError(f"fmt={fmt!r} is unknown; known: auto, {', '.join(FORMATS)}")
    check_options(options)
    named = named_sae(path)
    if named is not None:
        named.check_read()
        # The release says the format; files alone may leave it open.
        fmt = named.release.loader.format if fmt == "auto" else fmt
    url = str(path) if named is None else named.url
    local = locate.fetch(url, FORMATS) if url.startswith("hf://") else Path(path)
    parts = _read(local, fmt, options)
    if named is None:
        return parts
    cfg = completed(named, parts.cfg, stated_site="site" in options)
    return replace(parts, cfg=cfg)


def _read(local: Path, fmt: str, options: LoadOptions) -> Parts:
    fmt, weights = locate.detect(local, fmt, FORMATS)
    if fmt == "plain" and "dict_class" in options:  # the answer names the library
        fmt = "dictionary_learning"
    try:
        # Readers scale small vectors; NaN and infinity among them are found where the
        # weights are read.
        with np.errstate(all="ignore"):
            return FORMATS[fmt].read(weights, options)
    except ValueError as error:
        place = "" if os.fspath(weights.parent) in str(error) else f"{weights}: "
        raise ValueError(escaped(f"{place}{error}")) from error
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        # A config or state dict may hold anything; the readers check what they expect,
        # and this what they do not.
        raise ValueError(
            escaped(
                f"{weights} or its config is not as a {fmt} SAE has it "
                f"({type(error).__name__}: {str(error)[:200]}); "
                "fetch it again, or say fmt= (fmt=plain for a file of your own)"
            )
        ) from error
