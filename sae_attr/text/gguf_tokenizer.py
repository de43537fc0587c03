"""The tokenizer in a GGUF file, as the tokenizer.json and tokenizer_config.json that it
stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import GgufHeader
from sae_attr.text.gguf_cuts import BYTES, CUTS, normalizer, pre_tokenizer

_NORMAL, _CONTROL, _USER = 1, 3, 4  # of tokenizer.ggml.token_type
_MOST_TOKENS = 1 << 21
_LONGEST = 128  # characters of a piece that is merged from two; SentencePiece has 16
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SPACE = "▁"  # SentencePiece's
_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def tokenizer_files(header: GgufHeader) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the content of tokenizer.json and of tokenizer_config.json; the second has
    the chat template too.

    Raises:
      ValueError: no tokenizer in the file, a kind or pre-tokeniser that is not read,
        lists of other lengths, a token that is there twice, a special id beyond the
        tokens.
    """
    source = _Source(header)
    kind = source.text("model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(source)
    elif kind == "llama":
        tokenizer, add_bos = _sentence_pieces(source)
    else:
        raise ValueError(
            f"{header.file}: tokenizers of the kind {kind[:40]!r} are not read; known: gpt2 "
            "(byte-level BPE), llama (SentencePiece)"
        )
    add_bos = source.flag("add_bos_token", add_bos)
    config: dict[str, Any] = source.named()
    config["add_bos_token"] = add_bos
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    tokenizer["added_tokens"] = source.added()
    front = config.get("bos_token") if add_bos else None
    tokenizer["post_processor"] = _in_front(source, front)
    whole = {"version": "1.0", "truncation": None, "padding": None, **tokenizer}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    return whole, config


def end_ids_of_gguf(header: GgufHeader) -> tuple[int, ...]:
    """Returns the ids that end a turn by the file's tokenizer, each once."""
    ids = [token_id(header, name) for name in _ENDS]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def token_id(header: GgufHeader, name: str) -> int | None:
    """Returns one of `tokenizer.ggml.*_token_id`, None where the file has none."""
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"{header.file}: tokenizer.ggml.{name} is no token id; fetch the file again"
        )
    return value


class _Source:
    """The keys `tokenizer.ggml.*` of a file."""

    def __init__(self, header: GgufHeader) -> None:
        self.file = header.file
        self._metadata = header.metadata
        self.tokens: list[str] = self._list("tokens", str)
        if not self.tokens:
            raise ValueError(
                f"{header.file} holds no tokenizer; give the file of a whole model, or "
                "the tokenizer's own folder"
            )
        if len(self.tokens) > _MOST_TOKENS:
            raise ValueError(
                f"{header.file} has {len(self.tokens):,} tokens, more than any "
                "vocabulary; fetch it again"
            )
        types = self.numbers("token_type")
        self.types = [_NORMAL] * len(self.tokens) if types is None else types.tolist()
        # A token that the user may write is looked for in the text as it is written.
        self.spelt = []
        for token, kind in zip(self.tokens, self.types, strict=True):
            self.spelt.append(token.replace(_SPACE, " ") if kind == _USER else token)
        self.vocab = {token: i for i, token in enumerate(self.spelt)}
        if len(self.vocab) < len(self.spelt):
            twice = next(t for i, t in enumerate(self.spelt) if self.vocab[t] != i)
            raise ValueError(
                f"{header.file} has the token {twice[:40]!r} twice; fetch it again"
            )

    def _get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
            raise ValueError(
                f"{self.file}: tokenizer.ggml.{key} is no list of texts; fetch it again"
            )
        return value

    def text(self, key: str) -> str:
        """Returns a text; ValueError where there is none."""
        value = self._get(key)
        if not isinstance(value, str):
            raise ValueError(
                f"{self.file} lacks tokenizer.ggml.{key}, without which its tokenizer "
                "cannot be read; convert the model anew with llama.cpp"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Returns a truth value, the default where there is none."""
        value = self._get(key)
        return value if isinstance(value, bool) else default

    def numbers(self, key: str) -> np.ndarray | None:
        """Returns a number for every token; None where the file has none."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise ValueError(
                f"{self.file}: tokenizer.ggml.{key} does not have a number for each of "
                f"the {len(self.tokens)} tokens; fetch it again"
            )
        return value

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of pieces that are merged, the first ones first."""
        pairs = []
        for line in self._list("merges", str):
            cut = line.find(" ", 1)
            if cut < 0:
                raise ValueError(
                    f"{self.file}: tokenizer.ggml.merges has {line[:40]!r}, which is no "
                    "pair; fetch it again"
                )
            pairs.append((line[:cut], line[cut + 1 :]))
        return pairs

    def named(self) -> dict[str, str]:
        """Returns the texts of the special tokens that have a name."""
        out = {}
        for name, key in _NAMES.items():
            number = self._get(f"{key}_token_id")
            if number is None:
                continue
            if not isinstance(number, int) or not 0 <= number < len(self.tokens):
                raise ValueError(
                    f"{self.file}: tokenizer.ggml.{key}_token_id is {number!r}, but "
                    f"there are {len(self.tokens)} tokens; fetch it again"
                )
            out[name] = self.spelt[number]
        return out

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are looked for in the text before anything else."""
        out = []
        for number, kind in enumerate(self.types):
            if kind in (_CONTROL, _USER) and self.spelt[number]:
                facts = dict.fromkeys(
                    ("single_word", "lstrip", "rstrip", "normalized"), False
                )
                facts |= {"id": number, "content": self.spelt[number]}
                out.append(facts | {"special": kind == _CONTROL})
        return out


