"""A tokenised corpus on disk, memory-mapped: documents one after another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from etils import epath
from tqdm import tqdm

from sae_attr.store import Meta, PathLike, Store, digest, fingerprint
from sae_attr.store.files import is_local
from sae_attr.text.chat import options_read
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.tokenizer import Tokenizer, adds_bos, check_ids, encode_many
from sae_attr.text.tokenizer_folder import tokenizer_fingerprint

VERSION = 1  # part of every cache key: raise it when the same inputs give other bytes


# Texts encoded at once: the library's threads need several, memory holds them all.
_TEXTS = 256


_IDS, _STARTS = "ids.bin", "starts.bin"


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A tokenised corpus; made by `write_tokens` or `cached_tokens`, opened by
    `open_tokens`.

    Args:
      ids_k: uint16 or uint32 [k], memory-mapped: all documents, each with the BOS and
        EOS that were asked for.
      starts_s: int64 [documents + 1], memory-mapped: document i is ids_k[starts_s[i] :
        starts_s[i + 1]].
      meta: plain values: tokens, documents, max_id, vocab_size, bos_id, eos_id,
        special_ids, prepend_bos, append_eos, and the sha256 of the ids.
    """

    ids_k: np.ndarray
    starts_s: np.ndarray
    meta: Meta


def write_tokens(
    texts: Iterable[str],
    tok: Tokenizer,
    path: PathLike,
    *,
    prepend_bos: bool | None = None,
    append_eos: bool = False,
    max_tokens: int | None = None,
    note: Meta | None = None,
    progress: bool = False,
) -> TokenFile:
    """Tokenises texts into the folder `path`, which is there whole or not at all; one
    that is there is opened as it is.

    Args:
      texts: one document each; never held all at once.
      prepend_bos: a BOS in front of each document; None leaves it to the tokenizer.
      append_eos: an EOS after each document.
      max_tokens: stop after exactly this many; the last document may be cut.
      note: further plain values for `meta`: where the texts came from.

    Raises:
      ValueError: no token at all, a BOS or EOS that the tokenizer lacks, a path that is
        not on a local disk.
    """
    folder = _local(path)
    if append_eos and tok.eos_id is None:
        raise ValueError(
            f"{tok.path}: EOS is asked for but the tokenizer has none; set "
            "append_eos=False"
        )
    if append_eos and tok.eos_id is not None:
        check_ids(tok, [tok.eos_id])
    add_bos = adds_bos(tok) if prepend_bos is None else prepend_bos
    store = Store(folder.parent)
    if not store.has(folder.name):
        documents = _encoded(texts, tok, add_bos, append_eos, max_tokens)
        meta = (
            _meta(tok, add_bos, append_eos) | {"max_tokens": max_tokens} | (note or {})
        )
        store.publish(
            folder.name,
            meta=meta,
            write=lambda out: _write(out, documents, tok, progress),
        )
    return open_tokens(folder)


def cached_tokens(
    corpus: str | Path,
    tok: Tokenizer,
    root: PathLike,
    *,
    column: str = "text",
    split: str | None = None,
    prepend_bos: bool | None = None,
    append_eos: bool = False,
    max_tokens: int | None = None,
    progress: bool = False,
) -> TokenFile:
    """Does `write_tokens` of `read_corpus(corpus, column, split)` into a folder of `root`
    named after all that decides it.

    Raises:
      ValueError: as `read_corpus` and `write_tokens`.
    """
    contents = ""  # of an absent corpus: the reader says what is wrong
    if Path(corpus).exists():
        contents = fingerprint(corpus)
    made_of: Meta = {
        "corpus": contents,
        "template": digest([tok.chat_template, options_read(tok)]),  # of conversations
        "tokenizer": tokenizer_fingerprint(tok.path),
        "column": column,
        "split": split,
        "max_tokens": max_tokens,
    }
    add_bos = adds_bos(tok) if prepend_bos is None else prepend_bos
    key = digest([VERSION, made_of, _meta(tok, add_bos, append_eos)])
    path = epath.Path(root) / f"tokens-{key}"
    texts: Iterable[str] = ()
    if not Store(root).has(path.name):
        texts = read_corpus(corpus, column=column, split=split, tok=tok)
    note = made_of | {"corpus_path": str(corpus)}
    return write_tokens(
        texts,
        tok,
        path,
        prepend_bos=add_bos,
        append_eos=append_eos,
        max_tokens=max_tokens,
        note=note,
        progress=progress,
    )


def open_tokens(path: PathLike) -> TokenFile:
    """Opens a folder that `write_tokens` made.

    Raises:
      ValueError: no complete token file lies there.
    """
    folder = _local(path)
    if not Store(folder.parent).has(folder.name) or not (folder / _STARTS).exists():
        raise ValueError(
            f"{os.fspath(folder)} holds no complete token file; make one with "
            "write_tokens"
        )
    meta = json.loads((folder / "meta.json").read_text())
    meta |= json.loads((folder / "counts.json").read_text())
    # Not computed anew: to read all ids would take as long as a pass over the corpus.
    manifest = json.loads((folder / "manifest.json").read_text())
    meta["sha256"] = manifest["files"][_IDS]["sha256"]
    ids_k = np.memmap(folder / _IDS, _id_dtype(meta["vocab_size"]), "r")
    return TokenFile(ids_k, np.memmap(folder / _STARTS, np.int64, "r"), meta)


