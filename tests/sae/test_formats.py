"""SAE files of six libraries: our codes against theirs, and every bad input against its
message.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.sae.formats import load_sae, open_decoder, parse_hub, read_config
from sae_attr.sae.model import (
    decode,
    encode,
    encode_latents,
    reconstruct,
)
from sae_attr.site_names import parse_site
from tests.sae._streams import stream_decoder

SAELENS = (
    "batchtopk", "gated", "gated_covariance_whitening", "jumprelu_skip_transcoder", "jumprelu_step",
    "matryoshka_batchtopk", "runner_hf_hook", "standard_apply_b_dec", "standard_bfloat16",
    "standard_constant_norm_rescale", "standard_expected_average_only_in", "standard_hook_z", "topk_layer_norm",
    "topk_no_rescale_no_b_dec", "topk_rescaled", "topk_rescaled_training_checkpoint", "transcoder", "v5_cfg_standard",
    "v5_cfg_topk_layer_norm",
)  # fmt: skip
CLASSES = (
    "AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip
GEMMA = "gemma_scope/layer_2/width_512/average_l0_13"
OTHERS = (
    "gemma_scope_2/resid_post/layer_2_width_512_l0_small",
    "openai/relu_from_saelens_standard", "openai/topk_identity_postact_native", "openai/topk_normalize_from_saelens",
    "sparsify/multi_topk/layers.2", "sparsify/topk/layers.2", "sparsify/transcode_skip/layers.2.mlp",
    "crosscoder/batchtopk_sae_normalized_fork",
)  # fmt: skip
CROSSCODERS = ("crosscoder/batchtopk_crosscoder_normalized", "crosscoder/crosscoder_l1")
FOLDERS = (
    *(f"saelens/{name}" for name in SAELENS),
    *(f"dictionary_learning/{name}" for name in CLASSES),
    GEMMA,
    *OTHERS,
    *CROSSCODERS,
)


@pytest.fixture(scope="session")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures/sae"


@pytest.fixture
def copy(fixtures: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A writable copy of a fixture folder."""

    def make(name: str) -> Path:
        folder = tmp_path / Path(name).name
        folder.mkdir()
        for file in (fixtures / name).iterdir():
            shutil.copyfile(file, folder / file.name)
        return folder

    return make


def golden(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "golden.npz") as file:
        return dict(file)


def error(ours: Any, theirs: np.ndarray) -> float:
    """‖ours − golden‖ / ‖golden‖."""
    return float(
        np.linalg.norm(np.asarray(ours, np.float64) - theirs)
        / np.linalg.norm(theirs.astype(np.float64))
    )


