"""What a study of dense latents measures in passes over ordinary text: firing rates and
the covariance, in sums whose size does not depend on the number of tokens; and of a
sample of fixed size activations, positions and classes of words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, Statistic
from sae_attr.files.text import check_regular, utf8
from sae_attr.hooks import Site
from sae_attr.report.safe_text import one_line

STARTS = ("sentence", "paragraph", "context")
NO_WORD = -1
_SENTENCE_ENDS = (".", "!", "?")
_CLOSING = "\"'”’)]}* "  # may follow the mark that ends a sentence


# ---- the covariance ------------------------------------------------------------------


class _Moments(NamedTuple):
    """Sums over counted positions, in float64."""

    sum_d: np.ndarray = np.zeros(())
    square_dd: np.ndarray = np.zeros(())
    tokens: int = 0


def covariance_statistic(site: Site, centre_d: np.ndarray) -> Statistic:
    """Returns the statistic whose result is the covariance `[d, d]`, float64, of
    activations over counted positions.

    Args:
      centre_d: about their mean: squares about zero would lose digits where the mean is
        long.
    """

    def measure(
        centre_d: jax.Array, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x_btd = acts[site].astype(jnp.float32) - centre_d
        x_btd = jnp.where(counted_bt[..., None], x_btd, 0)
        square_dd = jnp.einsum("btd,bte->de", x_btd, x_btd, precision="highest")
        return jnp.sum(x_btd, axis=(0, 1)), square_dd

    def add(
        sums: _Moments,
        measured: tuple[np.ndarray, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> _Moments:
        sum_d, square_dd = measured
        return _Moments(
            sums.sum_d + sum_d.astype(np.float64),
            sums.square_dd + square_dd.astype(np.float64),
            sums.tokens + int(counted_bt.sum()),
        )

    def finish(sums: _Moments) -> np.ndarray:
        if sums.tokens < 2:
            raise ValueError(
                "fewer than two positions of the corpus count, so that there is no "
                "covariance; exclude fewer tokens, or give more text"
            )
        mean_d = sums.sum_d / sums.tokens
        return sums.square_dd / sums.tokens - np.outer(mean_d, mean_d)

    centre = jnp.asarray(centre_d, jnp.float32)
    return Statistic((site,), measure, _Moments, add, finish, inputs=centre)


# ---- words and positions -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Holds what the tokens of a vocabulary are, by their texts.

    Args:
      ends_sentence_v, ends_paragraph_v: bool.
      begins_word_v: bool; the token before one that begins no word is not whole.
      class_v: number of the class of the word that a token is; −1 of others.
      classes: names of the classes.
    """

    ends_sentence_v: np.ndarray
    ends_paragraph_v: np.ndarray
    begins_word_v: np.ndarray
    class_v: np.ndarray
    classes: tuple[str, ...] = ()


def vocabulary_of(
    tokens: Sequence[str], words: Mapping[str, str] | None = None
) -> Vocabulary:
    """Returns what the tokens are.

    Args:
      tokens: text of every token, leading spaces kept.
      words: word, in lower case -> its class.

    Raises:
      ValueError: no token is one of the words.
    """
    words = words or {}
    classes = tuple(sorted(set(words.values())))
    sentence, paragraph, begins, numbers = [], [], [], []
    # A vocabulary of whole words has no spaces in front of them.
    spaced = any(token[:1] == " " and token.strip() for token in tokens)
    for token in tokens:
        bare = token.strip()
        new_line = "\n" in token
        sentence.append(bare.rstrip(_CLOSING).endswith(_SENTENCE_ENDS) or new_line)
        paragraph.append(new_line)
        continues = spaced and bare[:1].isalnum() and token[:1] == bare[:1]
        begins.append(not continues)
        name = words.get(bare.lower())
        numbers.append(NO_WORD if name is None or continues else classes.index(name))
    class_v = np.array(numbers)
    if words and (class_v == NO_WORD).all():
        raise ValueError(
            f"none of the {len(words):,} words with a class is a token of the model; "
            "give a file of its language, a word and its class a line"
        )
    return Vocabulary(
        np.array(sentence), np.array(paragraph), np.array(begins), class_v, classes
    )


