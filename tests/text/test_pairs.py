"""Files of pairs: what is read, and that every mistake is named with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_attr.text.pairs import read_pairs, read_prompts
from tests.miniatures import write_lines


def test_read_pairs(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": "x"}]
    path = write_lines(
        tmp_path / "pairs.jsonl",
        {
            "id": "a",
            "prompt": "p",
            "positive": "c",
            "negative": ["d", "e"],
            "sampler": "m",
            "scores": [1],
            "note": None,
        },
        "",
        {"prompt": messages, "positive": ["c"], "negative": None},
        {
            "id": 5,
            "prompt_ids": [1, 2],
            "positive_ids": [3],
            "negative_ids": [[4], [5, 6]],
        },
    )
    first, second, third = read_pairs(path)
    assert (first.id, first.positives, first.negatives, first.sampler, first.line) == (
        "a",
        ("c",),
        ("d", "e"),
        "m",
        1,
    )
    assert first.extra == {"scores": [1], "note": None}
    assert (second.id, second.prompt, second.negatives, second.line) == (
        "line-3",
        tuple(messages),
        (),
        3,
    )
    assert (third.id, third.prompt, third.prompt_ids) == ("5", "", (1, 2))
    assert (third.positive_ids, third.negative_ids) == (((3,),), ((4,), (5, 6)))


GOOD = {"prompt": "p", "positive": "c"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a list where an object"),
        ({"positive": "c", "x": 1}, r"'prompt' is missing \(found: positive, x\)"),
        ({"prompt": "p", "negative": "c"}, "'positive' is missing"),
        (
            GOOD | {"prompt": 3},
            "'prompt' is 3; it must be a string or a list of messages",
        ),
        (GOOD | {"prompt": []}, "'prompt' is .*not empty"),
        (
            GOOD | {"prompt": [{"role": "user"}]},
            "message 0 of 'prompt' .* needs the strings role and content",
        ),
        (GOOD | {"prompt": ["hi"]}, "message 0 of 'prompt'"),
        (
            GOOD | {"positive": 1},
            "'positive' is 1; it must be a string or a list of strings",
        ),
        (GOOD | {"negative": ["a", 2]}, "'negative' is .*list of strings"),
        (GOOD | {"positive": ""}, "'positive' is empty or holds an empty completion"),
        (GOOD | {"positive": []}, "'positive' is empty"),
        (GOOD | {"negative": ["a", ""]}, "'negative' is empty or holds"),
        (GOOD | {"id": True}, "'id' is True"),
        (GOOD | {"id": [1]}, "'id' is"),
        (GOOD | {"id": "first"}, "id 'first' stands on line 1 too"),
        (GOOD | {"sampler": 3}, "'sampler' is 3"),
        ('{"prompt": "p\\ud800", "positive": "c"}', "half of a surrogate pair"),
        (
            GOOD | {"prompt_ids": [1.5], "positive_ids": [1]},
            "'prompt_ids' must be a list of token ids",
        ),
        (GOOD | {"positive_ids": [True]}, "'positive_ids' must be"),
        (GOOD | {"positive_ids": [-1]}, "'positive_ids' must be"),
        (GOOD | {"positive_ids": []}, "empty list of token ids"),
        (GOOD | {"positive_ids": [[1], []]}, "empty list of token ids"),
        (
            GOOD | {"prompt_ids": [[1], [2]], "positive_ids": [1]},
            "2 lists but a record has one prompt",
        ),
        (
            GOOD | {"positive_ids": [[1], [2]]},
            "1 texts in 'positive' but 2 in 'positive_ids'",
        ),
        (GOOD | {"prompt_ids": [1]}, "'positive' is text only .* add 'positive_ids'"),
        (GOOD | {"negative": "d", "positive_ids": [1]}, "'negative' is text only"),
    ],
)
def test_bad_pairs_are_named_with_file_and_line(
    tmp_path: Path, line: Any, message: str
) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", GOOD | {"id": "first"}, "", line)
    with pytest.raises(ValueError, match=rf"pairs.jsonl:3.*{message}"):
        read_pairs(path)


def test_empty_and_undecodable_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.jsonl has no records"):
        read_pairs(write_lines(tmp_path / "pairs.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(
        b'{"prompt": "p", "positive": "c"}\n{"prompt": "\xe9"}\n'
    )
    with pytest.raises(ValueError, match=r"latin.jsonl:2: byte 12 is not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


def test_ids_of_prompts_are_read_as_those_of_pairs(tmp_path: Path) -> None:
    """A null id, as tables write it, is none; anything but a text or a whole number is
    no id.
    """
    path = write_lines(
        tmp_path / "nulls.jsonl",
        GOOD | {"id": None},
        GOOD | {"id": None},
        GOOD | {"id": 7},
    )
    for read in (read_pairs, read_prompts):
        assert [record.id for record in read(path)] == ["line-1", "line-2", "7"]
        for name in ({"a": 1}, True, 1.5):
            with pytest.raises(
                ValueError,
                match=r"bad.jsonl:1: 'id' is .*; it must be a string or an integer",
            ):
                read(write_lines(tmp_path / "bad.jsonl", GOOD | {"id": name}))
