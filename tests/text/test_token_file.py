"""Token files: every token once, rows by number, documents kept apart, nothing half
written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sae_attr.text.packed_rows import Packing, documents_at, row_count, rows_at
from sae_attr.text.token_file import TokenFile, cached_tokens, open_tokens, write_tokens
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_lines, write_tokenizer

TEXTS = ["abcdefg", "h", "ijklmnopqrstuv", "wxyz", "01234567890123456789"]
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tok"), post=True))


def texts_of(file: TokenFile, tok: Tokenizer) -> list[str]:
    """The documents as text; characters are tokens."""
    parts = [file.ids_k[a:b] for a, b in zip(file.starts_s[:-1], file.starts_s[1:])]
    return [
        "".join(str(tok.backend.id_to_token(int(i))) for i in part) for part in parts
    ]


def test_the_file_holds_the_documents(tmp_path: Path, tok: Tokenizer) -> None:
    file = write_tokens(iter(TEXTS), tok, tmp_path / "t", append_eos=True)
    assert texts_of(file, tok) == [f"<s>{text}</s>" for text in TEXTS]
    assert file.ids_k.dtype == np.uint16
    assert (file.meta["tokens"], file.meta["documents"]) == (len(file.ids_k), 5)
    bare = write_tokens(TEXTS, tok, tmp_path / "bare", prepend_bos=False, max_tokens=10)
    assert texts_of(bare, tok) == ["abcdefg", "h", "ij"]


@pytest.mark.parametrize("context", [4, 5, 8, 64])
@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("row_bos", [True, False])
def test_rows_hold_every_token_once(
    tmp_path: Path, tok: Tokenizer, context: int, prepend_bos: bool, row_bos: bool
) -> None:
    file = write_tokens(TEXTS, tok, tmp_path / "t", prepend_bos=prepend_bos)
    packing = Packing(context, row_bos=row_bos)
    rows = rows_at(file, range(row_count(file, packing)), packing)
    got = rows.tokens_bt[rows.valid_bt]
    assert got[got != BOS].tolist() == [i for i in file.ids_k.tolist() if i != BOS]
    assert not (
        (rows.tokens_bt[:, 1:] == BOS)
        & (rows.tokens_bt[:, :-1] == BOS)
        & rows.valid_bt[:, 1:]
    ).any()
    assert not row_bos or (rows.tokens_bt[:, 0] == BOS).all()
    documents = np.stack(
        [documents_at(file, i, packing) for i in range(len(rows.tokens_bt))]
    )
    assert (documents >= 0).tolist() == rows.valid_bt.tolist()
    for d, text in enumerate(TEXTS):
        ids = rows.tokens_bt[(documents == d) & (rows.tokens_bt != BOS)]
        assert "".join(str(tok.backend.id_to_token(int(i))) for i in ids) == text
    # segments change exactly where documents do, and positions count from there
    both = rows.valid_bt[:, 1:]
    changed = (np.diff(documents, axis=1) != 0)[both]
    assert (np.diff(rows.segment_bt, axis=1) != 0)[both].tolist() == changed.tolist()
    assert ((rows.since_bt[:, 1:] == 0)[both]).tolist() == changed.tolist()
    assert (rows.pos_bt == rows.since_bt).all()


def test_a_row_in_full(tmp_path: Path, tok: Tokenizer) -> None:
    file = write_tokens(["abc", "defghi"], tok, tmp_path / "t")
    a, rows = tok.backend.token_to_id("a"), rows_at(file, [1, -1, 0], Packing(6))
    assert rows.tokens_bt.tolist() == [
        [0, a + 3, a + 4, a + 5, a + 6, a + 7],
        [0] * 6,
        [0, a, a + 1, a + 2, 0, 0],
    ]
    assert rows.valid_bt.tolist() == [[True] * 6, [False] * 6, [True] * 5 + [False]]
    assert rows.segment_bt[2].tolist() == [0, 0, 0, 0, 1, 1]
    assert rows.since_bt[2].tolist() == [0, 1, 2, 3, 0, 1]
    together = rows_at(file, [0], Packing(6, separate=False))
    assert together.segment_bt.tolist() == [[0] * 6]
    assert (together.pos_bt[0].tolist(), together.since_bt[0, 4]) == ([*range(6)], 0)
    cut = rows_at(file, [0, 1], Packing(5, documents="cut"))
    assert cut.tokens_bt.tolist() == [
        [0, a, a + 1, a + 2, 0],
        [0, a + 3, a + 4, a + 5, a + 6],
    ]
    assert cut.valid_bt.sum() == 9
    with pytest.raises(IndexError, match="row 3 of a token file that has 3 rows"):
        rows_at(file, [3], Packing(6))


def test_the_cache_is_found_again(tmp_path: Path, tok: Tokenizer) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", *[{"body": text} for text in TEXTS])
    first = cached_tokens(corpus, tok, tmp_path / "cache", column="body")
    assert first.meta["corpus_path"] == str(corpus)
    again = cached_tokens(
        corpus, tok, tmp_path / "cache", column="body", prepend_bos=True
    )
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert again.ids_k.tolist() == first.ids_k.tolist()
    cached_tokens(corpus, tok, tmp_path / "cache", column="body", append_eos=True)
    write_lines(corpus, {"body": "other"})
    other = cached_tokens(corpus, tok, tmp_path / "cache", column="body")
    assert texts_of(other, tok) == ["<s>other"]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_reader_that_fails_leaves_nothing(tmp_path: Path, tok: Tokenizer) -> None:
    def broken() -> Iterator[str]:
        yield from ["x"] * 300
        raise ValueError("line 301 is broken")

    with pytest.raises(ValueError, match="line 301"):
        write_tokens(broken(), tok, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="holds no complete token file"):
        open_tokens(tmp_path / "t")


def test_bad_input(tmp_path: Path, tok: Tokenizer) -> None:
    with pytest.raises(ValueError, match="the corpus gives no token"):
        write_tokens([], tok, tmp_path / "t")
    with pytest.raises(
        ValueError, match="documents 'split' is unknown; choose one of continue, cut"
    ):
        Packing(8, documents="split")
    with pytest.raises(ValueError, match="a context of 1 leaves no room"):
        Packing(1)
    plain = load_tokenizer(
        write_tokenizer(tmp_path / "plain", bos_token=None, eos_token=None)
    )
    with pytest.raises(ValueError, match="EOS is asked for"):
        write_tokens(TEXTS, plain, tmp_path / "t", append_eos=True)
    with pytest.raises(ValueError, match="BOS is asked for"):
        write_tokens(TEXTS, plain, tmp_path / "t", prepend_bos=True)
    with pytest.raises(ValueError, match="has no BOS; set row_bos=False"):
        rows_at(
            write_tokens(TEXTS, plain, tmp_path / "t"), [0], Packing(8, row_bos=True)
        )
    with pytest.raises(ValueError, match="put it on a local disk"):
        open_tokens("gs://bucket/tokens")
