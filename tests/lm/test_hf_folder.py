"""What a model folder's JSON files say, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_attr.lm.hf_folder import end_ids, read_object

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"


def folder_of(
    path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None
) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(
    ("config", "generation", "want"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 0}, None, (0,)),  # an id like any other
        ({"eos_token_id": 2}, {"eos_token_id": [7, 2, 9]}, (7, 2, 9)),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 106}, (106, 1, 2)),
        ({"eos_token_id": None}, {}, ()),
        ({}, {"eos_token_id": 5}, (5,)),
        (
            {
                "text_config": {"vocab_size": 200, "eos_token_id": 1},
                "eos_token_id": [1, 106],
            },
            None,
            (1, 106),
        ),
    ],
)
def test_ids_that_end_a_turn(
    tmp_path: Path, config: Any, generation: Any, want: tuple[int, ...]
) -> None:
    assert end_ids(folder_of(tmp_path, config, generation)) == want


@pytest.mark.parametrize("value", ["2", 2.0, True, -1, [2, None], [[2]], {"id": 2}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_is_no_id_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    given = {"eos_token_id": value}
    folder_of(tmp_path, {"vocab_size": 300, "eos_token_id": 2}, {})
    (tmp_path / name).write_text(json.dumps({"vocab_size": 300} | given))
    with pytest.raises(ValueError, match=rf"{name}: eos_token_id"):
        end_ids(tmp_path)


def test_an_end_beyond_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    folder_of(
        tmp_path,
        {"vocab_size": 300, "eos_token_id": 50256},
        {"eos_token_id": [299, 300]},
    )
    with pytest.warns(
        RuntimeWarning, match=r"eos_token_id 300 lies outside the vocabulary of 300 ids"
    ):
        assert end_ids(tmp_path) == (299,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list where an object is expected"),
        ("[" * 100_000, r"is not JSON \(nested too deeply\)"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_file_that_holds_no_object(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "generation_config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"generation_config.json {message}"):
        read_object(file)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"eos_token_id": 3}')
    assert end_ids(tmp_path) == (3,)
