"""Crosscoders after a few steps of training, written and read back; and a run that was
stopped.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.files.tensors import read_tensors
from sae_attr.parallel import make_mesh
from sae_attr.sae.crosscoder_export import save_crosscoder
from sae_attr.sae.formats import load_sae, read_config
from sae_attr.sae.model import SAE, encode, reconstruct
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.training import LoopOptions
from tests.sae.test_sae_training import batch, same

pytestmark = pytest.mark.usefixtures("quick")
D, N = 4, 12  # of one model


def trained(objective: str, **options: Any) -> tuple[TrainConfig, Any]:
    cfg = TrainConfig(
        2 * D,
        N,
        6,
        objective=objective,
        streams=2,
        k=3,
        warmup=1,
        lr=1e-2,
        threshold_start=2,
    )
    every = LoopOptions(log_every=2, save_every=2)
    result = train_sae(cfg, batch, progress=False, options=every, **options)
    return cfg, result.state


@pytest.mark.parametrize("objective", ["crosscoder", "crosscoder_l1"])
def test_what_is_written_codes_as_what_was_trained(
    objective: str, tmp_path: Path
) -> None:
    cfg, state = trained(objective)
    sae = finished(cfg, state, site="blocks.1.hook_resid_post", layer=1)
    assert (sae.cfg.streams, sae.cfg.d_in, sae.cfg.d_out) == (2, D, D)
    assert np.ptp(np.linalg.norm(sae.dec_nm, axis=1)) > 1e-3  # rows of any length
    save_crosscoder(tmp_path / "cc", sae)
    shapes = {
        k: v.shape for k, v in read_tensors(tmp_path / "cc/model_final.pt").items()
    }
    assert shapes["encoder.weight"] == (2, D, N)
    assert shapes["decoder.weight"] == (2, N, D)
    x = batch(9).reshape(-1, 2, D)
    loaded = load_sae(tmp_path / "cc", model=1)
    assert loaded.cfg.gate == sae.cfg.gate
    assert read_config(tmp_path / "cc").site == "blocks.1.hook_resid_post"
    codes = np.asarray(encode(sae, x))
    assert 0 < (codes > 0).mean() < 1
    np.testing.assert_allclose(encode(loaded, x), codes, rtol=1e-4, atol=1e-4)
    both = reconstruct(loaded, x), reconstruct(sae, x)
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)
    if objective == "crosscoder":
        per_token = (codes > 0).sum() / len(x)
        assert per_token == pytest.approx(cfg.k, rel=0.3)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_a_mesh_changes_nothing(tmp_path: Path) -> None:
    _, whole = trained("crosscoder")

    def broken(step: int) -> np.ndarray:
        if step == 4:
            raise InterruptedError
        return batch(step)

    cfg = TrainConfig(2 * D, N, 6, objective="crosscoder", streams=2, k=3, warmup=1)
    cfg = replace(cfg, lr=1e-2, threshold_start=2)
    every = LoopOptions(log_every=2, save_every=2)
    run = lambda source: train_sae(
        cfg, source, folder=tmp_path / "c", progress=False, options=every
    )
    with pytest.raises(InterruptedError):
        run(broken)
    same(run(batch).state.sae, whole.sae)
    _, sharded = trained("crosscoder", mesh=make_mesh("data=2,model=2"))
    for name in ("dec_nm", "enc_dn"):
        ours, other = getattr(sharded.sae, name), getattr(whole.sae, name)
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_what_the_fork_cannot_express_is_refused(tmp_path: Path) -> None:
    cfg, state = trained("crosscoder")
    sae = finished(cfg, state)
    one = replace(sae, cfg=replace(sae.cfg, streams=1, d_in=2 * D, d_out=2 * D))
    cases: dict[str, SAE] = {
        "is no crosscoder": one,
        "has one for all latents": replace(
            sae, threshold_n=jnp.arange(1, N + 1, dtype=jnp.float32)
        ),
        "decoupled=True": replace(sae, cfg=replace(sae.cfg, decoupled=True)),
    }
    for message, crosscoder in cases.items():
        with pytest.raises(ValueError, match=message):
            save_crosscoder(tmp_path / "no", crosscoder)
    assert not (tmp_path / "no").exists()
