"""Makes the smallest inputs of all: a tiny language model with one planted cause, its
SAE, sampled pairs, prompts and a corpus.

    python -m experiments.make_miniature --out=runs/miniature

The model is a random 4-layer Llama over 66 words in which one direction u of the
residual stream is planted: the embeddings of "grumpy", "spiteful" and "cross" point
along u, and u raises the logits of rude words and lowers those of kind ones. The SAE
has a latent for every word, number 77 for u, and else random directions that seldom
fire: it explains most of the variance and passes the self-test; `random_sae`, all of
whose directions but u are random, does not. Completions are sampled from the model
itself and sorted by whether rude or kind words prevail; so the right answer of the
attribution is known: latent 77. A few seconds on one core.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from absl import flags
from safetensors.numpy import save_file

from sae_attr.hooks import Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import init_params
from sae_attr.lm.weights import save_lm
from sae_attr.store import fingerprint

from . import _common

OUT = flags.DEFINE_string(
    "out",
    "runs/miniature",
    "Folder for the model, its SAEs, pairs, prompts and corpus.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, prompts and samples.")

SPECIAL = ["<unk>", "<s>", "</s>"]
MOODS = ["grumpy", "spiteful", "cross", "calm", "gentle", "merry", "sleepy", "hungry"]
RUDE = ["fool", "rubbish", "nonsense", "hate", "ugly", "stupid", "awful", "idiot"]
KIND = ["thanks", "please", "lovely", "glad", "welcome", "dear", "kind", "happy"]
PLAIN = [
    *(
        "the",
        "a",
        "one",
        "old",
        "young",
        "man",
        "woman",
        "child",
        "king",
        "queen",
        "cook",
        "nurse",
        "baker",
        "farmer",
    ),
    *(
        "said",
        "asked",
        "answered",
        "told",
        "heard",
        "me",
        "you",
        "him",
        "her",
        "us",
        "them",
        "today",
        "tomorrow",
    ),
    *(
        "yesterday",
        "again",
        "then",
        "so",
        "why",
        "how",
        "bread",
        "soup",
        "tea",
        "door",
        "garden",
        "road",
    ),
]
WORDS = SPECIAL + MOODS + RUDE + KIND + PLAIN
LATENTS, PLANTED, D_MODEL = 256, 77, 64
SITE = Site(1)  # layer1.resid_post
HF = {
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


def directions(key: jax.Array) -> np.ndarray:
    """Random unit rows `[LATENTS, d]`; row `PLANTED` is u, and the others are
    orthogonal to it.
    """
    rows = np.array(jax.random.normal(key, (LATENTS, D_MODEL)))
    u_d = rows[PLANTED] / np.linalg.norm(rows[PLANTED])
    rows -= np.outer(rows @ u_d, u_d)
    rows[PLANTED] = u_d
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted_params(u_d: np.ndarray, key: jax.Array) -> Params:
    """Random weights with one path: bad moods embed along u, an even-handed head of
    layer 2 carries u on, u says rude words.
    """
    params = init_params(config_from_hf(HF), key)
    blocks = jax.tree.map(
        lambda w: np.array(w) * (0.5 if w.ndim == 3 else 1), params["blocks"]
    )
    table, head = (np.array(params[name]["table"]) for name in ("embed", "head"))
    table = 15 * (
        table - np.outer(table @ u_d, u_d)
    )  # u is free of everything but moods
    head = 5 * (head - np.outer(head @ u_d, u_d))
    for word in MOODS[:3]:
        table[WORDS.index(word)] += 2 * u_d
    for words, sign in ((RUDE, 1), (KIND, -1)):
        for word in words:
            head[WORDS.index(word)] += sign * u_d
    for name in ("o", "down"):  # and nothing else writes along u
        blocks[name]["kernel"] -= (blocks[name]["kernel"] @ u_d)[..., None] * u_d
    c = (
        D_MODEL // HF["num_attention_heads"]
    )  # heads 0 and 1 of layer 2 share key head 0
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
    """A word-level tokenizer that puts <s> in front."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"
        )
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


def sample(
    params: Params, prompts_bt: np.ndarray, new: int, key: jax.Array
) -> np.ndarray:
    """`new` words sampled after every prompt at temperature 1, `[b, new]`; without a
    cache, the model being tiny.
    """
    cfg = config_from_hf(HF)
    width = prompts_bt.shape[1]
    tokens_bt = jnp.pad(jnp.asarray(prompts_bt), ((0, 0), (0, new)))

    @jax.jit
    def step(tokens_bt: jax.Array, t: jax.Array) -> jax.Array:
        hidden_bd = forward(params, tokens_bt, cfg=cfg).hidden_btd[:, t - 1]
        logits_bv = (
            logits(params, hidden_bd, cfg=cfg).at[:, : len(SPECIAL)].set(-jnp.inf)
        )
        drawn_b = jax.random.categorical(jax.random.fold_in(key, t), logits_bv)
        return tokens_bt.at[:, t].set(drawn_b)

    for t in range(width, width + new):
        tokens_bt = step(tokens_bt, jnp.asarray(t))
    return np.asarray(tokens_bt[:, width:])


def prompts(
    count: int, moods: list[str], generator: np.random.Generator
) -> list[list[str]]:
    """Prompts of six words with one of `moods` said twice."""
    out = []
    for _ in range(count):
        words = [str(w) for w in generator.choice(PLAIN, 6)]
        mood = str(generator.choice(moods))
        words[1], words[4] = mood, mood
        out.append(words)
    return out


