"""How each pre-tokeniser that GGUF files name (`tokenizer.ggml.pre`) cuts a text before
its bytes are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}"
# Words that begin with capitals, or hold none.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{{0}}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{{0}}"
)
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED.replace("{0}", "") + rf"|\p{{N}}|{_SLASHES}"
_GPT4O = _CASED.replace("{0}", f"{_ENDINGS}?") + rf"|\p{{N}}{{1,3}}|{_SLASHES}"


@dataclass(frozen=True)
class Cut:
    """States how one kind of byte-level BPE cuts.

    Args:
      pattern: what becomes a piece.
      digits: each digit is a piece before anything else is looked at.
      composed: text is brought into Unicode's composed form (NFC) first.
      whole_first: a piece that is a token is not merged from its bytes.
      add_bos: where the file does not say it.
    """

    pattern: str
    digits: bool = False
    composed: bool = False
    whole_first: bool = False
    add_bos: bool = False


_GPT2_CUT = Cut(_GPT2)
_LLAMA3_CUT = Cut(_LLAMA3, whole_first=True, add_bos=True)
CUTS: dict[str, Cut] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "gigachat"), _GPT2_CUT),
    **dict.fromkeys(("smollm", "starcoder", "refact"), Cut(_GPT2, digits=True)),
    **dict.fromkeys(("llama-bpe", "llama-v3", "llama3", "falcon3"), _LLAMA3_CUT),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut(_LLAMA3)),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "stablelm2"), Cut(_QWEN2, composed=True)
    ),
    "tekken": Cut(_TEKKEN, whole_first=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cut(_GPT4O)),
}


def normalizer(cut: Cut) -> dict[str, Any] | None:
    """Returns the normalizer of a tokenizer.json."""
    return {"type": "NFC"} if cut.composed else None


def pre_tokenizer(cut: Cut) -> dict[str, Any]:
    """Returns the pre_tokenizer of a tokenizer.json: the cuts, then bytes as letters."""
    steps: list[dict[str, Any]] = []
    if cut.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    split = {"type": "Split", "pattern": {"Regex": cut.pattern}}
    steps.append(split | {"behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": [*steps, BYTES]}


BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