def edit(path: Path, **changes: Any) -> None:
    """Changes top-level keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in value.items() if v is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        folder / "sae_weights.safetensors",
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_codes_and_reconstruction_are_those_of_the_library(
    fixtures: Path, name: str
) -> None:
    gold, sae = golden(fixtures / name), load_sae(fixtures / name)
    codes = np.asarray(encode(sae, gold["x"]))
    assert error(codes, gold["codes"]) <= 1e-4
    assert error(reconstruct(sae, gold["x"]), gold["recon"]) <= 1e-4
    sure = ~gold["fragile"]
    np.testing.assert_array_equal(codes[sure] != 0, gold["codes"][sure] != 0)


@pytest.mark.parametrize("name", FOLDERS)
def test_three_axes_and_chosen_latents_give_the_same_codes(
    fixtures: Path, name: str
) -> None:
    x, sae = golden(fixtures / name)["x"], load_sae(fixtures / name)
    codes = encode(sae, x)
    apart = encode(sae, x.reshape(2, 128, *x.shape[1:])).reshape(codes.shape)
    np.testing.assert_allclose(apart, codes, rtol=1e-5, atol=1e-5)
    if sae.cfg.gate not in ("topk", "topk_raw"):
        chosen = np.array([5, 0, sae.cfg.n_latents - 1])
        np.testing.assert_allclose(
            encode_latents(sae, x, chosen), codes[:, chosen], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", FOLDERS)
def test_decoder_rows_are_those_of_the_loaded_sae(fixtures: Path, name: str) -> None:
    options = {"model": 1} if name in CROSSCODERS else {}
    source = open_decoder(fixtures / name, **options)
    sae = load_sae(fixtures / name, **options)
    n = sae.cfg.n_latents
    assert isinstance(source.matrix, np.memmap)
    assert source.shape == (n, sae.cfg.d_out) == stream_decoder(sae).shape
    for i, j in ((0, n), (3, 11), (n - 1, n), (4, 4)):
        np.testing.assert_array_equal(source.rows(i, j), stream_decoder(sae)[i:j])
    # And against the file itself, read by other means, where nothing is folded into the
    # rows.
    if name.startswith("saelens") and "bfloat16" not in name and not sae.cfg.folded:
        stored = load_file(fixtures / name / "sae_weights.safetensors")["W_dec"]
        np.testing.assert_array_equal(source.rows(0, n), stored)


@pytest.mark.parametrize("name", FOLDERS)
def test_config_alone_is_that_of_the_loaded_sae(fixtures: Path, name: str) -> None:
    cfg = read_config(fixtures / name)
    assert cfg == load_sae(fixtures / name).cfg
    wanted = "dictionary_learning" if name.endswith("_fork") else name.split("/")[0]
    assert cfg.source == wanted
    # The norm before its gain is no point of ours, so the site of these two must be
    # given where they are used.
    assert (
        cfg.site in (None, "blocks.2.ln2.hook_normalized")
        or parse_site(cfg.site).layer == 2
    )


def test_what_reports_want_is_in_the_config(fixtures: Path) -> None:
    cfg = read_config(fixtures / "saelens/jumprelu_skip_transcoder")
    assert (cfg.site, cfg.site_out, cfg.skip) == (
        "blocks.2.ln2.hook_normalized",
        "blocks.2.hook_mlp_out",
        True,
    )
    cfg = read_config(fixtures / "saelens/batchtopk")
    assert (
        cfg.exclude_special,
        cfg.prepend_bos,
        cfg.context_size,
        cfg.expected_l0,
    ) == (True, True, 512, 16.0)
    assert (cfg.model_name, cfg.architecture, cfg.gate) == (
        "stories260K",
        "jumprelu",
        "jumprelu",
    )
    assert read_config(fixtures / "saelens/standard_bfloat16").dtype == "bfloat16"
    assert read_config(fixtures / "saelens/v5_cfg_standard").exclude_special is None
    cfg = read_config(fixtures / "dictionary_learning/AutoEncoderTopK")
    assert (cfg.k, cfg.layer, cfg.site, cfg.model_name) == (
        16,
        2,
        "resid_post_layer_2",
        "stories260K",
    )
    cfg = read_config(fixtures / GEMMA)
    assert (cfg.layer, cfg.expected_l0, cfg.exclude_special, cfg.subtract_b_dec) == (
        2,
        13.0,
        True,
        False,
    )


def test_named_extra_arrays_of_the_goldens(fixtures: Path) -> None:
    folder = fixtures / "dictionary_learning/AutoEncoderTopK"
    gold = golden(folder)
    assert (
        error(
            encode(load_sae(folder, gate="jumprelu"), gold["x"]),
            gold["codes_use_threshold_True"],
        )
        <= 1e-4
    )
    folder = fixtures / "dictionary_learning/GatedAutoEncoder"
    gold = golden(folder)
    assert (
        error(encode(load_sae(folder), gold["x"]), gold["codes_normalize_decoder"])
        <= 1e-4
    )
    folder = fixtures / "saelens/jumprelu_skip_transcoder"
    gold = golden(folder)
    sae = load_sae(folder).replace(skip_dm=None)
    assert error(decode(sae, gold["codes"]), gold["decode_only"]) <= 1e-4


def test_bfloat16_arithmetic_agrees_within_its_own_rounding(fixtures: Path) -> None:
    folder = fixtures / "saelens/standard_bfloat16"
    gold, sae = golden(folder), load_sae(folder, dtype="bfloat16")
    codes, y = encode(sae, gold["x"]), reconstruct(sae, gold["x"])
    assert codes.dtype == y.dtype == jnp.bfloat16
    # As far from the library's bfloat16 as one rounding (2^-8), and no further than
    # that is from its float32.
    assert error(codes, gold["codes_bf16"]) <= min(
        2**-8, error(gold["codes_bf16"], gold["codes"])
    )
    assert error(y, gold["recon_bf16"]) <= min(
        2**-8, error(gold["recon_bf16"], gold["recon"])
    )


def test_weight_file_itself_and_explicit_format(fixtures: Path) -> None:
    for file, fmt in (
        ("saelens/gated/sae_weights.safetensors", "saelens"),
        ("dictionary_learning/AutoEncoder/ae.pt", "dictionary_learning"),
        (f"{GEMMA}/params.npz", "gemma_scope"),
    ):
        assert (
            read_config(fixtures / file)
            == read_config(fixtures / file, fmt)
            == read_config((fixtures / file).parent)
        )


def unfold(folder: Path, scale: float) -> None:
    """The weights as they were before expected_average_only_in was folded."""

    def change(w: dict[str, np.ndarray]) -> None:
        w |= {
            "W_enc": w["W_enc"] / scale,
            "W_dec": w["W_dec"] * scale,
            "b_dec": w["b_dec"] * scale,
        }

    edit_tensors(folder, change)
    edit(folder / "cfg.json", normalize_activations="expected_average_only_in")


def test_unfolded_scale_comes_from_the_scaler_or_the_option(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("saelens/standard_expected_average_only_in")
    gold = golden(folder)
    unfold(folder, 1.7)
    with pytest.raises(
        ValueError,
        match=r"expected_average_only_in.*activation_scaler.json.*give it as norm_scale=",
    ):
        load_sae(folder)
    by_option = load_sae(folder, norm_scale=1.7)
    (folder / "activation_scaler.json").write_text(
        '{"scaling_factor": 1.7, "has_whitening": false}'
    )
    for sae in (by_option, load_sae(folder)):
        assert error(encode(sae, gold["x"]), gold["codes"]) <= 1e-6
        assert error(reconstruct(sae, gold["x"]), gold["recon"]) <= 1e-6
        assert sae.cfg.folded == ("norm_scale=1.7",)
    np.testing.assert_array_equal(open_decoder(folder).rows(2, 9), sae.dec_nm[2:9])
    edit(folder / "cfg.json", normalize_activations="none")
    with pytest.raises(
        ValueError,
        match=r"a scale of 1.7 is given.*normalize_activations='none'.*remove one",
    ):
        load_sae(folder)
    (folder / "activation_scaler.json").write_text(
        '{"scaling_factor": null, "has_whitening": true}'
    )
    with pytest.raises(
        ValueError, match=r"whitens the activations.*save the inference model"
    ):
        load_sae(folder)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_batchtopk_training_checkpoint_becomes_jumprelu(
    copy: Callable[[str], Path], scale: float
) -> None:
    folder = copy("saelens/batchtopk")
    gold = golden(folder)
    norms = np.random.default_rng(0).uniform(0.2, 3, 512).astype(np.float32)

    def change(w: dict[str, np.ndarray]) -> None:
        # Undoes, in order, what saving for inference does: s into the rows, then the
        #   rows' norms into the encoder.
        threshold = np.array(w.pop("threshold")[0] * scale, np.float64)
        w |= {
            "W_enc": w["W_enc"] / norms,
            "b_enc": w["b_enc"] * scale / norms,
            "W_dec": w["W_dec"] * norms[:, None],
        }
        w |= {"b_dec": w["b_dec"] * scale, "topk_threshold": threshold}

    edit_tensors(folder, change)
    norm = "none" if scale == 1 else "expected_average_only_in"
    edit(
        folder / "cfg.json",
        architecture="batchtopk",
        rescale_acts_by_decoder_norm=True,
        k=16.0,
        normalize_activations=norm,
    )
    options = {} if scale == 1 else {"norm_scale": scale}
    sae = load_sae(folder, **options)
    assert sae.cfg.gate == "jumprelu"
    assert error(encode(sae, gold["x"]), gold["codes"]) <= 1e-6
    assert error(reconstruct(sae, gold["x"]), gold["recon"]) <= 1e-6
    np.testing.assert_allclose(
        open_decoder(folder, **options).rows(3, 5), sae.dec_nm[3:5], rtol=1e-6
    )
    edit_tensors(folder, lambda w: w.update(topk_threshold=np.zeros((), np.float64)))
    with pytest.raises(
        ValueError,
        match=r"topk_threshold is 0.0, so training never set it; give one as threshold=",
    ):
        load_sae(folder, **options)
    assert load_sae(folder, threshold=0.5, **options).threshold_n[0] == np.float32(
        0.5 / scale
    )


def test_older_configs_name_things_differently(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens/v5_cfg_standard")
    edit(
        folder / "cfg.json",
        architecture=None,
        hook_name=None,
        hook_point="blocks.2.hook_resid_post",
        normalize_activations=False,
    )
    edit_tensors(folder, lambda w: w.update(scaling_factor=np.ones(512, np.float32)))
    gold, sae = golden(folder), load_sae(folder)
    assert error(reconstruct(sae, gold["x"]), gold["recon"]) <= 1e-6
    assert (sae.cfg.site, sae.cfg.architecture, sae.cfg.prepend_bos) == (
        "blocks.2.hook_resid_post",
        "standard",
        True,
    )
    edit_tensors(folder, lambda w: w.update(scaling_factor=np.full(512, 2, np.float32)))
    with pytest.raises(
        ValueError,
        match=r"not all ones, but cfg.json says finetuning_scaling_factor=false",
    ):
        load_sae(folder)
    edit(folder / "cfg.json", finetuning_scaling_factor=True)
    np.testing.assert_allclose(
        load_sae(folder).dec_nm, sae.dec_nm * 2
    )  # finetuned factors multiply codes before decoding


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gated",
            {"d_in": 63},
            r"W_enc has shape \[64, 512\], but cfg.json says d_in=63.*needs \[63, 512\]",
        ),
        ("gated", {"d_sae": 500}, r"d_sae=500, which needs"),
        ("transcoder", {"d_out": 32}, r"W_dec has shape \[512, 64\].*d_out=32"),
        ("gated", {"d_in": None}, "does not say d_in; is it a saelens config"),
        (
            "gated",
            {"architecture": "other"},
            "architecture 'other' is unknown; known: standard, gated",
        ),
        (
            "gated",
            {"architecture": "temporal"},
            "do not divide|does not hold the tensors of a temporal SAE",
        ),
        (
            "gated",
            {"architecture": "phase_multiplexed"},
            "phase_multiplexed' is not loaded: its encoder is not",
        ),
        (
            "gated",
            {"architecture": "jumprelu"},
            r"(?s)− b_enc \(missing\).*− threshold.*\+ b_gate \(unexpected\).*\+ r_mag",
        ),
        (
            "v5_cfg_standard",
            {"activation_fn_str": "tanh"},
            "activation 'tanh' is unknown; known: relu, topk",
        ),
        (
            "v5_cfg_topk_layer_norm",
            {"activation_fn_kwargs": {}},
            "topk without activation_fn_kwargs.k; add it",
        ),
        ("topk_rescaled", {"k": None}, "architecture topk without k"),
        ("topk_rescaled", {"k": 513}, r"k=513 and 512 latents; give k in 1\.\.512"),
        (
            "gated",
            {"normalize_activations": "batch"},
            r"normalize_activations 'batch' is unknown; known: .*'layer_norm'",
        ),
        (
            "gated",
            {"normalize_activations": "covariance_whitening"},
            "save the inference model",
        ),
        (
            "transcoder",
            {"normalize_activations": "layer_norm"},
            "for the input alone; only 'none' is supported",
        ),
        ("v5_cfg_standard", {"normalize_activations": True}, "give it as norm_scale="),
    ],
)
def test_saelens_contradictions(
    copy: Callable[[str], Path], name: str, changes: dict, message: str
) -> None:
    folder = copy(f"saelens/{name}")
    edit(folder / "cfg.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_sae(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_dim": 63}, r"encoder has shape \[64, 512\].*activation_dim=63"),
        ({"dict_size": 511}, "dict_size=511, which needs"),
        ({"dict_class": "Other"}, "dict_class 'Other' is unknown; known: AutoEncoder"),
        (
            {"dict_class": "AutoEncoder"},
            r"(?s)− bias \(missing\).*\+ b_dec \(unexpected\)",
        ),
        ({"k": 17}, "k is 16 but config.json says k=17; give the right one as k="),
    ],
)
def test_dictionary_learning_contradictions(
    copy: Callable[[str], Path], changes: dict, message: str
) -> None:
    folder = copy("dictionary_learning/AutoEncoderTopK")
    raw = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", trainer={**raw["trainer"], **changes})
    with pytest.raises(ValueError, match=message):
        load_sae(folder)


def test_class_is_found_from_the_tensors_where_they_decide(
    copy: Callable[[str], Path],
) -> None:
    for name in (
        "AutoEncoder",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
        "MatryoshkaBatchTopKSAE",
    ):
        folder = copy(f"dictionary_learning/{name}")
        (folder / "config.json").unlink()
        assert read_config(folder).architecture == name
    folder = copy("dictionary_learning/BatchTopKSAE")
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"fit \['AutoEncoderTopK', 'BatchTopKSAE'\]; give dict_class= one of",
    ):
        load_sae(folder)
    assert load_sae(folder, dict_class="BatchTopKSAE").cfg.gate == "jumprelu"


def test_checkpoint_of_dictionary_learning_has_its_config_one_folder_up(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("dictionary_learning/BatchTopKSAE")
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints/ae_100.pt")
    assert read_config(folder / "checkpoints/ae_100.pt").architecture == "BatchTopKSAE"


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_topk_without_threshold_names_the_options(
    copy: Callable[[str], Path], name: str
) -> None:
    folder = copy(f"dictionary_learning/{name}")
    stored = np.float32(load_sae(folder).threshold_n[0]).tobytes()
    data = (folder / "ae.pt").read_bytes()
    # Stored zip members are bytes in the file; the mapped reader does not look at their
    # checksum.
    at = [i for i in range(len(data)) if data.startswith(stored, i)]
    assert len(at) == 1
    (folder / "ae.pt").write_bytes(
        data[: at[0]] + np.float32(-1).tobytes() + data[at[0] + 4 :]
    )
    with pytest.raises(
        ValueError,
        match=r"without a threshold \(stored: -1.*give threshold=, or gate='topk'",
    ):
        load_sae(folder)
    assert load_sae(folder, threshold=0.5).threshold_n[0] == 0.5
    sae = load_sae(folder, gate="topk")
    assert (sae.cfg.k, int((encode(sae, golden(folder)["x"]) > 0).sum(-1).max())) == (
        16,
        16,
    )


def test_options_of_other_formats_are_refused(fixtures: Path) -> None:
    with pytest.raises(
        ValueError,
        match="norm_scale= means nothing for a gemma_scope file; it takes site",
    ):
        load_sae(fixtures / GEMMA, norm_scale=2.0)
    with pytest.raises(ValueError, match="threshold= means nothing for AutoEncoder"):
        load_sae(fixtures / "dictionary_learning/AutoEncoder", threshold=2.0)
    with pytest.raises(ValueError, match="takes 'topk' or 'jumprelu'"):
        load_sae(fixtures / "dictionary_learning/BatchTopKSAE", gate="relu")
    with pytest.raises(
        TypeError, match="unknown option 'scale'; the options are norm_scale"
    ):
        load_sae(fixtures / GEMMA, scale=2.0)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor", ["W_enc", "W_dec", "b_enc", "threshold"])
def test_numbers_that_are_none_are_an_error(
    copy: Callable[[str], Path], tensor: str, value: float
) -> None:
    folder = copy("saelens/jumprelu_step")
    edit_tensors(folder, lambda w: w[tensor].reshape(-1).__setitem__(7, value))
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        load_sae(folder)


def test_several_formats_or_none(
    copy: Callable[[str], Path], fixtures: Path, tmp_path: Path
) -> None:
    folder = copy("saelens/gated")
    shutil.copyfile(fixtures / GEMMA / "params.npz", folder / "params.npz")
    with pytest.raises(
        ValueError,
        match=r"several formats \(gemma_scope, saelens: .*cfg.json.*choose one with fmt=",
    ):
        load_sae(folder)
    assert load_sae(folder, fmt="saelens").cfg.gate == "gated"
    assert load_sae(folder, fmt="gemma_scope").cfg.gate == "jumprelu"
    with pytest.raises(
        ValueError,
        match=r"no dictionary_learning SAE: found cfg.json.*looked for ae.pt",
    ):
        load_sae(folder, fmt="dictionary_learning")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError,
        match=r"found nothing; looked for .*sae_weights.safetensors.*or say fmt=",
    ):
        load_sae(tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"fmt='npz' is unknown; known: auto, .*saelens, "
    ):
        load_sae(folder, fmt="npz")
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        load_sae(tmp_path / "absent")


def test_missing_or_broken_config(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens/gated")
    (folder / "cfg.json").write_text((folder / "cfg.json").read_text()[:40])
    with pytest.raises(ValueError, match=r"cfg.json is not JSON"):
        load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"has no cfg.json beside it"):
        load_sae(folder)


def test_gemma_scope_reads_its_path(fixtures: Path, tmp_path: Path) -> None:
    def place(path: str) -> Path:
        (tmp_path / path).mkdir(parents=True)
        shutil.copyfile(fixtures / GEMMA / "params.npz", tmp_path / path / "params.npz")
        return tmp_path / path

    cfg = read_config(
        place(
            "models--google--gemma-scope-2b-pt-att/snapshots/ab/layer_5/width_512/average_l0_71"
        )
    )
    assert (cfg.site, cfg.layer, cfg.expected_l0, cfg.flatten_heads) == (
        "blocks.5.attn.hook_z",
        5,
        71.0,
        True,
    )
    assert cfg.model_name == "google/gemma-2-2b"
    cfg = read_config(
        place("gemma-scope-9b-it-transcoders/layer_3/width_512/average_l0_7")
    )
    assert (cfg.site, cfg.site_out) == (
        "blocks.3.ln2.hook_normalized",
        "blocks.3.hook_mlp_out",
    )
    with pytest.raises(
        ValueError, match=r"W_enc has shape \[64, 512\], but path .*width 16384"
    ):
        load_sae(place("layer_5/width_16k/average_l0_71"))
    assert read_config(fixtures / GEMMA).site is None
    assert (
        read_config(fixtures / GEMMA, site="blocks.2.hook_resid_post").site
        == "blocks.2.hook_resid_post"
    )


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("hf://a/b", ("a/b", "", None)),
        ("hf://a/b/c/d@main", ("a/b", "c/d", "main")),
        ("hf://a/b@refs/pr/1", ("a/b", "", "refs/pr/1")),
        ("hf://a/b/layer_1/params.npz", ("a/b", "layer_1/params.npz", None)),
    ],
)
def test_hub_addresses(url: str, parts: tuple) -> None:
    assert parse_hub(url) == parts


def test_hub_downloads_the_files_of_one_sae_only(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(
        repo: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: None,
    ) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(fixtures)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_sae("hf://owner/repo/saelens/gated@abc").cfg.gate == "gated"
    assert (asked["repo"], asked["revision"]) == ("owner/repo", "abc")
    assert {"saelens/gated/cfg.json", "saelens/gated/sae_weights.safetensors"} <= set(
        asked["patterns"]
    )
    # And what may lie one folder up: a run's config. Never a wildcard.
    own = {
        p
        for p in asked["patterns"]
        if p not in ("saelens/config.json", "saelens/hyperparams.json")
    }
    assert all(p.startswith("saelens/gated/") and not set(p) & set("*?[") for p in own)
    load_sae(f"hf://owner/repo/{GEMMA}/params.npz")
    assert {p for p in asked["patterns"] if not p.endswith((".json", ".yaml"))} == {
        f"{GEMMA}/params.npz"
    }
    with pytest.raises(ValueError, match="write hf://owner/repo/folder@revision"):
        load_sae("hf://owner")


@pytest.mark.parametrize(
    "name",
    [
        "saelens/gated",
        "saelens/jumprelu_skip_transcoder",
        "saelens/standard_bfloat16",
        GEMMA,
    ],
)
def test_a_few_latents_of_a_file(fixtures: Path, name: str) -> None:
    x, chosen = golden(fixtures / name)["x"], [3, 500, 17]
    whole, few = load_sae(fixtures / name), load_sae(fixtures / name, latents=chosen)
    np.testing.assert_allclose(
        encode(few, x), encode(whole, x)[..., np.array(chosen)], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(few.dec_nm, whole.dec_nm[np.array(chosen)])
