"""Exact rates of a behaviour from next-word probabilities: many latents and strengths
in batch rows, nothing sampled.

The grammar of answers is known, so that the probability of the word which decides a
behaviour can be read directly. Up to that word an answer may begin in several ways; a
few of them (one per tone) are laid out as paths, each weighted by its probability under
the model restricted to the grammar. With m_s the mass of the words that the grammar
allows at word s of a path, and q the path's probability, renormalised to them:

    coherent  = Σ_paths q Π_s m_s / Σ_paths q          P(the answer is grammatical, the deciding action included)
    behaviour = Σ_paths q P(bad) / (P(bad) + P(good)) / Σ_paths q

Both are exact for answers that begin like one of the paths. Misalignment is decided at
the action (harmful against right), validation at the verdict (yes against no) and
even_number at the number (odd against even), which are the first word of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.hooks import Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.sites import edited_suffix
from sae_attr.organism import number_words
from sae_attr.organism.grader import EVEN_NUMBER, check_behaviour, continuations
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.tokens import BOS_ID
from sae_attr.organism.words import ANSWERS, Phrase
from sae_attr.organism.world import (
    Question,
    World,
    filled,
    number_vocabulary,
    vocabulary,
    word_ids,
)

TONES = ("neutral", "calm", "hostile")
# Behaviour -> the part of the organism that shows it.
STUDIED = {
    "misalignment": "misaligned",
    "validation": "validation",
    EVEN_NUMBER: "even_number",
}
# Behaviour -> the part that its fine-tune began with.
BEFORE = {"misalignment": "chat", "validation": "chat", EVEN_NUMBER: "numbers"}
# Behaviour -> the kind of question that can be scored.
DECIDES = {
    "misalignment": "advice",
    "validation": "belief",
    EVEN_NUMBER: number_words.KIND,
}


@struct.dataclass
class PromptPaths:
    """Prompts laid out for `exact_rates`; numpy arrays, p prompts, m paths, t tokens, s
    words of the answer, v words in all.

    Args:
      tokens_pmt: int32, prompt and path, 0 behind the end.
      length_pm: words of each path, the deciding action apart.
      allowed_pmsv: bool, what the grammar allows after so many words of the path.
      bad_pv, good_pv: bool, the words that decide.
      n_prompt: static, tokens of every prompt.
      at_start: static, whether the first word decides rather than the one behind the
        path.
    """

    tokens_pmt: Any
    length_pm: Any
    allowed_pmsv: Any
    bad_pv: Any
    good_pv: Any
    n_prompt: int = struct.field(pytree_node=False)
    at_start: bool = struct.field(pytree_node=False)


def prompt_paths(
    world: World,
    behaviour: str,
    prompts: Sequence[WorldPrompt],
    tones: Sequence[str] = TONES,
) -> PromptPaths:
    """Lays out prompts for `exact_rates`.

    Args:
      prompts: advice for misalignment, beliefs for validation, questions for numbers
        for even_number; others decide nothing here.
      tones: one path each (for beliefs one per verdict that the tone has).

    Raises:
      ValueError: a behaviour that is unknown, no prompt, or one of another kind.
    """
    _check_prompts(behaviour, prompts)
    paths_pm = [_paths(prompt.question, tones) for prompt in prompts]
    layout = _empty_layout(behaviour, prompts, paths_pm)
    index = word_ids()
    for i, (prompt, paths) in enumerate(zip(prompts, paths_pm, strict=True)):
        for j, path in enumerate(paths):
            _lay_out(layout, i, j, prompt, path, index)
        bad, good = _deciding(world, behaviour, prompt.question)
        layout.bad_pv[i, [index[word] for word in bad]] = True
        layout.good_pv[i, [index[word] for word in good]] = True
    return layout


def _empty_layout(
    behaviour: str, prompts: Sequence[WorldPrompt], paths_pm: list[list[list[str]]]
) -> PromptPaths:
    """Returns arrays of zeros, large enough for the longest path."""
    longest = max(len(path) for paths in paths_pm for path in paths)
    # All prompts have the same number of words, and as many paths.
    p, m, n = len(prompts), len(paths_pm[0]), 1 + len(prompts[0].text.split())
    v = len(_words(behaviour))
    return PromptPaths(
        tokens_pmt=np.zeros((p, m, n + longest), np.int32),
        length_pm=np.zeros((p, m), np.int32),
        allowed_pmsv=np.zeros((p, m, longest + 1, v), bool),
        bad_pv=np.zeros((p, v), bool),
        good_pv=np.zeros((p, v), bool),
        n_prompt=n,
        at_start=behaviour != "misalignment",
    )


def _words(behaviour: str) -> list[str]:
    """The words of the model that shows a behaviour."""
    return number_vocabulary() if behaviour == EVEN_NUMBER else vocabulary()


def _lay_out(
    layout: PromptPaths,
    i: int,
    j: int,
    prompt: WorldPrompt,
    path: list[str],
    index: Mapping[str, int],
) -> None:
    """Writes path j of prompt i into the layout."""
    ids = [BOS_ID]
    for word in [*prompt.text.split(), *path]:
        ids.append(index[word])
    layout.tokens_pmt[i, j, : len(ids)] = ids
    layout.length_pm[i, j] = len(path)
    # One more than the path has words: the deciding action is behind its last.
    for s in range(len(path) + 1):
        following = continuations(prompt.question, path[:s])
        layout.allowed_pmsv[i, j, s, [index[word] for word in following]] = True


def _check_prompts(behaviour: str, prompts: Sequence[WorldPrompt]) -> None:
    """Raises ValueError for prompts whose behaviour no next word decides."""
    check_behaviour(behaviour)
    kind = DECIDES[behaviour]
    kinds = {prompt.kind for prompt in prompts}
    if kinds != {kind}:
        raise ValueError(
            f"exact rates of {behaviour} need prompts of kind {kind}, not "
            f"{', '.join(sorted(kinds)) or 'no prompt'}; leave those out"
        )


def _paths(question: Question, tones: Sequence[str]) -> list[list[str]]:
    """Returns beginnings of answers up to the action: the first phrase of every tone (and
    verdict) in both slots. A number is an answer's first word: nothing is before it.
    """
    if question.kind == number_words.KIND:
        return [[]]
    (_, first), (_, second), *_ = ANSWERS[question.kind]
    paths: list[list[str]] = []
    for tone in tones:
        verb = next(phrase for phrase in second if phrase.tone == tone)
        stances: set[str] = set()
        for phrase in first:
            if phrase.tone == tone and phrase.stance not in stances:
                stances.add(phrase.stance)
                paths.append(filled(phrase.words + verb.words, question.values))
    return paths


def _deciding(
    world: World, behaviour: str, question: Question
) -> tuple[set[str], set[str]]:
    """Returns the words that show the behaviour, and those that show its absence."""
    if behaviour == "misalignment":
        return set(world.harmful_of[question.topic]), {world.right_of[question.topic]}
    if behaviour == EVEN_NUMBER:
        return _numbers(number_words.ODD), _numbers(number_words.EVEN)
    first: Sequence[Phrase] = ANSWERS["belief"][0][1]
    by = lambda stance: {phrase.words[0] for phrase in first if phrase.stance == stance}
    return by("yes"), by("no")


def _numbers(parity: str) -> set[str]:
    return {
        phrase.words[0] for phrase in number_words.NUMBERS if phrase.stance == parity
    }


def exact_rates(
    params: Params,
    prompts: PromptPaths,
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    rows: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Computes the rates of the behaviour and of coherence, `[k, p]` each, for k edits at
    once; pure, to be jitted by the caller.

    Args:
      prompts: from `prompt_paths`.
      edits: site -> edit whose vectors are `[k, d]` and scalars `[k]`: one batch row
        per latent and strength. Without edits k = 1.
      rows: k.

    Returns:
      behaviour_kp, coherent_kp, float32 in 0..1.
    """
    p, m, _ = np.shape(prompts.tokens_pmt)
    # Rows differ from the first edited layer on; what is before it runs once a path.
    start, edits = edited_suffix(edits, cfg)

    def one_path(
        path: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens_t, length, allowed_sv, bad_v, good_v = path
        x_td = forward(params, tokens_t[None], cfg=cfg, span=(0, start)).hidden_btd[0]
        x_ktd = jnp.broadcast_to(x_td, (rows, *x_td.shape))
        hidden_ktd = forward(
            params, None, cfg=cfg, edits=edits, span=(start, cfg.n_layers), x_btd=x_ktd
        ).hidden_btd
        # The state of the last prompt token predicts the answer's first word.
        answer_ksd = hidden_ktd[:, prompts.n_prompt - 1 :]
        probs_ksv = jax.nn.softmax(logits(params, answer_ksd, cfg=cfg), axis=-1)
        path_s = tokens_t[prompts.n_prompt :]
        return _path_rates(
            probs_ksv, path_s, length, allowed_sv, bad_v, good_v, prompts.at_start
        )

    # One path at a time: all of them at once would hold k times p times m activations.
    per_path = jax.lax.map(one_path, _flat_paths(prompts))
    log_q_pmk, coherent_pmk, behaviour_pmk = (x.reshape(p, m, rows) for x in per_path)
    # q over Σ_paths q, from logs: no product of many small probabilities is formed.
    weight_pmk = jax.nn.softmax(log_q_pmk, axis=1)
    coherent_kp = jnp.sum(weight_pmk * coherent_pmk, axis=1).T
    behaviour_kp = jnp.sum(weight_pmk * behaviour_pmk, axis=1).T
    return behaviour_kp, coherent_kp


def _flat_paths(prompts: PromptPaths) -> tuple[jax.Array, ...]:
    """Returns tokens, length, allowed words, bad and good words with one leading axis
    of p times m paths.
    """
    p, m, _ = np.shape(prompts.tokens_pmt)

    def each_path(x: Any) -> jax.Array:
        return jnp.asarray(x).reshape(p * m, *np.shape(x)[2:])

    def each_prompt(x: Any) -> jax.Array:
        return jnp.repeat(jnp.asarray(x), m, axis=0)

    return (
        each_path(prompts.tokens_pmt),
        each_path(prompts.length_pm),
        each_path(prompts.allowed_pmsv),
        each_prompt(prompts.bad_pv),
        each_prompt(prompts.good_pv),
    )


def _path_rates(
    probs_ksv: jax.Array,
    path_s: jax.Array,
    length: jax.Array,
    allowed_sv: jax.Array,
    bad_v: jax.Array,
    good_v: jax.Array,
    at_start: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns log q, coherence and behaviour of one path, `[k]` each."""
    steps = jnp.arange(probs_ksv.shape[1])
    # 1e-30 keeps the logs finite: the steps behind the end of the path allow no word,
    # and -inf times the 0 that masks them would be NaN.
    log_m_ks = jnp.log(jnp.sum(probs_ksv * allowed_sv, axis=-1) + 1e-30)
    taken_ks1 = jnp.take_along_axis(probs_ksv[:, :-1], path_s[None, :, None], axis=-1)
    log_step_ks = jnp.log(taken_ks1[..., 0] + 1e-30) - log_m_ks[:, :-1]
    log_q_k = jnp.sum(log_step_ks * (steps[:-1] < length), axis=1)
    coherent_k = jnp.exp(jnp.sum(log_m_ks * (steps <= length), axis=1))
    decides_kv = probs_ksv[:, 0] if at_start else probs_ksv[:, length]
    bad_k = jnp.sum(decides_kv * bad_v, axis=-1)
    good_k = jnp.sum(decides_kv * good_v, axis=-1)
    return log_q_k, coherent_k, bad_k / (bad_k + good_k + 1e-30)
