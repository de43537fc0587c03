"""The papers' settings: losses against the authors' formulas and against peers' trainers
from equal weights, and what a run of each preset does.
"""

from dataclasses import asdict, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from configs.train_sae import get_config
from sae_attr.sae.model import SAE
from sae_attr.sae.objectives import OBJECTIVES, Signals
from sae_attr.sae.published import PUBLISHED, as_published
from sae_attr.sae.train_config import TrainConfig, recorded
from sae_attr.sae.train_state import first_state, schedule
from sae_attr.sae.update import annealed_k, coefficient, train_step

pytestmark = pytest.mark.usefixtures("quick")
B, D, N, K, TARGET, LAM = 24, 6, 32, 4, 5.0, 0.3
RNG = np.random.default_rng(0)
X: Any = RNG.standard_normal((B, D)).astype(np.float32)


def config(name: str, **fields: Any) -> TrainConfig:
    return TrainConfig(D, N, 4000, **({"k": K} | as_published(name) | fields))


def weights(cfg: TrainConfig) -> SAE:
    """Random weights with norms, biases and thresholds away from their first values."""
    draw = np.random.default_rng(1)
    sae = first_state(cfg, X, 0.2 * X[0]).sae
    fields: dict[str, Any] = {
        "enc_bias_n": jnp.asarray(0.1 * draw.standard_normal(N), jnp.float32)
    }
    if sae.threshold_n is not None:
        fields["threshold_n"] = jnp.asarray(draw.uniform(0.2, 0.9, N), jnp.float32)
    return replace(sae, **fields)


def loss(cfg: TrainConfig, sae: SAE, **signals: Any) -> float:
    """The loss with squared errors summed over coordinates, as the papers have it."""
    given = Signals(jnp.zeros(N, bool), jnp.float32(LAM / D), **signals)
    terms = OBJECTIVES[cfg.objective].loss(sae, X, X, cfg, given).terms
    return D * sum(float(term) for term in terms.values())


def codes_and_output(cfg: TrainConfig, sae: SAE) -> tuple[np.ndarray, Any]:
    """Codes in float64 before selection, and the decoder without its bias."""
    names = ("enc_dn", "enc_bias_n", "dec_nm", "dec_bias_m")
    enc, bias, dec, centre = (np.asarray(getattr(sae, n), np.float64) for n in names)
    inner = X - centre if sae.cfg.subtract_b_dec else X
    return inner @ enc + bias, lambda codes: codes @ dec + centre


@pytest.mark.parametrize("penalty", ["step", "quadratic", "quadratic_mean"])
def test_jumprelu_is_the_papers_formula(penalty: str) -> None:
    cfg = config("jumprelu", penalty=penalty, target_l0=TARGET)
    sae = weights(cfg)
    pre, decode = codes_and_output(cfg, sae)
    active = pre > np.asarray(sae.threshold_n)
    error = np.square(decode(np.maximum(pre, 0) * active) - X).sum(1).mean()
    l0 = active.sum(1)
    penalties = {
        "step": l0.mean(),
        "quadratic": (2 / TARGET * (l0 - TARGET) ** 2).mean(),
        "quadratic_mean": (l0.mean() / TARGET - 1) ** 2,
    }
    assert not sae.cfg.subtract_b_dec
    assert loss(cfg, sae) == pytest.approx(error + LAM * penalties[penalty], rel=1e-6)


