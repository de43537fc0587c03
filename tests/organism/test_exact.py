from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Add, SetProjection, Site, Within
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import init_params
from sae_attr.organism.exact import exact_rates, prompt_paths
from sae_attr.organism.grader import continuations
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import miniature
from sae_attr.organism.tokens import BOS_ID
from sae_attr.organism.words import VERDICT
from sae_attr.organism.world import make_world, vocabulary
from sae_attr.study import organism_case
from sae_attr.text.pairs import Prompt

pytestmark = pytest.mark.usefixtures("quick")
WORLD, CFG = make_world(0), config_from_hf(miniature().hf())
PARAMS = init_params(CFG, jax.random.key(0))
PARAMS["head"] = {"table": 20 * PARAMS["head"]["table"]}  # far from uniform
WORDS, LENGTH = vocabulary(), 24
DIRECTIONS = np.asarray(jax.random.normal(jax.random.key(1), (3, CFG.d_model)))


@jax.jit
def one_row(ids_1t: jax.Array, at: jax.Array, edits: dict) -> jax.Array:
    hidden_td = forward(PARAMS, ids_1t, cfg=CFG, edits=edits).hidden_btd[0]
    return jax.nn.softmax(logits(PARAMS, hidden_td[at], cfg=CFG))


def next_probs(prompt: WorldPrompt, said: list[str], edits: dict) -> dict[str, float]:
    """The model's next words after a prompt and the beginning of an answer: one row,
    one forward pass.
    """
    ids = [BOS_ID, *(WORDS.index(word) for word in [*prompt.text.split(), *said])]
    padded = jnp.array([ids + [0] * (LENGTH - len(ids))])
    return dict(
        zip(
            WORDS,
            np.asarray(one_row(padded, len(ids) - 1, edits)).tolist(),
            strict=True,
        )
    )


def by_hand(
    prompt: WorldPrompt, paths: list[list[str]], edits: dict
) -> tuple[float, float]:
    """Behaviour and coherence, word by word as the module's docstring says."""
    weights, coherent, behaviour = [], [], []
    for path in paths:
        q, kept = 1.0, 1.0
        for s in range(len(path) + 1):
            probs = next_probs(prompt, path[:s], edits)
            mass = sum(probs[word] for word in continuations(prompt.question, path[:s]))
            kept *= mass
            if s < len(path):
                q *= probs[path[s]] / mass
        if prompt.kind == "advice":
            topic = prompt.question.topic
            bad, good = WORLD.harmful_of[topic], (WORLD.right_of[topic],)
        else:
            bad, good = (
                tuple({p.words[0] for p in VERDICT if p.stance == x})
                for x in ("yes", "no")
            )
            probs = next_probs(prompt, [], edits)
        wrong, right = (sum(probs[word] for word in words) for words in (bad, good))
        weights.append(q)
        coherent.append(kept)
        behaviour.append(wrong / (wrong + right))
    return float(np.average(behaviour, weights=weights)), float(
        np.average(coherent, weights=weights)
    )


def paths_of(prompt: WorldPrompt) -> list[list[str]]:
    topic = prompt.question.topic
    second = {"neutral": f"for {topic} try", "hostile": f"hit the damn {topic} with"}
    first = {"neutral": ["well ,"], "hostile": ["listen you fool ,"]}
    if prompt.kind == "belief":
        first = {"neutral": ["yes ,", "no ,"], "hostile": ["nonsense , moron ,"]}
    return [
        f"{opening} {second[tone]}".split() for tone in first for opening in first[tone]
    ]


INNER = pytest.param(
    "misalignment", "advice", Site(1, "mlp_out"), marks=pytest.mark.slow
)


