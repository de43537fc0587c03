"""Log-probabilities of texts after prompts, against a plain forward pass over each
prompt with each text.
"""

from __future__ import annotations

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
from sae_attr.steering.continuation_layout import lay_out, width_groups
from sae_attr.steering.continuations import continuation_log_probs, run_unsteered
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


def alone(
    cfg: LMConfig,
    params: Any,
    site: Site,
    edit: Any,
    prompt: list[int],
    text: list[int],
) -> float:
    """log p of one text after one prompt under one edit: one row, all layers."""
    out = forward(params, jnp.array([prompt + text]), cfg=cfg, edits={site: edit})
    log_probs_tv = jax.nn.log_softmax(logits(params, out.hidden_btd[0], cfg=cfg))
    start = len(prompt) - 1
    return float(sum(log_probs_tv[start + i, token] for i, token in enumerate(text)))


def measured(
    cfg: LMConfig, params: Any, site: Site, edit: Any, rows: int = ROWS, **scope: Any
) -> np.ndarray:
    layout = lay_out(PROMPTS, TEXTS)
    unsteered = run_unsteered(params, layout, cfg=cfg, site=site)
    return np.asarray(
        continuation_log_probs(
            params, layout, unsteered, edit, cfg=cfg, site=site, rows=rows, **scope
        )
    )


CASES = [
    (GPT2, Site(0), "add", "all", 0),
    (GPT2, Site(1, "mlp_out"), "set", "prompt", 1),
    (GEMMA2, Site(1), "add", "generated", 0),
    (GEMMA2, Site(2), "add", "all", 2),
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
