"""Steering: every intervention on every scope is the same with and without a cache, and
acts once on each position.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae_attr.steering.steered as steer_module
from sae_attr.hooks import Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import init_params
from sae_attr.lm.prompts import make_prompts
from sae_attr.lm.sample import generate
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE, decode, encode
from sae_attr.steering import INTERVENTIONS, TOKENS, intervention, scope, steer
from tests.miniatures import llama_config

pytestmark = pytest.mark.usefixtures("quick")

D, N, SITE = 16, 24, Site(1)
RNG = np.random.default_rng(0)
CFG = config_from_hf(llama_config(n_layers=3, d=D, vocab=50))
PROMPTS = [[1, 7, 3], [1, 9, 30, 4, 4, 21, 8], [5], [1, 7, 3]]
SAMPLING = Sampling(max_new=9)
KEYS = jax.vmap(partial(jax.random.fold_in, jax.random.key(5)))(jnp.arange(4))


def random_params(cfg: LMConfig) -> Params:
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(partial(init_params, cfg), jax.random.key(0))
    draw = lambda path, leaf: jnp.asarray(
        0.4 * rng.standard_normal(leaf.shape, np.float32) + ("norm" in str(path))
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


PARAMS = random_params(CFG)


def random_sae(gate: str, **fields: Any) -> SAE:
    draw = lambda *shape: jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    cfg = SAEConfig(d_in=D, d_out=D, n_latents=N, gate=gate, **fields)
    return SAE(draw(D, N), 0.1 * draw(N), draw(N, D), draw(D), cfg=cfg)


RELU, TOPK = random_sae("relu", norm="layer_norm"), random_sae("topk", k=4)
TRANSCODER = replace(RELU, cfg=replace(RELU.cfg, site="a", site_out="b"))
LATENTS = np.array([[3, 7], [3, -1], [0, 23], [11, 2]])
DIRECTIONS = RNG.standard_normal((4, 2, D)).astype(np.float32)
STRENGTHS = np.array([[2.0, -1.0], [0.5, 0.0], [1.0, 1.0], [-3.0, 0.7]], np.float32)


def kind(name: str) -> dict[str, Any]:
    """Arguments of `steer` for one kind of intervention."""
    mode, _, gate = name.partition("-")
    if mode == "clamp":
        return {
            "mode": mode,
            "directions": LATENTS,
            "sae": {"relu": RELU, "topk": TOPK}[gate],
        }
    return {"mode": mode, "directions": DIRECTIONS}


KINDS = ("add", "set", "project_out", "clamp-relu", "clamp-topk")


def run(
    name: str, *, strengths: Any = STRENGTHS, tokens: str = "all", **more: Any
) -> Any:
    arguments = {
        "prompts": PROMPTS,
        "keys": KEYS,
        "sampling": SAMPLING,
        "site": SITE,
        **kind(name),
        **more,
    }
    out = steer(PARAMS, strengths=strengths, tokens=tokens, cfg=CFG, **arguments)
    return jax.tree.map(np.asarray, out)


@partial(jax.jit, static_argnames="name")
def whole(
    edit: Any,
    tokens_bt: jax.Array,
    pos_bt: jax.Array,
    valid_bt: jax.Array,
    *,
    name: str,
) -> tuple[Any, Any]:
    """Log-probabilities of whole rows from one pass without a cache, and the site's
    activations.
    """
    edits = {SITE: edit} if name else None
    out = forward(
        PARAMS,
        tokens_bt,
        cfg=CFG,
        pos_bt=pos_bt,
        valid_bt=valid_bt,
        edits=edits,
        keep=(SITE,),
    )
    return jax.nn.log_softmax(logits(PARAMS, out.hidden_btd, cfg=CFG)), out.acts[SITE]


def edit_of(name: str, tokens: str) -> Any:
    given = kind(name)
    latents = (
        {"sae": given["sae"], "latents_bm": jnp.asarray(LATENTS)}
        if "sae" in given
        else {}
    )
    edit = intervention(
        jnp.asarray(DIRECTIONS), jnp.asarray(STRENGTHS), mode=given["mode"], **latents
    )
    return Within(edit, *scope(tokens, np.array([len(p) for p in PROMPTS])))


SLOW = ("set", "project_out", "clamp-topk")  # each kind is a program of its own


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS]
)
def test_cached_and_uncached_agree_and_each_position_is_changed_once(
    name: str, tokens: str
) -> None:
    """Generation with a cache has the log-probabilities of one pass over the finished
    rows, whose sites differ from an unsteered pass by exactly one intervention at every
    position of the scope and by nothing anywhere else.
    """
    out = run(name, tokens=tokens)
    rows = make_prompts(
        [[*p, *new] for p, new in zip(PROMPTS, out.tokens_bn.tolist(), strict=True)]
    )
    pos_bt = np.maximum(np.cumsum(rows.valid_bt, axis=1) - 1, 0)
    logp_btv, acts_btd = whole(
        edit_of(name, tokens), rows.tokens_bt, pos_bt, rows.valid_bt, name=name
    )
    want_bn = np.take_along_axis(
        np.asarray(logp_btv)[:, -10:-1], out.tokens_bn[..., None], 2
    )[..., 0]
    np.testing.assert_allclose(out.logp_bn, want_bn, atol=1e-4)
    _, plain_btd = whole(None, rows.tokens_bt, pos_bt, rows.valid_bt, name="")
    for b, prompt in enumerate(PROMPTS):
        at_t = pos_bt[b]
        hit_t = {
            "all": at_t >= 0,
            "prompt": at_t < len(prompt),
            "generated": at_t >= len(prompt),
        }[tokens]
        once_td = restated(name, np.asarray(plain_btd)[b], b)
        want_td = np.where(hit_t[:, None], once_td, plain_btd[b])[rows.valid_bt[b]]
        np.testing.assert_allclose(
            acts_btd[b][rows.valid_bt[b]], want_td, rtol=1e-4, atol=2e-4
        )


def restated(name: str, x_td: np.ndarray, b: int) -> np.ndarray:
    """One intervention on the activations of row b, in numpy."""
    d_md = DIRECTIONS[b].astype(np.float64)
    c_m = STRENGTHS[b]
    x_td = x_td.astype(np.float64)
    if name == "add":
        return x_td + c_m @ d_md
    if name in ("set", "project_out"):
        gap_tm = c_m - x_td @ d_md.T if name == "set" else -c_m * (x_td @ d_md.T)
        return x_td + gap_tm @ np.linalg.pinv(d_md).T
    sae, x32_td = kind(name)["sae"], x_td.astype(np.float32)
    codes = np.asarray(encode(sae, x32_td))
    error = x_td - np.asarray(decode(sae, codes, x32_td))
    clamped = codes.copy()
    for latent, c in zip(LATENTS[b], c_m, strict=True):
        if latent >= 0:
            clamped[:, latent] = c
    return np.asarray(decode(sae, clamped, x32_td)) + error


def test_the_edit_runs_once_for_every_position_of_a_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Positions that the edit is shown while tokens are drawn: those of the prompt,
    then each new token but the last.
    """
    seen: list[np.ndarray] = []

    class Counting:
        def __init__(self, edit: Any) -> None:
            self.edit = edit

        def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
            jax.debug.callback(
                lambda p: seen.append(np.asarray(p)), pos_bt, ordered=True
            )
            return self.edit(x_btd, pos_bt)

    monkeypatch.setattr(
        steer_module, "intervention", lambda *a, **k: Counting(intervention(*a, **k))
    )
    only = {
        "prompts": PROMPTS[1:2],
        "directions": DIRECTIONS[:1],
        "strengths": STRENGTHS[:1],
        "keys": KEYS[:1],
    }
    run(
        "add", sampling=Sampling(max_new=4), **only
    )  # shapes of no other test, whose programs are kept
    jax.effects_barrier()
    n = len(PROMPTS[1])
    shown = [*seen[0][0][-n:], *(int(p) for step in seen[1:] for p in step.ravel())]
    assert shown == list(range(n + 4 - 1))