def _in_front(source: _Source, bos: str | None) -> dict[str, Any] | None:
    """The post_processor that writes BOS before a text."""
    if bos is None:
        return None
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = lambda name, number: {"Sequence": {"id": name, "type_id": number}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), special, text("B", 1)],
        "special_tokens": {
            bos: {"id": bos, "ids": [source.vocab[bos]], "tokens": [bos]}
        },
    }


def _byte_level(source: _Source) -> tuple[dict[str, Any], bool]:
    """A byte-level BPE, and whether it writes BOS by itself."""
    name = source.text("pre")
    if name not in CUTS:
        raise ValueError(
            f"{source.file}: the pre-tokeniser {name[:40]!r} is not read; known: "
            f"{', '.join(sorted(CUTS))}. Give a folder with the model's tokenizer.json"
        )
    cut = CUTS[name]
    model = _bpe(source.vocab, source.merges()) | {"ignore_merges": cut.whole_first}
    tokenizer = {
        "normalizer": normalizer(cut),
        "pre_tokenizer": pre_tokenizer(cut),
        "decoder": BYTES,
        "model": model,
    }
    return tokenizer, cut.add_bos


def _bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": merges,
    }


def _sentence_pieces(source: _Source) -> tuple[dict[str, Any], bool]:
    """A SentencePiece model, whose pieces have scores: the same as merges in their
    order.
    """
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    front = source.flag("add_space_prefix", True)
    steps: list[dict[str, Any]] = [spaces]
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if front:
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(source.vocab, _merges_by_score(source)) | {
        "unk_token": source.named().get("unk_token"),
        "fuse_unk": True,
        "byte_fallback": True,
    }
    tokenizer = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    return tokenizer, True


def _merges_by_score(source: _Source) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the piece of the highest score first."""
    scores = source.numbers("scores")
    if scores is None:
        raise ValueError(
            f"{source.file} lacks tokenizer.ggml.scores, by which its pieces are "
            "merged; convert the model anew with llama.cpp"
        )
    vocab, ways = source.vocab, []
    for token, kind, score in zip(source.spelt, source.types, scores, strict=True):
        if kind != _NORMAL:
            continue
        if len(token) > _LONGEST:
            raise ValueError(
                f"{source.file}: the token {token[:40]!r}... has {len(token)} "
                "characters, more than any piece; fetch it again"
            )
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                ways.append((-float(score), left, right))
    ways.sort()
    return [(source.spelt[left], source.spelt[right]) for _, left, right in ways]