def read_words(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a file of words with their classes: a word and its class a line, with a space
    or tab between; returns word, in lower case -> class.

    Raises:
      ValueError: no such file, or not UTF-8; a line of other than two fields; a word of
        two classes; fewer than two classes.
    """
    file = Path(path)
    check_regular(file)
    if not file.is_file():
        raise ValueError(f"words {one_line(str(path))} is not there; give a text file")
    words: dict[str, str] = {}
    for number, raw in enumerate(file.read_bytes().split(b"\n"), 1):
        where = f"{file}:{number}"
        fields = utf8(raw, where).split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(
                f"{one_line(where)} has {len(fields)} fields; write a word and its "
                "class, such as: river noun"
            )
        word, name = fields[0].lower(), fields[1]
        if words.setdefault(word, name) != name:
            raise ValueError(
                f"{one_line(where)}: {one_line(repr(word))} is {one_line(name)} here "
                f"and {one_line(words[word])} before; give each word one class"
            )
    if len(set(words.values())) < 2:
        raise ValueError(
            f"words {one_line(str(path))} has {len(set(words.values()))} classes; a "
            "class is told from the others, so give two or more"
        )
    return words


def distances_since(
    ends_bt: np.ndarray,
) -> np.ndarray:
    """Returns the tokens between each position and the last one before it that ends
    something, or the start of the row, `[b, t]`.
    """
    places_t = np.arange(ends_bt.shape[1])
    starts_bt = np.where(ends_bt, places_t + 1, 0)
    last_bt = np.maximum.accumulate(starts_bt, axis=1)
    # An end counts for what follows it.
    last_bt = np.pad(last_bt[:, :-1], ((0, 0), (1, 0)))
    return places_t - last_bt


def word_classes(tokens_bt: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the number of each token's class, −1 where the token is none of the words,
    or only the first part of a longer one.
    """
    class_bt = vocabulary.class_v[tokens_bt]
    whole_bt = np.ones(tokens_bt.shape, bool)
    whole_bt[:, :-1] = vocabulary.begins_word_v[tokens_bt[:, 1:]]
    return np.where(whole_bt, class_bt, NO_WORD)


class Places(NamedTuple):
    """Counted positions of a sample, in the order of the text.

    Args:
      distances: what it is counted from -> tokens since then, `[x]`.
      class_x: number of the token's class.
    """

    distances: dict[str, np.ndarray]
    class_x: np.ndarray


def places_statistic(vocabulary: Vocabulary) -> Statistic:
    """Returns the statistic whose result is the `Places` of a sample; no activation is
    looked at.
    """

    def add(
        parts: tuple[Places, ...], _: Any, batch: CorpusBatch, counted_bt: np.ndarray
    ) -> tuple[Places, ...]:
        tokens_bt = batch.tokens_bt
        ends = {
            "sentence": vocabulary.ends_sentence_v[tokens_bt],
            "paragraph": vocabulary.ends_paragraph_v[tokens_bt],
            "context": np.zeros(tokens_bt.shape, bool),
        }
        distances = {}
        for start, ends_bt in ends.items():
            distances[start] = distances_since(ends_bt)[counted_bt]
        class_bt = word_classes(tokens_bt, vocabulary)
        return *parts, Places(distances, class_bt[counted_bt])

    def finish(parts: tuple[Places, ...]) -> Places:
        distances = {}
        for start in STARTS:
            of_start = [part.distances[start] for part in parts]
            distances[start] = np.concatenate(of_start)
        return Places(distances, np.concatenate([part.class_x for part in parts]))

    measure = lambda inputs, acts, counted_bt: ()
    return Statistic((), measure, tuple, add, finish)
