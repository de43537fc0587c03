"""Effects on logits through the final norm, against finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.activations import CorpusBatch
from sae_attr.lm.lrp import parse_rules
from sae_attr.lm.model import forward, logits
from sae_attr.logit_effects import (
    STRIDE,
    entropy_effects,
    final_states,
    logit_effects,
)
from sae_attr.parallel import make_mesh
from tests.attribution._tiny import llama, neox, random_params
from tests.lm.test_lrp import post_norm

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("family", [llama, neox, post_norm], ids=lambda f: f.__name__)
def test_effects_are_the_slope_of_the_logits_through_norm_and_soft_cap(
    family: Any,
) -> None:
    """RMSNorm, LayerNorm, and RMSNorm with a soft-cap that bends the logits."""
    step = 1e-5
    with jax.enable_x64(True):
        cfg = family(resid_dtype="float64")
        params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(cfg))
        rng = np.random.default_rng(0)
        states_xd = rng.standard_normal((7, cfg.d_model)) + 0.5
        directions_kd = rng.standard_normal((3, cfg.d_model))
        effects_kv = logit_effects(params, directions_kd, states_xd, cfg=cfg)
        moved_kxd = step * directions_kd[:, None]
        above_kxv = logits(params, states_xd + moved_kxd, cfg=cfg)
        below_kxv = logits(params, states_xd - moved_kxd, cfg=cfg)
        slope_kv = np.mean(np.asarray(above_kxv - below_kxv), axis=1) / (2 * step)
    slope_kv -= slope_kv.mean(-1, keepdims=True)
    assert np.abs(slope_kv).max() > 0.1
    np.testing.assert_allclose(effects_kv, slope_kv, rtol=1e-6, atol=1e-7)


def test_entropy_effects_are_its_slope_and_a_null_direction_acts_through_the_norm() -> (
    None
):
    step = 1e-5
    with jax.enable_x64(True):
        cfg = llama(resid_dtype="float64")
        params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(cfg))
        rng = np.random.default_rng(0)
        null_d = np.zeros(cfg.d_model)
        null_d[0] = 1
        table = "embed" if cfg.tied_head else "head"
        params[table]["table"] *= np.arange(cfg.d_model) > 0
        states_xd = rng.standard_normal((7, cfg.d_model)) + 0.5
        directions_kd = np.stack([null_d, rng.standard_normal(cfg.d_model)])
        slope_k = entropy_effects(params, directions_kd, states_xd, cfg=cfg)
        held = parse_rules("norm")
        held_k = entropy_effects(params, directions_kd, states_xd, cfg=cfg, rules=held)
        entropies = []
        for sign in (1, -1):
            moved_kxd = states_xd + sign * step * directions_kd[:, None]
            log_kxv = jax.nn.log_softmax(logits(params, moved_kxd, cfg=cfg))
            entropies.append(-(jnp.exp(log_kxv) * log_kxv).sum(-1).mean(1))
        expected_k = np.asarray(entropies[0] - entropies[1]) / (2 * step)
        slope_k, held_k = np.asarray(slope_k), np.asarray(held_k)
    np.testing.assert_allclose(slope_k, expected_k, rtol=1e-5, atol=1e-8)
    assert abs(slope_k[0]) > 1e-3
    assert held_k[0] == pytest.approx(0, abs=1e-12)
    assert abs(held_k[1]) > 1e-3


def test_states_are_what_enters_the_final_norm_at_every_eighth_counted_position() -> (
    None
):
    cfg = llama()
    params = random_params(cfg)
    tokens_bt = np.random.default_rng(1).integers(3, cfg.vocab, (2, 20), np.int32)
    valid_bt = np.ones(tokens_bt.shape, bool)
    counted_bt = valid_bt.copy()
    counted_bt[0, STRIDE] = False
    batches = [CorpusBatch(tokens_bt, valid_bt, counted_bt)]
    found = final_states(params, batches, cfg=cfg, mesh=make_mesh("data=1"), count=4)
    hidden_btd = forward(params, tokens_bt, cfg=cfg).hidden_btd
    expected = [hidden_btd[0, 0], hidden_btd[0, 16], *hidden_btd[1, [0, 8]]]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-5)
    nothing = [CorpusBatch(tokens_bt, valid_bt, ~valid_bt)]
    with pytest.raises(ValueError, match="no position of the corpus counts"):
        final_states(params, nothing, cfg=cfg, mesh=make_mesh("data=1"), count=4)
