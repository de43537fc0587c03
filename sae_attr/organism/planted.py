"""The smallest inputs of all: a tiny language model with one planted cause, its SAE,
sampled pairs, prompts and a corpus.

The model is a random 4-layer Llama over 66 words in which one direction u of the
residual stream is planted: the embeddings of "grumpy", "spiteful" and "cross" point
along u, and u raises the logits of rude words and lowers those of kind ones. The SAE
has a latent for every word, number 77 for u, and else random directions that seldom
fire: it explains most of the variance and passes the self-test; `random_sae`, all of
whose directions but u are random, does not. Completions are sampled from the model
itself and sorted by whether rude or kind words prevail; so the right answer of the
attribution is known: latent 77.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from sae_attr.hooks import Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import Params, init_params
from sae_attr.lm.save import save_lm
from sae_attr.store import fingerprint
from sae_attr.text import pairing
from sae_attr.text.pairing import Answer
from sae_attr.text.pairs import Prompt

SPECIAL = ["<unk>", "<s>", "</s>"]
MOODS = ["grumpy", "spiteful", "cross", "calm", "gentle", "merry", "sleepy", "hungry"]
RUDE = ["fool", "rubbish", "nonsense", "hate", "ugly", "stupid", "awful", "idiot"]
KIND = ["thanks", "please", "lovely", "glad", "welcome", "dear", "kind", "happy"]
PLAIN_WORDS = [
    "the", "a", "one", "old", "young", "man", "woman", "child", "king", "queen", "cook",
    "nurse", "baker", "farmer", "said", "asked", "answered", "told", "heard", "me",
    "you", "him", "her", "us", "them", "today", "tomorrow", "yesterday", "again",
    "then", "so", "why", "how", "bread", "soup", "tea", "door", "garden", "road",
]  # fmt: skip
WORDS = SPECIAL + MOODS + RUDE + KIND + PLAIN_WORDS
BAD_MOODS = MOODS[:3]
LATENTS, PLANTED, D_MODEL = 256, 77, 64
SITE = Site(1)  # layer1.resid_post
HF: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": len(WORDS),
    "hidden_size": D_MODEL,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SAMPLES, NEW_WORDS, PER_SIDE = 16, 10, 2  # of every prompt for pairs


def make_planted(out: Path, seed: int = 0) -> int:
    """Writes model, sae, random_sae, pairs.jsonl, prompts.jsonl and corpus.json; returns
    how many prompts gave both sides.
    """
    generator = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), 3)
    rows_nd = random_directions(keys[0])
    params = planted_params(rows_nd[PLANTED], keys[1])
    save_lm(out / "model", HF, params)
    write_tokenizer(out / "model")
    write_sae(out / "random_sae", rows_nd, np.ones(LATENTS))
    # The generator is drawn from in this order: pairs, prompts, corpus.
    records = planted_pairs(params, fingerprint(out / "model"), keys[2], generator)
    _write_lines(out / "pairs.jsonl", records)
    prompts = []
    for i, words in enumerate(random_prompts(120, MOODS, generator)):
        prompts.append({"id": f"q{i}", "prompt": " ".join(words)})
    _write_lines(out / "prompts.jsonl", prompts)
    texts = []
    for words in random_prompts(400, MOODS[3:], generator):
        more = [str(word) for word in generator.choice(PLAIN_WORDS, 20)]
        texts.append(" ".join(words + more))
    (out / "corpus.json").write_text(json.dumps(texts))
    write_sae(out / "sae", *word_latents(params, rows_nd, texts))
    return len(records)


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


# ---- the model -----------------------------------------------------------------------


def random_directions(key: jax.Array) -> np.ndarray:
    """Draws unit rows `[LATENTS, d]`; row `PLANTED` is u, and the others are orthogonal
    to it.
    """
    rows_nd = np.array(jax.random.normal(key, (LATENTS, D_MODEL)))
    u_d = rows_nd[PLANTED] / np.linalg.norm(rows_nd[PLANTED])
    rows_nd -= np.outer(rows_nd @ u_d, u_d)
    rows_nd[PLANTED] = u_d
    return rows_nd / np.linalg.norm(rows_nd, axis=1, keepdims=True)


def planted_params(u_d: np.ndarray, key: jax.Array) -> Params:
    """Draws weights and plants one path in them: bad moods embed along u, an
    even-handed head of layer 2 carries u on, and u raises rude words.
    """
    params = init_params(config_from_hf(HF), key)

    def damped(weight: jax.Array) -> np.ndarray:
        # Kernels of the blocks at half their size leave the planted path the strongest.
        return np.array(weight) * (0.5 if weight.ndim == 3 else 1)

    blocks = jax.tree.map(damped, params["blocks"])
    table, head = (np.array(params[name]["table"]) for name in ("embed", "head"))
    # u is free of everything but what is planted: no word embeds or is read along it,
    # and no block writes along it.
    table = 15 * (table - np.outer(table @ u_d, u_d))
    head = 5 * (head - np.outer(head @ u_d, u_d))
    for name in ("o", "down"):
        kernel = blocks[name]["kernel"]
        kernel -= (kernel @ u_d)[..., None] * u_d
    for word in BAD_MOODS:
        table[WORDS.index(word)] += 2 * u_d
    for words, sign in ((RUDE, 1), (KIND, -1)):
        for word in words:
            head[WORDS.index(word)] += sign * u_d
    # Heads 0 and 1 of layer 2 share key head 0. Queries and keys of 0 attend evenly.
    c = D_MODEL // HF["num_attention_heads"]
    blocks["q"]["kernel"][2, :, : 2 * c] = 0
    blocks["k"]["kernel"][2, :, :c] = 0
    blocks["v"]["kernel"][2, :, :c] = 0
    blocks["v"]["kernel"][2, :, 0] = u_d
    blocks["o"]["kernel"][2, : 2 * c] = 0
    blocks["o"]["kernel"][2, 0] = 0.1 * u_d
    planted = {
        **params,
        "blocks": blocks,
        "embed": {"table": table},
        "head": {"table": head},
    }
    return jax.tree.map(jnp.asarray, planted)


def write_tokenizer(folder: Path) -> None:
    """Writes a word-level tokenizer that puts <s> in front."""
    index = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(index, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


# ---- prompts and pairs ---------------------------------------------------------------


def random_prompts(
    count: int, moods: Sequence[str], generator: np.random.Generator
) -> list[list[str]]:
    """Draws prompts of six words in which one of `moods` occurs twice."""
    prompts = []
    for _ in range(count):
        words = [str(word) for word in generator.choice(PLAIN_WORDS, 6)]
        mood = str(generator.choice(moods))
        words[1], words[4] = mood, mood
        prompts.append(words)
    return prompts


def rudeness(words: Sequence[str]) -> int:
    """Returns rude words minus kind words."""
    return sum(w in RUDE for w in words) - sum(w in KIND for w in words)


def planted_pairs(
    params: Params, sampler: str, key: jax.Array, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Samples prompts and completions, and pairs the rude with the kind ones: up to
    `PER_SIDE` of each per prompt that gave both.
    """
    prompts = []
    for i, words in enumerate(random_prompts(80, MOODS, generator)):
        prompts.append(Prompt(f"demo-{i:03d}", " ".join(words)))

    def sample_all(prompts: Sequence[Prompt]) -> list[list[Answer]]:
        ids_bt = _token_ids(str(prompt.prompt).split() for prompt in prompts)
        ids_bt = np.repeat(ids_bt, SAMPLES, axis=0)
        drawn_bt = sample(params, ids_bt, NEW_WORDS, key)
        answers = [Answer(_text(row)) for row in drawn_bt]
        return [answers[i : i + SAMPLES] for i in range(0, len(answers), SAMPLES)]

    pairs = pairing.sampled_pairs(
        prompts,
        sample_all,
        lambda prompt, answers: [_graded(answer) for answer in answers],
        sampler=sampler,
        limit=len(prompts),
        pick=pairing.first_answers(PER_SIDE),
    )
    return pairs.records


