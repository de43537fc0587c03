"""Log-probabilities of texts after prompts, against a plain forward pass over each
prompt with each text.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Add, SetProjection, Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import forward, logits
from sae_attr.lm.params import init_params
from sae_attr.lm.sites import suffix_start
from sae_attr.steering.continuation_layout import in_parts, lay_out
from sae_attr.steering.continuations import (
    continuation_log_probs,
    read_shared,
    run_unsteered,
)
from sae_attr.steering.contrast import Contrast, contrast_rates
from sae_attr.steering.interventions import scope

pytestmark = pytest.mark.usefixtures("quick")
PROMPTS = [[1, 5, 6, 7, 8], [1, 5, 6, 9], [1, 5, 6, 9, 4, 3, 2, 8]]
TEXTS = [
    [[10], [11, 12, 13], [11, 12, 14], [15, 16]],
    [[11], [10]],
    [[20, 21, 22, 23], [20], [30]],
]
ROWS = 4
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
}
GEMMA2 = {
    "model_type": "gemma2",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def model(hf: dict[str, Any]) -> tuple[LMConfig, Any]:
    cfg = config_from_hf(hf)
    params = init_params(cfg, jax.random.key(0))
    # Far from uniform, so that a wrong token or position shows.
    params["embed"]["table"] *= 8
    return cfg, params


def directions(cfg: LMConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, cfg.d_model)).astype(np.float32)


def edit_of(kind: str, cfg: LMConfig) -> Any:
    dirs_kd = directions(cfg)
    if kind == "add":
        return Add(jnp.asarray(dirs_kd), jnp.array([1.5, -1.5, 0.5, 0.0]))
    unit_kd = dirs_kd / np.linalg.norm(dirs_kd, axis=1, keepdims=True)
    return SetProjection(jnp.asarray(unit_kd), jnp.array([2.0, 0.0, -2.0, 1.0]))


@partial(jax.jit, static_argnames=("cfg", "site"))
def whole_row(
    params: Any, tokens_1t: jax.Array, edit: Any, *, cfg: LMConfig, site: Site
) -> jax.Array:
    """Log-probabilities `[t, v]` of next tokens: one row, all layers, no cache."""
    out = forward(params, tokens_1t, cfg=cfg, edits={site: edit})
    return jax.nn.log_softmax(logits(params, out.hidden_btd[0], cfg=cfg))


def alone(
    cfg: LMConfig,
    params: Any,
    site: Site,
    edit: Any,
    prompt: list[int],
    text: list[int],
) -> float:
    """log p of one text after one prompt under one edit."""
    tokens = [*prompt, *text]
    padded = jnp.array([tokens + [0] * (12 - len(tokens))])
    log_probs_tv = whole_row(params, padded, edit, cfg=cfg, site=site)
    start = len(prompt) - 1
    return float(sum(log_probs_tv[start + i, token] for i, token in enumerate(text)))


def measured(
    cfg: LMConfig,
    params: Any,
    site: Site,
    edit: Any,
    *,
    prompts: list[list[int]] = PROMPTS,
    texts: list[list[list[int]]] = TEXTS,
    **options: Any,
) -> np.ndarray:
    """Log-probabilities `[k, p, n]` of all texts under all conditions."""
    layout = lay_out(prompts, texts)
    run = partial(run_unsteered, cfg=cfg, start=suffix_start(site, cfg)[0])
    steer = partial(continuation_log_probs, cfg=cfg, **options)
    unsteered = jax.jit(run)(params, layout)
    return np.asarray(jax.jit(steer)(params, layout, unsteered, {site: edit}))


CASES = [
    pytest.param(GPT2, Site(1, "mlp_out"), "set", "prompt", 1, id="gpt2-prompt"),
    pytest.param(GEMMA2, Site(1), "add", "generated", 0, id="gemma2-generated"),
    pytest.param(GPT2, Site(0), "add", "all", 0, id="gpt2", marks=pytest.mark.slow),
    pytest.param(GEMMA2, Site(2), "add", "all", 2, id="gemma2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("hf", "site", "kind", "tokens", "skip"), CASES)
def test_every_text_under_every_condition_is_what_a_plain_forward_pass_gives(
    hf: dict[str, Any], site: Site, kind: str, tokens: str, skip: int
) -> None:
    cfg, params = model(hf)
    edit = edit_of(kind, cfg)
    got_kpn = measured(cfg, params, site, edit, tokens=tokens, skip=skip)
    assert got_kpn.shape == (ROWS, 3, 4)
    for k in (0, 2):
        edit_k = jax.tree.map(lambda x, k=k: x[k], edit)
        for p, prompt in enumerate(PROMPTS):
            within = Within(edit_k, *scope(tokens, len(prompt), skip=skip))
            for n, text in enumerate(TEXTS[p]):
                want = alone(cfg, params, site, within, prompt, text)
                assert got_kpn[k, p, n] == pytest.approx(want, abs=1e-5)
    assert np.isneginf(got_kpn[:, 1, 2:]).all()  # the second prompt has two texts


def test_a_zero_strength_is_the_unsteered_model_bit_for_bit_whatever_the_batch() -> (
    None
):
    cfg, params = model(GPT2)
    dirs_kd = directions(cfg)
    dirs_kd[3] = 0  # the unsteered model, as sweeps have it
    strengths_k = np.array([0.0, 1.0, 0.0, 0.0], np.float32)
    site = Site(1)
    got_kpn = measured(cfg, params, site, Add(dirs_kd, strengths_k))
    np.testing.assert_array_equal(got_kpn[0], got_kpn[3])
    np.testing.assert_array_equal(got_kpn[2], got_kpn[3])
    assert (got_kpn[1] != got_kpn[3])[np.isfinite(got_kpn[3])].all()
    other_kpn = measured(cfg, params, site, Add(dirs_kd[:2], strengths_k[:2]))
    np.testing.assert_allclose(other_kpn, got_kpn[:2], atol=1e-5)
    unsteered = run_unsteered(params, lay_out(PROMPTS, TEXTS), cfg=cfg, start=2)
    np.testing.assert_allclose(unsteered.log_probs_pn, got_kpn[3], atol=1e-5)


def test_several_sites_are_edited_from_the_first_of_them_on() -> None:
    cfg, params = model(GPT2)
    edits = {Site(0): edit_of("add", cfg), Site(2): edit_of("set", cfg)}
    layout = lay_out(PROMPTS, TEXTS)
    unsteered = jax.jit(partial(run_unsteered, cfg=cfg, start=1))(params, layout)
    steer = jax.jit(partial(continuation_log_probs, cfg=cfg))
    got_kpn = steer(params, layout, unsteered, edits)
    edits_k = jax.tree.map(lambda x: x[2], edits)
    tokens = jnp.array([[*PROMPTS[0], *TEXTS[0][0]]])
    whole = jax.jit(partial(forward, cfg=cfg))(params, tokens, edits=edits_k)
    log_probs_tv = jax.nn.log_softmax(logits(params, whole.hidden_btd[0], cfg=cfg))
    start = len(PROMPTS[0]) - 1
    want = sum(log_probs_tv[start + i, token] for i, token in enumerate(TEXTS[0][0]))
    assert got_kpn[2, 0, 0] == pytest.approx(float(want), abs=1e-5)
    late = replace(unsteered, start=2)
    with pytest.raises(ValueError, match="layer 1, but the unsteered run was stored"):
        continuation_log_probs(params, layout, late, edits, cfg=cfg)


# ---- layout --------------------------------------------------------------------------


def test_texts_share_rows_and_prompts_their_beginning() -> None:
    layout = lay_out(PROMPTS, TEXTS)
    assert layout.shared_s.tolist() == [1, 5, 6]
    # Rows lack the last token: [11, 12] serves two texts, and one-token texts need none.
    assert layout.rows_prc.shape == (3, 2, 3)
    assert layout.row_length_pr.tolist() == [[2, 1], [0, 0], [3, 0]]
    assert layout.row_of_pn[0].tolist()[1:] == [0, 0, 1]
    assert lay_out([[1, 2]], [[[3], [4]]]).rows_prc.shape == (1, 1, 0)
    assert lay_out([[1, 2], [1, 2]], [[[3]], [[4]]]).shared_s.tolist() == [1]
    with pytest.raises(ValueError, match="prompt 1 needs a token"):
        lay_out([[1], [2]], [[[3]], [[]]])


def test_parts_hold_every_prompt_once_and_have_few_shapes() -> None:
    rng = np.random.default_rng(0)
    lengths = [5, 40, 6, 41, 90, 7, 40]
    prompts = [[1, *rng.integers(2, 40, n - 1).tolist()] for n in lengths]
    texts = [[[n], [n, 3]] for n in range(len(prompts))]
    parts = in_parts(prompts, texts, most=3, longest_row=1000)
    assert [part.places.tolist() for part in parts] == [[0, 2, 5], [1, 6, 3], [4]]
    assert [part.layout.rest_pt.shape for part in parts] == [(3, 8), (3, 40), (3, 96)]
    for part in parts:
        assert part.layout.shared_s.tolist() == [1]
        for row, place in enumerate(part.places):
            rest = part.layout.rest_pt[row, : lengths[place] - 1]
            assert rest.tolist() == prompts[place][1:]
            assert part.layout.ids_pnc[row, 0, 0] == place
    # A padding that the model could not read is left out.
    whole = in_parts(prompts, texts, most=7, longest_row=92)
    assert [part.layout.rest_pt.shape for part in whole] == [(7, 89)]


def test_what_prompts_share_may_run_once_for_several_layouts() -> None:
    cfg, params = model(GEMMA2)
    site = Site(1)
    edit = {site: edit_of("add", cfg)}
    start, _ = suffix_start(site, cfg)
    prompts = [[1, 2, 5, 6], [1, 2, 7], [1, 2, 8, 9, 3], [1, 2, 4]]
    texts = [[[3], [4, 5]]] * 4
    whole = continuation_log_probs(
        params,
        lay_out(prompts, texts),
        run_unsteered(params, lay_out(prompts, texts), cfg=cfg, start=start),
        edit,
        cfg=cfg,
    )
    shared = None
    for part in in_parts(prompts, texts, most=3, longest_row=cfg.max_len):
        unsteered = run_unsteered(params, part.layout, cfg=cfg, start=start)
        if shared is None:
            shared = read_shared(params, unsteered, edit, cfg=cfg)
        of_part = continuation_log_probs(
            params, part.layout, unsteered, edit, shared, cfg=cfg
        )
        np.testing.assert_allclose(
            of_part[:, : len(part.places)], whole[:, part.places], atol=1e-5
        )


# ---- rates ---------------------------------------------------------------------------


def test_rates_of_probabilities_and_of_log_odds() -> None:
    log_probs_kpn = np.log([[[0.2, 0.1, 0.3], [0.5, 0.25, 1e-9]]])
    side_pn, length_pn = [[1, 1, -1], [1, -1, 0]], [[1, 2, 4], [1, 2, 0]]
    share_kp, mass_kp = contrast_rates(log_probs_kpn, side_pn, length_pn)
    np.testing.assert_allclose(share_kp, [[0.5, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(mass_kp, [[0.6, 0.75]], rtol=1e-6)
    odds = Contrast(measure="log_odds")
    share_kp, mass_kp = contrast_rates(log_probs_kpn, side_pn, length_pn, odds)
    with_, without = (np.log(0.2) + np.log(0.1) / 2) / 2, np.log(0.3) / 4
    np.testing.assert_allclose(share_kp[0, 0], 1 / (1 + np.exp(without - with_)), 1e-6)
    geometric = np.exp((np.log(0.2) + np.log(0.1) / 2 + np.log(0.3) / 4) / 3)
    np.testing.assert_allclose(mass_kp[0, 0], geometric, rtol=1e-6)
    summed = Contrast(measure="log_odds", per_token=False)
    share_kp, _ = contrast_rates(log_probs_kpn, side_pn, length_pn, summed)
    np.testing.assert_allclose(share_kp[0, 1], 0.5 / 0.75, rtol=1e-6)
    with pytest.raises(ValueError, match="measure 'odds' is unknown"):
        Contrast(measure="odds")