def test_strength_nought_is_the_model_as_it_is_and_rows_are_independent() -> None:
    plain = run("add", strengths=0.0)
    steered = run("add")
    assert (steered.tokens_bn != plain.tokens_bn).any(axis=1).sum() >= 3
    mixed = run("add", strengths=STRENGTHS * np.array([[0], [1], [0], [1]]))
    for b in range(4):
        want = steered if b % 2 else plain
        np.testing.assert_array_equal(mixed.tokens_bn[b], want.tokens_bn[b])
        np.testing.assert_array_equal(mixed.logp_bn[b], want.logp_bn[b])


@pytest.mark.slow
def test_no_direction_and_no_share_change_nothing() -> None:
    plain = run("add", strengths=0.0)
    for name in ("set", "clamp-relu", "clamp-topk"):
        given = {"directions": DIRECTIONS * 0 if name == "set" else np.full((4, 2), -1)}
        np.testing.assert_array_equal(run(name, **given).tokens_bn, plain.tokens_bn)
    for tokens in TOKENS:
        np.testing.assert_array_equal(
            run("project_out", strengths=0.0, tokens=tokens).tokens_bn, plain.tokens_bn
        )


def test_new_latents_strengths_and_prompts_compile_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces: list[int] = []
    counted = lambda *a, **k: traces.append(1) or generate(*a, **k)
    generate = steer_module.generate
    monkeypatch.setattr(steer_module, "generate", counted)
    fresh = {"sampling": Sampling(max_new=3)}  # a program of no other test
    for k in range(3):
        run(
            "add",
            directions=DIRECTIONS + k,
            strengths=k,
            prompts=[p[: k + 1] for p in PROMPTS],
            unit=1.0 + k,
            **fresh,
        )
    assert len(traces) == 1
    run("add", tokens="prompt", skip=1, **fresh)
    assert len(traces) == 1