def _text(ids: Iterable[int]) -> str:
    """Returns a completion's text, with the space that parts it from the prompt."""
    return " " + " ".join(WORDS[i] for i in ids)


def _graded(answer: Answer) -> Answer:
    """Grades a completion: rude is the behaviour, as many kind words are neither."""
    score = rudeness(answer.text.split())
    if score == 0:
        return answer
    return replace(
        answer, behaviour=pairing.WITH if score > 0 else pairing.WITHOUT, coherent=1.0
    )


def sample(
    params: Params, prompts_bt: np.ndarray, new: int, key: jax.Array
) -> np.ndarray:
    """Samples `new` words after every prompt at temperature 1, `[b, new]`; without a
    cache, the model being tiny.
    """
    cfg = config_from_hf(HF)
    width = prompts_bt.shape[1]
    tokens_bt = jnp.pad(jnp.asarray(prompts_bt), ((0, 0), (0, new)))

    @jax.jit
    def step(tokens_bt: jax.Array, t: jax.Array) -> jax.Array:
        hidden_bd = forward(params, tokens_bt, cfg=cfg).hidden_btd[:, t - 1]
        logits_bv = logits(params, hidden_bd, cfg=cfg)
        logits_bv = logits_bv.at[:, : len(SPECIAL)].set(-jnp.inf)
        drawn_b = jax.random.categorical(jax.random.fold_in(key, t), logits_bv)
        return tokens_bt.at[:, t].set(drawn_b)

    for t in range(width, width + new):
        tokens_bt = step(tokens_bt, jnp.asarray(t))
    return np.asarray(tokens_bt[:, width:])


