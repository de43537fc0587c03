"""Hugging Face tokenizer folders, and the tokenizers of GGUF files, read as a
`Tokenizer`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from sae_attr.files.gguf_header import is_gguf
from sae_attr.files.gguf_parts import read_gguf
from sae_attr.files.packages import PREFIX, package_model
from sae_attr.files.text import check_regular, json_value, utf8
from sae_attr.store import fingerprint
from sae_attr.text.gguf_tokenizer import tokenizer_files
from sae_attr.text.tokenizer import Tokenizer, library_errors, post_processor_first
from sae_attr.text.tokenizer_checks import check_pieces

_MAX_BYTES = (
    1 << 29
)  # of a tokenizer.json; that of the largest vocabularies has some 40 MB


_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(path: str | Path, *, embedding_rows: int | None = None) -> Tokenizer:
    """Reads tokenizer.json and, where present, tokenizer_config.json,
    special_tokens_map.json, chat_template.jinja; or the tokenizer of a .gguf file.

    Args:
      path: folder, .gguf file, or the one of an installed package, `pip:NAME`.
      embedding_rows: of the model that will read the ids. The tokenizer may have more:
        only a text that uses them is refused.

    Raises:
      ValueError: no tokenizer.json, a file that cannot be read, a named BOS/EOS that
        the vocabulary lacks, several chat templates of which none is called default.
    """
    in_package = str(path).startswith(PREFIX)
    folder = package_model(str(path)) if in_package else Path(path)
    if is_gguf(folder):
        whole, config = tokenizer_files(read_gguf(folder))
        backend = _backend(json.dumps(whole), str(folder))
    else:
        backend = _load_backend(folder)
        config = _read_json(folder / "special_tokens_map.json") | _read_json(
            folder / "tokenizer_config.json"
        )
    tokens = {}
    for name in _NAMED:
        text = _token_text(config.get(name))
        if text is not None:
            tokens[name] = text
    if "bos_token" not in tokens:
        first = post_processor_first(backend)
        if first is not None:
            tokens["bos_token"] = str(backend.id_to_token(first))
    ids = {name: backend.token_to_id(text) for name, text in tokens.items()}
    for name in ("bos_token", "eos_token"):
        if name in tokens and ids[name] is None:
            raise ValueError(
                f"{folder}: the configuration names {name} {tokens[name]!r} but "
                "tokenizer.json has no such token; "
                "take both files from the same model"
            )
    add_bos = config.get("add_bos_token")
    return Tokenizer(
        path=str(folder),
        backend=backend,
        tokens={name: text for name, text in tokens.items() if ids[name] is not None},
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        pad_id=ids.get("pad_token"),
        special_ids=_special_ids(backend, config, ids),
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        add_bos_token=add_bos if isinstance(add_bos, bool) else None,
        chat_template=_chat_template(folder, config),
        embedding_rows=embedding_rows,
    )


def tokenizer_fingerprint(path: str | Path) -> str:
    """Names a tokenizer by its file's contents: tokenizer.json of a folder, or the GGUF
    file itself.
    """
    return fingerprint(path if is_gguf(path) else Path(path) / "tokenizer.json")


def folder_template(path: str | Path) -> str | None:
    """Returns the chat template that a folder or GGUF file holds, with or without a
    tokenizer beside it; None where it holds none.
    """
    if is_gguf(path):
        template = read_gguf(Path(path)).metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None
    return _chat_template(Path(path), _read_json(Path(path) / "tokenizer_config.json"))


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise ValueError(
            f"{folder} has no tokenizer.json (found: {', '.join(names) or 'nothing'}); "
            "convert it once with "
            f"transformers: AutoTokenizer.from_pretrained({str(folder)!r}, "
            "use_fast=True)"
            f".save_pretrained({str(folder)!r})"
        )
    check_regular(file)
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{file} has {file.stat().st_size:,} bytes, more than any tokenizer; fetch "
            "it again"
        )
    # Trimmed offsets leave spaces out, so that a token of line breaks and spaces across
    # the end of the prompt would seem to end before it. The pattern cannot occur inside
    # a JSON string, where quotes are escaped.
    text = re.sub(
        r'"trim_offsets":\s*true',
        '"trim_offsets": false',
        utf8(file.read_bytes(), str(file)),
    )
    return _backend(text, str(file))


def _backend(text: str, where: str) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json."""
    check_pieces(json_value(text, where), where)
    with library_errors(where):
        backend = tokenizers.Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    with library_errors(where):  # some faults show with the first text alone
        backend.encode("a", add_special_tokens=True)
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    check_regular(file)
    if not file.is_file():
        return {}
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{file} has {file.stat().st_size:,} bytes, more than any such file; "
            "download it again"
        )
    try:
        config = json_value(utf8(file.read_bytes(), str(file)), str(file))
    except ValueError as error:
        raise ValueError(f"{error}; download it again") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} holds a {type(config).__name__} where an object is expected; "
            "download it again"
        )
    # null means what an absent key means.
    return {key: value for key, value in config.items() if value is not None}


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"tokenizer_config.json names the special token {value!r}; expected its "
            "text"
        )
    return text


def _special_ids(
    backend: tokenizers.Tokenizer, config: dict[str, Any], ids: dict[str, int | None]
) -> frozenset[int]:
    added = backend.get_added_tokens_decoder()
    flagged = {number for number, token in added.items() if token.special}
    special: set[int | None] = set(flagged)
    for item in config.get("additional_special_tokens") or []:
        text = _token_text(item)
        if text is not None:
            special.add(backend.token_to_id(text))
    special.update(ids.values())
    # None is the id of a text that the vocabulary lacks.
    return frozenset(number for number in special if number is not None)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    check_regular(file)
    if file.is_file():
        return utf8(file.read_bytes(), str(file))
    template = config.get("chat_template")
    listed = template if isinstance(template, list) else []
    named = {}
    for item in listed:
        if isinstance(item, dict) and {"name", "template"} <= set(item):
            named[item["name"]] = item["template"]
    if (
        len(named) < len(listed)
        or not all(isinstance(text, str) for text in named.values())
        or (template is not None and not isinstance(template, str | list))
    ):
        raise ValueError(
            f"{folder}/tokenizer_config.json: chat_template is neither a text nor a "
            "list of named texts"
        )
    if template is None or isinstance(template, str):
        return template
    if "default" not in named and len(named) > 1:
        raise ValueError(
            f"{folder}: tokenizer_config.json has the chat templates "
            f"{', '.join(named)} and none called default; "
            "put the one to use into chat_template.jinja"
        )
    return named.get("default", next(iter(named.values()), None))
