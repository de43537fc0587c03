"""The loss on ordinary text under steering: against whole logits, position by
position.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.hooks import Add, Site, Within
from sae_attr.lm.model import forward, logits
from sae_attr.parallel import make_mesh
from sae_attr.steering.text_loss import edited_text_loss
from tests.steering.test_steered import CFG, PARAMS, D

pytestmark = pytest.mark.usefixtures("quick")

RNG = np.random.default_rng(4)
MESH = make_mesh("data=1", jax.devices()[:1])
VECTORS = RNG.standard_normal((4, D)).astype(np.float32)
STRENGTHS = np.array([0.0, 0.0, 1.5, -2.0], np.float32)  # the first changes nothing
EDIT = Add(jnp.asarray(VECTORS), jnp.asarray(STRENGTHS))


class Batch(NamedTuple):
    tokens_bt: np.ndarray
    valid_bt: np.ndarray
    counted_bt: np.ndarray


def batch(lengths: tuple[int, ...], width: int) -> Batch:
    """Random tokens of which a few do not count."""
    tokens = RNG.integers(1, CFG.vocab, (len(lengths), width)).astype(np.int32)
    valid = np.arange(width) < np.array(lengths)[:, None]
    counted = valid & (RNG.random(valid.shape) < 0.8)
    return Batch(np.where(valid, tokens, 0).astype(np.int32), valid, counted)


BATCHES = [batch((9, 5, 0), 9), batch((70, 66, 3), 70)]


def by_hand(vector: np.ndarray, site: Site, skip: int) -> float:
    """Mean nats per token, from a whole forward pass and whole logits."""
    total, count = 0.0, 0
    for tokens, valid, counted in BATCHES:
        edits = {site: Within(Add(jnp.asarray(vector)), start=skip)}
        hidden = forward(PARAMS, tokens, cfg=CFG, valid_bt=valid, edits=edits)
        logp = jax.nn.log_softmax(logits(PARAMS, hidden.hidden_btd, cfg=CFG))
        for b, t in zip(*np.nonzero(counted), strict=True):
            if t:
                total -= float(logp[b, t - 1, tokens[b, t]])
                count += 1
    return total / count


@pytest.mark.parametrize(
    ("site", "skip"),
    [(Site(1), 1), (Site(2), 0), (Site(0, "resid_pre"), 0), (Site(1, "mlp_out"), 2)],
    ids=str,
)
def test_nats_per_token_are_those_of_whole_logits(site: Site, skip: int) -> None:
    loss = edited_text_loss(
        PARAMS, BATCHES, {site: EDIT}, cfg=CFG, mesh=MESH, skip=skip
    )
    for k, strength in enumerate(STRENGTHS[1:]):
        expected = by_hand(strength * VECTORS[k + 1], site, skip)
        assert loss.nats_k[k] == pytest.approx(expected, rel=1e-5)
    assert loss.plain == loss.nats_k[0]  # strength 0 is no steering
    assert loss.nats_kr.shape == (3, 6)
    assert abs(loss.cost_k[1]) > 0.01
    counted = sum(int(b.counted_bt[:, 1:].sum()) for b in BATCHES)
    assert loss.tokens == counted


def test_text_of_which_nothing_counts_is_refused() -> None:
    none = [b._replace(counted_bt=np.zeros_like(b.counted_bt)) for b in BATCHES]
    with pytest.raises(ValueError, match="no token of the text counts"):
        edited_text_loss(PARAMS, none, {Site(1): EDIT}, cfg=CFG, mesh=MESH)