def test_jumprelu_starts_as_published() -> None:
    """The encoder is the decoder's transpose, and every threshold 0.001."""
    sae = first_state(config("jumprelu"), X, np.zeros(D)).sae
    np.testing.assert_allclose(sae.enc_dn, sae.dec_nm.T, rtol=1e-6)
    assert sae.threshold_n is not None
    np.testing.assert_allclose(sae.threshold_n, 1e-3, rtol=1e-6)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_ranked_losses_are_the_papers_formulas(name: str) -> None:
    """Matryoshka's is a mean over five prefixes and the empty one."""
    cfg = config(name)
    sae = weights(cfg)
    pre, decode = codes_and_output(cfg, sae)
    codes = np.maximum(pre, 0)
    codes = np.where(codes >= np.sort(codes.ravel())[-B * K], codes, 0)
    ends = [0, N // 16, N // 8, N // 4, N // 2, N] if name == "matryoshka" else [N]
    errors = []
    for end in ends:
        prefix = np.where(np.arange(N) < end, codes, 0)
        errors.append(np.square(decode(prefix) - X).sum(1).mean())
    assert loss(cfg, sae) == pytest.approx(np.mean(errors), rel=1e-6)


def test_k_falls_from_its_start_to_its_end() -> None:
    cfg = config("batch_topk", k_start=12, k_anneal=0.5)
    state = first_state(cfg, X, np.zeros(D))
    for step, k in ((0, 12), (1000, 8), (2000, K), (3999, K)):
        assert annealed_k(replace(state, step=jnp.int32(step)), cfg) == k
    wide = replace(state.sae, enc_bias_n=jnp.full(N, 9.0))
    signals = Signals(jnp.zeros(N, bool), jnp.float32(0), k=jnp.int32(8))
    outcome = OBJECTIVES["batch_topk"].loss(wide, X, X, cfg, signals)
    assert float(outcome.l0) == 8
    pre, _ = codes_and_output(cfg, wide)
    assert float(outcome.threshold) == pytest.approx(np.sort(pre.ravel())[-8 * B])


def test_a_step_of_the_log_threshold_is_adams() -> None:
    """Adam's first step has the length of the rate in every coordinate, here of log θ."""
    cfg = config("jumprelu", bandwidth=4.0, lr=0.01, warmup=0, target_l0=TARGET)
    state = first_state(cfg, X, np.zeros(D))
    state = replace(state, sae=weights(cfg), log_sparsity=jnp.float32(5.0))
    after, _ = train_step(state, jnp.asarray(X), jnp.asarray(X), cfg=cfg)
    assert after.sae.threshold_n is not None
    assert state.sae.threshold_n is not None
    moved = jnp.log(after.sae.threshold_n) - jnp.log(state.sae.threshold_n)
    np.testing.assert_allclose(np.abs(moved), 0.01, rtol=1e-3)


def test_rises_are_the_papers() -> None:
    cfg = config("jumprelu")
    rate = schedule(cfg)
    for step in (0, 250, 500, 1000, 3999):
        share = min(step / 1000, 1)
        want = 7e-5 * (1 - 0.9 * (1 + np.cos(np.pi * share)) / 2)
        assert np.asarray(rate(step)) == pytest.approx(want, rel=1e-5)
    state = replace(first_state(cfg, X, np.zeros(D)), step=jnp.int32(2499))
    assert float(coefficient(state, cfg)) == pytest.approx(cfg.sparsity / 4, rel=1e-5)


@pytest.mark.parametrize("name", ["crosscoder", "crosscoder_l1"])
def test_crosscoders_are_the_papers_formulas(name: str) -> None:
    """Σ over models of the mean length of the error, with AuxK as a share of the
    residual's variance; ½|e|² with the norms of both models in the penalty.
    """
    cfg = config(name, streams=2, k=K)
    sae = weights(cfg)
    rows = np.asarray(sae.dec_nm, np.float64).reshape(N, 2, D // 2)
    norm = np.linalg.norm(rows, axis=2).sum(1)
    pre, decode = codes_and_output(cfg, sae)
    codes = np.maximum(pre, 0)
    lengths = lambda e: np.linalg.norm(e.reshape(B, 2, D // 2), axis=2).sum(1)
    dead = jnp.arange(N) % 2 == 0
    terms = OBJECTIVES[name].loss(sae, X, X, cfg, Signals(dead, jnp.float32(LAM))).terms
    if name == "crosscoder_l1":
        half = np.square(decode(codes) - X).sum(1).mean() / 2
        penalty = (codes @ norm).mean()
        ours = sum(float(term) for term in terms.values()) * D / 2
        assert ours == pytest.approx(half + LAM * D / 2 * penalty, rel=1e-6)
        return
    rank = codes * norm
    codes = np.where(rank >= np.sort(rank.ravel())[-K * B], codes, 0)
    rest = X - decode(codes)
    assert float(terms["error"]) == pytest.approx(lengths(rest).mean(), rel=1e-6)
    masked = np.where(np.asarray(dead), np.maximum(pre, 0) * norm, 0)
    assert cfg.dead_k == D // 4
    largest = np.sort(masked, axis=1)[:, -cfg.dead_k][:, None]
    aux = np.where(masked >= largest, masked, 0) / norm
    left = np.square(rest - aux @ rows.reshape(N, D)).sum(1).mean()
    share = left / np.square(rest - rest.mean(0)).sum(1).mean()
    assert float(terms["aux"]) == pytest.approx(share / 32, rel=1e-6)


def test_presets_set_what_the_papers_fix() -> None:
    for name in PUBLISHED:
        values = get_config(name).sae.to_dict()
        assert values.items() >= PUBLISHED[name].items()
    assert config("matryoshka").group_sizes == (2, 2, 4, 8, 16)
    assert config("batch_topk").dead_after(B) == 5 * B
    frozen = config("batch_topk")
    state = first_state(frozen, X, np.zeros(D))
    after, _ = train_step(state, jnp.asarray(X), jnp.asarray(X), cfg=frozen)
    assert not np.any(after.sae.enc_bias_n)


def test_runs_of_earlier_versions_go_on() -> None:
    """Options at their defaults are not in what identifies a run."""
    cfg = TrainConfig(D, N, 10, k=K)
    later = asdict(cfg).keys() - recorded(cfg).keys()
    assert {"k_start", "log_threshold", "empty_prefix", "enc_bias"} < later
    assert recorded(replace(cfg, k_start=8)).keys() - recorded(cfg).keys() == {
        "k_start"
    }


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"objective": "topk", "k_start": 8}, "k_start=8"),
        ({"k_start": 2}, "k_start=2"),
        ({"objective": "jumprelu", "penalty": "quadratic"}, "target_l0"),
        ({"empty_prefix": True}, "empty_prefix"),
        ({"streams": 2}, "streams=2.*objective crosscoder"),
        ({"objective": "crosscoder", "streams": 4}, "no multiple of streams=4"),
        ({"objective": "crosscoder", "transcoder": True}, "leave transcoder out"),
        ({"threshold_start": 10}, "threshold_start=10"),
        ({"dead_batches": 5, "dead_tokens": 9}, "dead_batches"),
    ],
)
def test_settings_that_disagree_are_refused(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        TrainConfig(D, N, 10, k=K, **fields)


# ---- peers' trainers -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jumprelu", "batch_topk", "matryoshka"])
def test_losses_are_dictionary_learnings(name: str) -> None:
    torch = pytest.importorskip("torch")
    trainers = pytest.importorskip("dictionary_learning.trainers")
    common = {"steps": 3000, "activation_dim": D, "dict_size": N, "layer": 0}
    common |= {"lm_name": "none", "device": "cpu"}
    fields: dict[str, Any] = {
        "jumprelu": {"penalty": "quadratic_mean", "target_l0": TARGET}
    }
    fields = fields.get(name, {})
    if name == "matryoshka":
        fields["empty_prefix"] = False
    cfg = config(name, **fields)
    sae = weights(cfg)
    if name == "jumprelu":
        options = {"sparsity_penalty": LAM, "sparsity_warmup_steps": None}
        peer = trainers.JumpReluTrainer(**common, **options, target_l0=TARGET)
    elif name == "batch_topk":
        peer = trainers.BatchTopKTrainer(**common, k=K)
    else:
        shares = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
        nested = pytest.importorskip(f"{trainers.__name__}.matryoshka_batch_top_k")
        peer = nested.MatryoshkaBatchTopKTrainer(**common, k=K, group_fractions=shares)
    tensor = lambda value: torch.tensor(np.array(value))
    ae = peer.ae
    if name == "batch_topk":
        values: dict[Any, Any] = {
            ae.encoder.weight: sae.enc_dn.T,
            ae.encoder.bias: sae.enc_bias_n,
            ae.decoder.weight: sae.dec_nm.T,
            ae.b_dec: sae.dec_bias_m,
        }
    else:
        values = {
            ae.W_enc: sae.enc_dn,
            ae.b_enc: sae.enc_bias_n,
            ae.W_dec: sae.dec_nm,
            ae.b_dec: sae.dec_bias_m,
        }
    if name == "jumprelu":
        values[ae.threshold] = sae.threshold_n
    for parameter, value in values.items():
        parameter.data = tensor(value)
    theirs = peer.loss(tensor(X), step=0).item()
    if name == "matryoshka":
        theirs *= len(cfg.group_sizes)  # it divides by their number twice
    assert loss(cfg, sae) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_the_quadratic_penalty_is_saelens() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("sae_lens")
    from sae_lens.saes.jumprelu_sae import (
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput

    cfg = config("gemma_scope_2", target_l0=TARGET)
    sae = weights(cfg)
    peer = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=D,
            d_sae=N,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=TARGET,
            apply_b_dec_to_input=False,
        )
    )
    tensor = lambda value: torch.tensor(np.array(value))
    peer.W_enc.data, peer.W_dec.data = tensor(sae.enc_dn), tensor(sae.dec_nm)
    peer.b_enc.data, peer.b_dec.data = tensor(sae.enc_bias_n), tensor(sae.dec_bias_m)
    peer.threshold.data = tensor(sae.threshold_n)
    given = TrainStepInput(
        sae_in=tensor(X),
        coefficients={"l0": LAM},
        dead_neuron_mask=None,
        n_training_steps=0,
        is_logging_step=False,
    )
    theirs = peer.training_forward_pass(given).loss.item()
    assert loss(cfg, sae) == pytest.approx(theirs, rel=1e-6)