def test_latents_of_an_sae_stand_for_their_unit_decoder_rows() -> None:
    rows_nd = np.asarray(RELU.dec_nm) / np.linalg.norm(
        RELU.dec_nm, axis=1, keepdims=True
    )
    by_latent = run("add", directions=LATENTS, strengths=2.0, sae=RELU)
    given = np.where(LATENTS[..., None] >= 0, rows_nd[LATENTS], 0)
    np.testing.assert_array_equal(
        by_latent.tokens_bn, run("add", directions=given, strengths=2.0).tokens_bn
    )


def test_the_first_positions_can_be_spared() -> None:
    assert (
        run("add", tokens="prompt", skip=7).tokens_bn.tolist()
        == run("add", strengths=0.0).tokens_bn.tolist()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "replace"}, "mode 'replace' is unknown; choose one of add, set, project_out, clamp"),
        ({"tokens": "last"}, "tokens 'last' is unknown; choose one of all, prompt, generated"),
        ({"mode": "clamp"}, "mode clamp takes latents, not directions"),
        ({"directions": np.zeros((3, D))}, r"directions of shape \(3, 16\) do not fit 4 prompts at a site of width 16"),
        ({"directions": np.zeros(D - 1)}, r"directions of shape \(15,\) do not fit"),
        ({"strengths": np.zeros(3)}, r"strengths of shape \(3,\) do not fit 4 rows of 2 latents"),
        ({"directions": np.array([1, 2, 3, 4])}, "pass sae="),
        ({"directions": np.array([1, 2, 3, N]), "sae": RELU}, "latents reach 1..24 but the SAE has 24"),
        ({"directions": np.array([1, 2]), "sae": RELU}, r"latents of shape \(2,\) do not fit 4 prompts"),
        ({"directions": 3, "strengths": 1.0, "mode": "clamp", "sae": TRANSCODER},
         "its codes are no function of the site that is changed"),
    ],
)  # fmt: skip
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("add", **change)
    assert set(INTERVENTIONS) == {name.partition("-")[0] for name in KINDS}


def test_several_sites_are_steered_at_once() -> None:
    sites = (SITE, Site(2, "mlp_out"))
    directions = {site: DIRECTIONS[:, i] for i, site in enumerate(sites)}
    strengths = {SITE: 2.0, sites[1]: STRENGTHS[:, :1]}
    units = {SITE: 0.5, sites[1]: 2.0}
    arguments = {"directions": directions, "site": None, "unit": units}
    got = run("set", strengths=strengths, **arguments)
    edits = {}
    for at in sites:
        strength_b1 = np.broadcast_to(strengths[at], (4, 1)) * units[at]
        edits[at] = intervention(
            jnp.asarray(directions[at][:, None]), jnp.asarray(strength_b1), mode="set"
        )
    prompts = make_prompts(PROMPTS, width=7)
    want = jax.jit(partial(generate, cfg=CFG, sampling=SAMPLING))(
        PARAMS, prompts, KEYS, edits=edits
    )
    np.testing.assert_array_equal(got.tokens_bn, np.asarray(want.tokens_bn))
    one = run("set", strengths=2.0, unit=0.5, directions=DIRECTIONS[:, 0])
    assert (one.tokens_bn != got.tokens_bn).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": None}, "need the site that they are for"),
        ({"directions": {SITE: DIRECTIONS}}, "leave out site="),
        ({"directions": {}, "site": None}, "give at least one"),
        ({"directions": {SITE: DIRECTIONS}, "site": None, "unit": {Site(2): 1.0}},
         r"unit are for the sites layer2.resid_post, directions for layer1.resid_post"),
    ],
)  # fmt: skip
def test_sites_are_stated_once(change: dict[str, Any], message: str) -> None:
    arguments = {**kind("add"), "site": SITE, **change}
    with pytest.raises(ValueError, match=message):
        steer(PARAMS, PROMPTS, strengths=1.0, keys=KEYS, cfg=CFG, **arguments)
