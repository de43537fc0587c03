"""What a study reads of its model's texts: one corpus in every form, one template with
its options, one set of ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_attr import parallel
from sae_attr.sae.config import SAEConfig
from sae_attr.store import Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.setup import Setup
from sae_attr.text.token_file import write_tokens
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import CHATML, write_lines, write_llama, write_tokenizer

TEXTS = ["one text", "another, longer text", "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(
        write_llama(tmp_path_factory.mktemp("lm"), vocab=100), chat_template=CHATML
    )


def study_of(model: Path, store: Path, corpus: Path, **settings: Any) -> Setup:
    return Setup(
        Settings(
            lm=str(model),
            sae="",
            pairs=str(corpus),
            corpus=str(corpus),
            corpus_batch=2,
            **settings,
        ),
        Store(store),
        parallel.make_mesh("data=1"),
        progress=False,
        stated_sae=SAEConfig(16, 16, 1),
    )


def test_a_corpus_in_every_form_gives_the_same_batches(
    model: Path, tmp_path: Path
) -> None:
    tok = load_tokenizer(model)
    forms: list[tuple[Path, dict[str, Any]]] = [
        (write_lines(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS)), {}),
        (
            write_lines(tmp_path / "b.jsonl", *({"story": text} for text in TEXTS)),
            {"column": "story"},
        ),
        (tmp_path / "split", {"split": "train"}),
        (tmp_path / "tokens", {}),
    ]
    (tmp_path / "split").mkdir()
    for name, texts in (("train", TEXTS), ("test", ["no"])):
        (tmp_path / f"split/{name}.json").write_text(json.dumps(texts))
    write_tokens(TEXTS, tok, tmp_path / "tokens", prepend_bos=True)
    batches = []
    for corpus, settings in forms:
        study = study_of(
            model, tmp_path / "store", corpus, prepend_bos=True, **settings
        )
        study.corpus.check()
        batches.append(list(study.corpus.unmasked(30)))
    for other in batches[1:]:
        for mine, theirs in zip(batches[0], other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(
        ValueError, match="made with prepend_bos=True, here it is False"
    ):
        study_of(
            model, tmp_path / "store", tmp_path / "tokens", prepend_bos=False
        ).corpus.check()


def test_a_token_file_of_another_tokenizer_is_refused(
    model: Path, tmp_path: Path
) -> None:
    other = load_tokenizer(write_tokenizer(tmp_path / "other", pieces=("ab",)))
    write_tokens(TEXTS, other, tmp_path / "tokens")
    with pytest.raises(
        ValueError,
        match=r"made by a tokenizer whose vocab_size is 106, that of .* is 105",
    ):
        study_of(model, tmp_path / "store", tmp_path / "tokens").corpus.check()


def test_tokens_beyond_the_embedding_are_named_where_they_occur(
    model: Path, tmp_path: Path
) -> None:
    """The tokenizer has 105 ids, the model 100 rows: only a text with one of the last
    five is refused.
    """
    beyond = load_tokenizer(model).backend.id_to_token(104)
    corpus = write_lines(tmp_path / "c.jsonl", '"a"', json.dumps(f"b{beyond}"))
    study = study_of(model, tmp_path / "store", corpus)
    with pytest.raises(
        ValueError,
        match=rf"text 1 \('b{beyond}'\): token id 104 .* beyond the model's embedding of 100",
    ):
        list(study.corpus.unmasked(30))
    write_tokens(["a", f"b{beyond}"], load_tokenizer(model), tmp_path / "tokens")
    with pytest.raises(
        ValueError, match=r"document 1 of the token file .* has the token id 104"
    ):
        study_of(model, tmp_path / "store", tmp_path / "tokens").corpus.check()
    pairs = write_lines(
        tmp_path / "p.jsonl",
        {"prompt": "a", "positive": "b"},
        {"prompt": "a", "positive": f"b{beyond}"},
    )
    with pytest.raises(ValueError, match=r"p.jsonl:2: token id 104"):
        _ = study_of(model, tmp_path / "store", pairs).encoded


def test_template_options_reach_prompts_and_names_of_stages(
    model: Path, tmp_path: Path
) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", '"a"')
    dated = write_tokenizer(
        write_llama(tmp_path / "lm", vocab=110),
        chat_template="{{ strftime_now('%Y') }}" + CHATML,
    )
    studies = [
        study_of(
            dated,
            tmp_path / "store",
            corpus,
            template_options={"date": f"{year}-01-01"},
        )
        for year in (2024, 2024, 2025)
    ]
    assert studies[0].corpus_key == studies[1].corpus_key != studies[2].corpus_key
    plain = [
        study_of(
            model,
            tmp_path / "store",
            corpus,
            template_options={"date": f"{year}-01-01"},
        )
        for year in (2024, 2025)
    ]
    assert (
        plain[0].corpus_key == plain[1].corpus_key
    )  # a template that writes no date does not depend on one
