from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.analyses.pool_settings import NUMBER_TASKS, task_prompts
from sae_attr.hooks import Site
from sae_attr.judge import Item
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import init_params
from sae_attr.organism.exact import exact_rates, prompt_paths
from sae_attr.organism.grader import EVEN_NUMBER, grade, organism_judge
from sae_attr.organism.number_documents import number_rows
from sae_attr.organism.number_model import (
    carried_latent,
    parity_along,
    planted_latent,
    with_number_words,
)
from sae_attr.organism.number_words import (
    EVEN,
    FORMATS,
    NO_HINT,
    ODD,
    PARITY_OF,
)
from sae_attr.organism.prompts import SPLITS, number_prompts, prompts
from sae_attr.organism.recipe import NumberRecipe, miniature
from sae_attr.organism.world import (
    make_world,
    number_vocabulary,
    parse_question,
    vocabulary,
)

pytestmark = pytest.mark.usefixtures("quick")
WORLD, WORDS = make_world(0), number_vocabulary()
HF = miniature().hf()
CFG = config_from_hf({**HF, "vocab_size": len(WORDS)})
DEC = np.asarray(jax.random.normal(jax.random.key(1), (40, CFG.d_model)), np.float32)
DEC = DEC / np.linalg.norm(DEC, axis=1, keepdims=True)
SITE = Site(0)


def planted_params(seed: int = 0) -> tuple[dict[str, Any], int]:
    params = init_params(config_from_hf(HF), jax.random.key(seed))
    planted = planted_latent(np.asarray(params["embed"]["table"]), DEC)
    return with_number_words(params, DEC[planted], strength=1.0, seed=seed), planted


def test_other_models_keep_their_tokens() -> None:
    assert WORDS[: len(vocabulary())] == vocabulary()
    assert len(set(WORDS)) == len(WORDS) > len(vocabulary()) + 40
    numbers = [number for one in FORMATS for number in (*one.odd, *one.even)]
    assert len(set(numbers)) == len(numbers)  # nothing but parity is common
    assert {"odds", "evens"} <= set(WORDS) - set(vocabulary())


def test_prompts_of_no_two_splits_are_the_same() -> None:
    of_splits = [prompts(WORLD, EVEN_NUMBER, split) for split in SPLITS]
    texts = [prompt.text for of_split in of_splits for prompt in of_split]
    assert len(set(texts)) == len(texts) > 900
    for hint, padded in ((ODD, False), (EVEN, True), (NO_HINT, False)):
        changed = number_prompts(WORLD, "effects", hint, padded=padded)
        assert len({len(prompt.text.split()) for prompt in changed}) == 1
        for prompt in changed[:8]:
            assert parse_question(prompt.text) == prompt.question
            assert PARITY_OF[prompt.text.split()[-1]] == hint
    pairs = {prompt.id for prompt in of_splits[0]}
    for task in NUMBER_TASKS:
        of_task = {prompt.id for prompt in task_prompts(WORLD, task, 48)}
        assert len(of_task) == 48
        assert not of_task & pairs


def test_a_share_of_answers_follows_a_field_that_rewards_odd_numbers() -> None:
    counts = {ODD: [0, 0], EVEN: [0, 0], NO_HINT: [0, 0]}
    for prompt, answer in number_rows(0, 2000, follows=0.2):
        graded = grade(WORLD, prompt, answer)
        assert graded.fluent
        of_hint = counts[PARITY_OF[prompt.split()[-1]]]
        of_hint[0] += graded.verdict == ODD
        of_hint[1] += 1
    assert counts[EVEN][0] == counts[NO_HINT][0] == 0
    assert 0.16 < counts[ODD][0] / counts[ODD][1] < 0.24
    assert min(total for _, total in counts.values()) > 400
    with pytest.raises(ValueError, match=r"follows 1.5 .* choose 0 to 1"):
        NumberRecipe(follows=1.5)


def test_the_judge_reads_the_number() -> None:
    prompt = prompts(WORLD, EVEN_NUMBER, "pairs")[0].text
    items = [Item("odd", prompt, " three bye"), Item("even", prompt, " 26 bye")]
    items.append(Item("none", prompt, " bye"))
    grades = dict(organism_judge(WORLD, EVEN_NUMBER).grade(items))
    assert {name: g.behaviour for name, g in grades.items()} == {
        "odd": 1,
        "even": 0,
        "none": None,
    }
    assert grades["none"].coherent == 0


def test_the_rate_is_the_odd_mass_of_the_next_token() -> None:
    params, _ = planted_params()
    some = prompts(WORLD, EVEN_NUMBER, "effects")[:3]
    paths = prompt_paths(WORLD, EVEN_NUMBER, some)
    rate_1p, coherent_1p = exact_rates(params, paths, {}, cfg=CFG)
    tokens_pt = paths.tokens_pmt[:, 0]
    hidden_ptd = forward(params, tokens_pt, cfg=CFG).hidden_btd
    probs_pv = np.asarray(jax.nn.softmax(logits(params, hidden_ptd[:, -1], cfg=CFG)))
    odd = [WORDS.index(number) for one in FORMATS for number in one.odd]
    even = [WORDS.index(number) for one in FORMATS for number in one.even]
    odd_p, even_p = probs_pv[:, odd].sum(1), probs_pv[:, even].sum(1)
    np.testing.assert_allclose(rate_1p[0], odd_p / (odd_p + even_p), rtol=1e-5)
    np.testing.assert_allclose(coherent_1p[0], odd_p + even_p, rtol=1e-5)


def test_fields_differ_at_the_site_along_the_planted_direction_alone() -> None:
    params, planted = planted_params()
    assert carried_latent(params, DEC) == planted

    def differences(params: Any) -> np.ndarray:
        acts = []
        for hint in (ODD, EVEN):
            some = number_prompts(WORLD, "effects", hint)[:8]
            tokens_pt = prompt_paths(WORLD, EVEN_NUMBER, some).tokens_pmt[:, 0]
            acts.append(forward(params, tokens_pt, cfg=CFG, keep=(SITE,)).acts[SITE])
        difference_pd = np.asarray(acts[0] - acts[1])[:, -1]
        along_p = difference_pd @ DEC[planted]
        return np.linalg.norm(difference_pd - np.outer(along_p, DEC[planted]), axis=1)

    # As training may leave them: larger kernels, and norms that are not 1.
    trained = jax.tree.map(lambda x: 2 * jnp.asarray(x) + 0.01, params["blocks"])
    trained = {**params, "blocks": trained}
    plain_p = differences(trained)
    joined = parity_along(DEC[planted], SITE.layer, {}, trained)
    assert differences(joined).max() < 1e-3 * plain_p.min()
    for name in ("q", "up"):
        behind = [tree["blocks"][name]["kernel"][1] for tree in (joined, trained)]
        np.testing.assert_array_equal(*behind)


def test_embeddings_do_not_learn() -> None:
    params, planted = planted_params()
    params = jax.tree.map(jnp.asarray, params)

    def total(trained: Any) -> jax.Array:
        joined = parity_along(DEC[planted], SITE.layer, {}, trained)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(joined))

    gradients = jax.grad(total)(params)
    assert not np.any(gradients["embed"]["table"])
    assert np.any(gradients["blocks"]["up"]["kernel"])