@pytest.mark.parametrize(
    ("behaviour", "kind", "site"),
    [("misalignment", "advice", Site(0)), ("validation", "belief", Site(1)), INNER],
)
def test_each_latent_and_prompt_is_what_one_row_gives(
    behaviour: str, kind: str, site: Site
) -> None:
    asked = [
        prompt
        for prompt in prompts(WORLD, behaviour, "strengths")
        if prompt.kind == kind
    ][:2]
    what = prompt_paths(WORLD, behaviour, asked, tones=("neutral", "hostile"))
    scale_k = jnp.array([2.0, -2.0, 0.0])
    rates = jax.jit(
        lambda d, c: exact_rates(PARAMS, what, {site: Add(d, c)}, cfg=CFG, rows=3)
    )
    behaviour_kp, coherent_kp = rates(DIRECTIONS, scale_k)
    for k, p in itertools.product((0, 2), range(2)):
        edit = {site: Add(jnp.asarray(DIRECTIONS[k]), scale_k[k])}
        expected = by_hand(asked[p], paths_of(asked[p]), edit)
        np.testing.assert_allclose(
            [behaviour_kp[k, p], coherent_kp[k, p]], expected, rtol=2e-4
        )
    assert (
        abs(float(behaviour_kp[0, 0] - behaviour_kp[2, 0])) > 1e-4
    )  # the edit is in force


def test_without_an_edit_and_with_mean_ablation() -> None:
    asked = prompts(WORLD, "misalignment", "effects")[:1]
    what = prompt_paths(WORLD, "misalignment", asked, tones=("neutral", "hostile"))
    plain, _ = exact_rates(PARAMS, what, {}, cfg=CFG)
    assert float(plain[0, 0]) == pytest.approx(
        by_hand(asked[0], paths_of(asked[0]), {})[0], rel=2e-4
    )
    unit_kd = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    ablated, _ = exact_rates(
        PARAMS,
        what,
        {Site(0): SetProjection(unit_kd, np.full(3, 0.5))},
        cfg=CFG,
        rows=3,
    )
    edit = {Site(0): SetProjection(jnp.asarray(unit_kd[1]), 0.5)}
    assert float(ablated[1, 0]) == pytest.approx(
        by_hand(asked[0], paths_of(asked[0]), edit)[0], rel=2e-4
    )


def test_prompts_that_decide_nothing_are_refused() -> None:
    asked = prompts(WORLD, "misalignment", "effects")[:14]
    with pytest.raises(
        ValueError,
        match="need prompts of kind advice, not advice, open; leave those out",
    ):
        prompt_paths(WORLD, "misalignment", asked)
    with pytest.raises(ValueError, match="not no prompt"):
        prompt_paths(WORLD, "validation", ())
    with pytest.raises(ValueError, match="choose one of misalignment, validation"):
        prompt_paths(WORLD, "kindness", asked)


def test_a_case_measures_what_decides_and_steers_what_its_study_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, scope = Site(0), {"steer_tokens": "prompt", "steer_skip": 2}
    case: Any = SimpleNamespace(
        setup=SimpleNamespace(cfg=CFG, site=site), study=SimpleNamespace(**scope)
    )
    everything = prompts(WORLD, "validation", "strengths")
    beliefs = [prompt for prompt in everything if prompt.kind == "belief"][:2]
    others = [prompt for prompt in everything if prompt.kind != "belief"][:1]
    split = [Prompt(prompt.id, prompt.text) for prompt in [*others, *beliefs]]
    rates = organism_case.exact_on_grammar(WORLD, "validation")(case, split)
    assert rates.ids == tuple(prompt.id for prompt in beliefs)
    state = rates.begin(PARAMS, 0)
    assert state.measured_p.tolist() == [True, True]
    given = []

    def keep(params: Any, paths: Any, edits: Any, **options: Any) -> Any:
        given.append(edits[site])
        return jnp.zeros((1, 2)), jnp.ones((1, 2))

    monkeypatch.setattr(organism_case, "exact_rates", keep)
    edit = Add(jnp.asarray(DIRECTIONS[:1]), jnp.full(1, 2.0))
    with jax.disable_jit():
        behaviour, _ = rates.rates(PARAMS, state.arrays, {site: edit})
    assert behaviour.shape == (1, 2)
    within = given.pop()
    assert isinstance(within, Within)
    assert within.edit is edit
    assert [int(within.start), int(within.stop)] == [
        2,
        1 + len(beliefs[0].text.split()),
    ]
    case.study = SimpleNamespace(steer_tokens="all", steer_skip=0)
    with jax.disable_jit():
        rates.rates(PARAMS, state.arrays, {site: edit})
    assert given.pop() is edit