def is_token_file(path: PathLike) -> bool:
    """Returns True for a folder of `write_tokens`, rather than one of texts."""
    return (epath.Path(path) / _IDS).exists()


def check_tokenizer(
    file: TokenFile, tok: Tokenizer, *, prepend_bos: bool | None = None
) -> None:
    """Raises ValueError for a token file of another tokenizer, or with another BOS than
    the one asked for (None: any).
    """
    expected = _meta(tok, False, False)
    for name in ("vocab_size", "bos_id", "eos_id", "special_ids"):
        if file.meta[name] != expected[name]:
            raise ValueError(
                f"the token file was made by a tokenizer whose {name} is "
                f"{str(file.meta[name])[:80]}, that of {tok.path} is "
                f"{str(expected[name])[:80]}; take the text, or a token file of this tokenizer"
            )
    if (
        prepend_bos is not None
        and tok.bos_id is not None
        and file.meta["prepend_bos"] != prepend_bos
    ):
        raise ValueError(
            f"the token file was made with prepend_bos={file.meta['prepend_bos']}, "
            f"here it is {prepend_bos}; make one as "
            "wanted, or set prepend_bos"
        )


def documents_of(file: TokenFile) -> Iterator[np.ndarray]:
    """Yields the documents, one after another."""
    for low, high in pairwise(file.starts_s):
        yield file.ids_k[low:high]


def check_embedding(file: TokenFile, rows: int) -> None:
    """Raises ValueError where a document has a token that a model with so many
    embedding rows lacks; names the document.

    A vocabulary that merely has more tokens than the model is no fault.
    """
    highest = file.meta.get("max_id")  # absent in a file of before it was counted
    if (int(file.ids_k.max()) if highest is None else highest) < rows:
        return
    place = int(np.argmax(np.asarray(file.ids_k) >= rows))
    document = int(np.searchsorted(file.starts_s, place, side="right")) - 1
    raise ValueError(
        f"document {document} of the token file (from 0) has the token id "
        f"{file.ids_k[place]}, beyond the model's embedding "
        f"of {rows} rows; leave that token out of the text, or tokenise with the "
        "model's own tokenizer"
    )


def _local(path: PathLike) -> epath.Path:
    path = epath.Path(path)
    if not is_local(path):
        raise ValueError(
            f"{os.fspath(path)}: a token file is memory-mapped; put it on a local disk"
        )
    return path


def _id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _meta(tok: Tokenizer, add_bos: bool, append_eos: bool) -> Meta:
    """Returns what of the tokenizer decides the tokens or their masks."""
    return {
        "vocab_size": tok.vocab_size,
        "bos_id": tok.bos_id,
        "eos_id": tok.eos_id,
        "special_ids": sorted(tok.special_ids),
        "prepend_bos": add_bos,
        "append_eos": append_eos,
    }


def _encoded(
    texts: Iterable[str],
    tok: Tokenizer,
    add_bos: bool,
    append_eos: bool,
    max_tokens: int | None,
) -> Iterable[list[int]]:
    """Yields token ids of each document that has any, up to `max_tokens` in all."""
    left, source, number = max_tokens, iter(texts), 0
    end = [tok.eos_id] if append_eos and tok.eos_id is not None else []
    while left != 0 and (chunk := list(islice(source, _TEXTS))):
        for ids in encode_many(tok, chunk, add_bos=add_bos, first=number):
            ids = [*ids, *end][:left]
            left = None if left is None else left - len(ids)
            if ids:
                yield ids
        number += len(chunk)


def _write(
    folder: epath.Path,
    documents: Iterable[Sequence[int]],
    tok: Tokenizer,
    progress: bool,
) -> None:
    """Appends the documents to the two binary files; ValueError if there is none."""
    dtype, tokens, count, highest = _id_dtype(tok.vocab_size), 0, 0, 0
    bar = tqdm(desc="tokens", unit="tok", unit_scale=True, disable=not progress)
    with (
        bar,
        open(folder / _IDS, "wb") as ids_file,
        open(folder / _STARTS, "wb") as starts_file,
    ):
        for ids in documents:
            np.asarray(ids, dtype).tofile(ids_file)
            np.int64(tokens).tofile(starts_file)
            tokens, count, highest = tokens + len(ids), count + 1, max(highest, *ids)
            bar.update(len(ids))
        np.int64(tokens).tofile(starts_file)
    if not tokens:
        raise ValueError(
            "the corpus gives no token; it needs at least one text that is not blank"
        )
    (folder / "counts.json").write_text(
        json.dumps({"tokens": tokens, "documents": count, "max_id": highest})
    )