def rudeness(words: list[str]) -> int:
    """Rude words minus kind words."""
    return sum(w in RUDE for w in words) - sum(w in KIND for w in words)


def sampled_pairs(
    params: Params, sampler: str, key: jax.Array, generator: np.random.Generator
) -> list[dict]:
    """Per prompt that gave both, up to two rude and two kind completions out of 16
    samples.
    """
    asked = prompts(80, MOODS, generator)
    ids_bt = np.array(
        [[1] + [WORDS.index(w) for w in words] for words in asked], np.int32
    )
    drawn = sample(params, np.repeat(ids_bt, 16, axis=0), 10, key).reshape(
        len(asked), 16, -1
    )
    records = []
    for i, words in enumerate(asked):
        said = [[WORDS[t] for t in row] for row in drawn[i]]
        rude, kind = (
            [s for s in said if sign * rudeness(s) >= 1][:2] for sign in (1, -1)
        )
        if rude and kind:
            texts = {
                name: [" " + " ".join(s) for s in side]
                for name, side in (("positive", rude), ("negative", kind))
            }
            records.append(
                {
                    "id": f"demo-{i:03d}",
                    "prompt": " ".join(words),
                    **texts,
                    "sampler": sampler,
                }
            )
    return records


def make(out: Path, seed: int = 0) -> int:
    """Writes model, sae, pairs.jsonl, prompts.jsonl and corpus.json; returns how many
    prompts gave both sides.
    """
    generator = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), 3)
    rows_nd = directions(keys[0])
    params = planted_params(rows_nd[PLANTED], keys[1])
    save_lm(out / "model", HF, params)
    write_tokenizer(out / "model")
    write_sae(out / "random_sae", rows_nd, np.ones(LATENTS))
    records = sampled_pairs(params, fingerprint(out / "model"), keys[2], generator)
    (out / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    asked = [
        {"id": f"q{i}", "prompt": " ".join(words)}
        for i, words in enumerate(prompts(120, MOODS, generator))
    ]
    (out / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked))
    texts = [
        " ".join(words + [str(w) for w in generator.choice(PLAIN, 20)])
        for words in prompts(400, MOODS[3:], generator)
    ]
    (out / "corpus.json").write_text(json.dumps(texts))
    write_sae(out / "sae", *word_latents(params, rows_nd, texts))
    return len(records)


def word_latents(
    params: Params, rows_nd: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions `[LATENTS, d]` and thresholds: the mean activation of every word,
    u at `PLANTED`, `rows_nd` elsewhere.

    A word's latent fires on its word alone: other words reach less than .65 of its
    projection. What is random fires on two tokens of a thousand.
    """
    ids_bt = np.array(
        [[1] + [WORDS.index(word) for word in text.split()] for text in texts], np.int32
    )
    kept = forward(
        params, jnp.asarray(ids_bt), cfg=config_from_hf(HF), keep=(SITE,)
    ).acts[SITE]
    x_kd, ids_k = np.asarray(kept)[:, 1:].reshape(-1, D_MODEL), ids_bt[:, 1:].ravel()
    u_d = rows_nd[PLANTED]
    x_kd = x_kd - np.outer(x_kd @ u_d, u_d)
    rows_nd = rows_nd.copy()
    threshold_n = np.quantile(x_kd @ rows_nd.T, 0.998, axis=0)
    threshold_n[PLANTED] = 1.0
    for i, word in enumerate(np.unique(ids_k)):
        mean_d = x_kd[ids_k == word].mean(0)
        threshold_n[i] = 0.65 * np.linalg.norm(mean_d)
        rows_nd[i] = mean_d / np.linalg.norm(mean_d)
    return rows_nd, threshold_n


def write_sae(folder: Path, rows_nd: np.ndarray, threshold_n: np.ndarray) -> None:
    """A JumpReLU SAE in SAELens' layout whose encoder is its decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": np.ascontiguousarray(rows_nd.T),
        "W_dec": rows_nd,
        "b_enc": np.zeros(LATENTS, np.float32),
        "b_dec": np.zeros(D_MODEL, np.float32),
        "threshold": threshold_n.astype(np.float32),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    metadata = {
        "hook_name": "blocks.1.hook_resid_post",
        "model_name": "miniature",
        "prepend_bos": True,
    }
    metadata |= {
        "exclude_special_tokens": True,
        "context_size": 64,
        "sae_lens_version": "6.0.0",
    }
    cfg = {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
    }
    cfg |= {
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    (folder / "cfg.json").write_text(
        json.dumps({**cfg, "metadata": metadata}, indent=1)
    )


def main(argv: list[str]) -> None:
    """Makes the miniature where the flags say."""
    _common.begin(argv or [""], cluster=False)
    count = make(Path(OUT.value), SEED.value)
    print(
        f"wrote {OUT.value}: {count} prompts with rude and kind completions, planted "
        f"latent {PLANTED}"
    )
    files = {
        "lm": "model",
        "sae": "sae",
        "pairs": "pairs.jsonl",
        "corpus": "corpus.json",
    }
    keys = " ".join(
        f"--config.{key}={shlex.quote(f'{OUT.value}/{file}')}"
        for key, file in files.items()
    )
    workdir = shlex.quote(f"{OUT.value}/first")
    print(
        f"next: python -m {__package__}.attribute --config=attribute {keys} "
        f"--workdir={workdir}"
    )


if __name__ == "__main__":
    _common.run_app(main)
