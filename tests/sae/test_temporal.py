"""Temporal SAEs: whole sequences against the formula token by token, and against
SAELens.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.sae.export import save_saelens
from sae_attr.sae.formats import load_sae, open_decoder, read_config
from sae_attr.sae.metrics import fit
from sae_attr.sae.model import SAE, decode, encode, reconstruct
from tests.sae._formulas import Case, K
from tests.sae._temporal import SCALE, N, write_released, write_saelens

pytestmark = pytest.mark.usefixtures("quick")
LAYOUTS: dict[str, Callable[[Path], Case]] = {
    "saelens": write_saelens,
    "released": write_released,
    "untied, no bias taken": partial(write_saelens, tied=False, bias=False),
    "tied, no bias, relu": partial(write_saelens, bias=False, k=None, scale=1.0),
}


SLOW = [n for n in LAYOUTS if n not in ("released", "untied, no bias taken")]
CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in LAYOUTS
]


@jax.jit
def run(sae: SAE, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return encode(sae, x), reconstruct(sae, x)


def close(ours: Any, theirs: np.ndarray) -> None:
    assert np.linalg.norm(
        np.asarray(ours, np.float64) - theirs
    ) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("name", CASES)
def test_codes_and_output_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    sae = load_sae(case.path)
    codes, recon = run(sae, case.x)
    np.testing.assert_array_equal(codes != 0, case.codes != 0)
    close(codes, case.codes)
    close(recon, case.recon)
    np.testing.assert_array_equal(open_decoder(case.path).rows(0, N), sae.dec_nm)
    assert read_config(case.path) == sae.cfg


def test_what_comes_later_changes_nothing(tmp_path: Path) -> None:
    case = write_released(tmp_path)
    other = case.x.copy()
    other[:, 5:] = 9
    codes, recon = run(load_sae(case.path), other)
    close(codes[:, :5], case.codes[:, :5])
    close(recon[:, :5], case.recon[:, :5])


def test_single_tokens_and_decoding_alone_are_refused(tmp_path: Path) -> None:
    case = write_released(tmp_path)
    sae = load_sae(case.path)
    assert (sae.cfg.site, sae.cfg.layer, sae.cfg.k, sae.cfg.source) == (
        "blocks.12.hook_resid_post",
        12,
        K,
        "temporal",
    )
    assert sae.cfg.folded == (f"norm_scale={SCALE:g}",)
    for apply in (lambda: encode(sae, case.x[0]), lambda: fit(sae, case.x[0])):
        with pytest.raises(
            ValueError,
            match=r"reads whole sequences \[b, t, d\]: its codes depend on earlier tokens",
        ):
            apply()
    with pytest.raises(ValueError, match="codes that the input predicts; give decode"):
        decode(sae, jnp.zeros((1, 2, N)))
    with pytest.raises(ValueError, match="so a few of its latents are no SAE"):
        load_sae(case.path, latents=[1])
    with pytest.raises(ValueError, match="SAELens has no SAE with gate temporal"):
        save_saelens(tmp_path / "out", sae)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "do not divide 32 latents"),
        ({"bottleneck_factor": 4}, r"q_target.weight has shape|k_ctx.weight has shape"),
        ({"n_attn_layers": 3}, r"attn_layers.2.c_proj.bias \(missing\)"),
        ({"n_attn_layers": 10**9}, "do not divide"),
        ({"d_sae": 64}, "needs"),
        ({"tied_weights": False}, r"W_enc \(missing\)"),
        ({"sae_diff_type": "tanh"}, "known: topk, relu"),
        ({"kval_topk": 33}, "k=33 and 32 latents"),
        ({"activation_normalization_factor": 0}, "not a positive number"),
        (
            {"normalize_activations": "layer_norm"},
            "known: none, constant_scalar_rescale",
        ),
    ],
)
def test_contradictions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    case = write_saelens(tmp_path)
    raw = json.loads((case.path / "cfg.json").read_text())
    (case.path / "cfg.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ValueError, match=message):
        load_sae(case.path)


def test_numbers_that_are_none_and_configs_that_are_no_yaml(tmp_path: Path) -> None:
    case = write_released(tmp_path)
    file, config = case.path / "latest_ckpt.safetensors", case.path / "conf.yaml"
    text = config.read_text()
    evil = "sae: !!python/object/apply:os.system ['touch ran']"
    alias = "llm: {dimin: &a [x]}\nsae: {exp_factor: *a}"
    for junk in ("", "[1", "- 1", evil, alias, "sae: 3", "\x00", "a: " * 9):
        config.write_text(junk)
        with pytest.raises(ValueError, match=r"conf\.yaml"):
            load_sae(case.path)
    config.write_text(text)
    t = dict(load_file(file))
    t["attn_layers.1.v_ctx.bias"] = np.full(N, np.nan, np.float32)
    save_file(t, file)
    with pytest.raises(ValueError, match="v_bias holds NaN"):
        load_sae(case.path)
    config.unlink()
    with pytest.raises(ValueError, match=r"no conf\.yaml beside it"):
        load_sae(case.path)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "released"])
def test_saelens_computes_the_same(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip(
        "torch", reason="needs torch and sae-lens (extra `peers`)"
    )
    lens = pytest.importorskip("sae_lens", reason="needs sae-lens (extra `peers`)")
    case = LAYOUTS[name](tmp_path)
    theirs, ours = lens.SAE.load_from_disk(str(case.path)), load_sae(case.path)
    with torch.no_grad():
        x = torch.from_numpy(case.x)
        codes, recon = run(ours, case.x)
        close(codes, theirs.encode(x).numpy().astype(np.float64))
        close(recon, theirs(x).numpy().astype(np.float64))
