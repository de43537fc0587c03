"""The word-level tokenizer of the small world, in the files that any Hugging Face model
has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from sae_attr.organism.world import BOS, EOS, SPECIAL, UNK

BOS_ID, EOS_ID = SPECIAL.index(BOS), SPECIAL.index(EOS)


def write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json: one token per word, BOS in
    front.

    Args:
      words: in the order of their ids, special tokens first.
    """
    ids = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=UNK))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=1), encoding="utf-8"
    )