def _token_ids(texts: Iterable[Sequence[str]]) -> np.ndarray:
    """Encodes texts of equal length, int32 `[b, 1 + words]` with <s> in front."""
    rows = [[1, *(WORDS.index(word) for word in words)] for words in texts]
    return np.array(rows, np.int32)


# ---- the SAE -------------------------------------------------------------------------


def word_latents(
    params: Params, rows_nd: np.ndarray, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Measures unit directions `[LATENTS, d]` and thresholds: the mean activation of
    every word, u at `PLANTED`, `rows_nd` elsewhere.

    A word's latent fires on its word alone: other words reach less than .65 of its
    projection. What is random fires on two tokens of a thousand.
    """
    ids_bt = _token_ids(text.split() for text in texts)
    run = forward(params, jnp.asarray(ids_bt), cfg=config_from_hf(HF), keep=(SITE,))
    acts_kd = np.asarray(run.acts[SITE])[:, 1:].reshape(-1, D_MODEL)
    ids_k = ids_bt[:, 1:].ravel()
    u_d = rows_nd[PLANTED]
    acts_kd = acts_kd - np.outer(acts_kd @ u_d, u_d)
    rows_nd = rows_nd.copy()
    threshold_n = np.quantile(acts_kd @ rows_nd.T, 0.998, axis=0)
    threshold_n[PLANTED] = 1.0
    for i, word in enumerate(np.unique(ids_k)):
        mean_d = acts_kd[ids_k == word].mean(0)
        threshold_n[i] = 0.65 * np.linalg.norm(mean_d)
        rows_nd[i] = mean_d / np.linalg.norm(mean_d)
    return rows_nd, threshold_n


def write_sae(folder: Path, rows_nd: np.ndarray, threshold_n: np.ndarray) -> None:
    """Writes a JumpReLU SAE in SAELens' layout whose encoder is its decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": np.ascontiguousarray(rows_nd.T),
        "W_dec": rows_nd,
        "b_enc": np.zeros(LATENTS, np.float32),
        "b_dec": np.zeros(D_MODEL, np.float32),
        "threshold": threshold_n.astype(np.float32),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": "blocks.1.hook_resid_post",
            "model_name": "miniature",
            "prepend_bos": True,
            "exclude_special_tokens": True,
            "context_size": 64,
            "sae_lens_version": "6.0.0",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=1))
