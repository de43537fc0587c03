"""Every format without a reference of its own: a miniature in the exact layout, against
the source's formula in numpy.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.sae.formats import load_sae, open_decoder, read_config
from sae_attr.sae.model import (
    decode,
    encode,
    encode_latents,
    reconstruct,
)
from tests.sae._crosscoders import crosscoder_tensors
from tests.sae._formulas import D, K, Maker, N, linear, standard_tensors
from tests.sae._layouts import CROSSCODERS, LAYOUTS, saelens
from tests.sae._streams import stream_decoder
from tests.sae._torchfiles import save_torch


def error(ours: Any, theirs: np.ndarray) -> float:
    return float(
        np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_and_output_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    sae = load_sae(case.path, **case.options)
    codes = np.asarray(encode(sae, case.x))
    assert codes.shape == case.codes.shape
    np.testing.assert_array_equal(codes != 0, case.codes != 0)
    assert error(codes, case.codes) <= 1e-5
    assert error(reconstruct(sae, case.x), case.recon) <= 1e-5
    assert 0.02 < (case.codes != 0).mean() < 0.9  # the gate does something
    assert (
        error(
            encode(sae, case.x.reshape(2, -1, *case.x.shape[1:])).reshape(codes.shape),
            case.codes,
        )
        <= 1e-5
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_decoder_rows_and_config_are_those_of_the_loaded_sae(
    tmp_path: Path, name: str
) -> None:
    case = LAYOUTS[name](tmp_path)
    sae = load_sae(case.path, **case.options)
    source = open_decoder(case.path, **case.options)
    n = sae.cfg.n_latents
    assert source.shape == (n, sae.cfg.d_out)
    for i, j in ((0, n), (3, 11), (n - 1, n), (4, 4)):
        np.testing.assert_array_equal(source.rows(i, j), stream_decoder(sae)[i:j])
    assert read_config(case.path, **case.options) == sae.cfg


@pytest.mark.parametrize(
    "name", [n for n in LAYOUTS if n not in ("gemma_scope_2_crosscoder",)]
)
def test_chosen_latents_equal_the_columns_where_the_gate_is_local(
    tmp_path: Path, name: str
) -> None:
    case = LAYOUTS[name](tmp_path)
    sae, chosen = load_sae(case.path, **case.options), [5, 0, N - 1]
    if sae.cfg.gate in ("relu", "jumprelu"):
        np.testing.assert_allclose(
            encode_latents(sae, case.x, chosen),
            encode(sae, case.x)[..., chosen],
            rtol=1e-5,
            atol=1e-5,
        )
    else:
        with pytest.raises(ValueError, match="depends on all the others"):
            encode_latents(sae, case.x, chosen)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_few_latents_are_read_without_the_rest(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    sae, chosen = load_sae(case.path, **case.options), np.array([5, 0, N - 1, 5])
    if sae.cfg.gate not in ("relu", "jumprelu") or sae.cfg.streams > 1:
        with pytest.raises(
            ValueError, match="so a few of its latents are no SAE; load the whole"
        ):
            load_sae(case.path, latents=chosen, **case.options)
        return
    few = load_sae(case.path, latents=chosen, **case.options)
    assert few.cfg.n_latents == 4
    np.testing.assert_array_equal(few.dec_nm, sae.dec_nm[chosen])
    np.testing.assert_allclose(
        encode(few, case.x), encode(sae, case.x)[..., chosen], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match=rf"do not lie in 0\.\.{N - 1}"):
        load_sae(case.path, latents=[N], **case.options)


@pytest.mark.parametrize("name", CROSSCODERS)
def test_a_crosscoder_asks_whose_decoder_is_meant(tmp_path: Path, name: str) -> None:
    case = LAYOUTS[name](tmp_path)
    options = {
        key: value
        for key, value in case.options.items()
        if key not in ("layer", "model")
    }
    with pytest.raises(
        ValueError, match=r"crosscoder of \d streams.*with layer= or model="
    ):
        open_decoder(case.path, **options)
    sae = load_sae(case.path, **options)  # codes need no choice
    assert error(encode(sae, case.x), case.codes) <= 1e-5
    for bad in ({"layer": 99}, {"model": "other"}):
        with pytest.raises(ValueError, match="but the crosscoder has"):
            open_decoder(case.path, **options, **bad)
    with pytest.raises(ValueError, match=r"reads \[\.\.\., streams=\d, d_in=6\]"):
        encode(sae, case.x[:, 0])


def test_a_position_may_come_as_text(tmp_path: Path) -> None:
    case = LAYOUTS["batchtopk_none"](tmp_path)
    assert (
        read_config(case.path, model="1").stream
        == read_config(case.path, layer=1).stream
        == 1
    )
    with pytest.raises(ValueError, match=r"is 2, but the crosscoder has 0\.\.1"):
        read_config(case.path, model="2")


def test_the_chosen_stream_is_the_one_that_is_named(tmp_path: Path) -> None:
    case = LAYOUTS["gemma_scope_2_crosscoder"](tmp_path)
    sae = load_sae(case.path, layer=22)
    assert (sae.cfg.stream, sae.cfg.layer, sae.cfg.site) == (
        2,
        22,
        "model.layers.22.output",
    )
    # One unit of latent i adds row i of the chosen stream to that stream's output.
    units = np.eye(sae.cfg.n_latents, dtype=np.float32)
    rows = decode(sae, units)[:, 2] - sae.dec_bias_m[2 * D :]
    np.testing.assert_allclose(rows, stream_decoder(sae), atol=1e-6)
    with pytest.raises(ValueError, match="is 1, but the crosscoder has 7, 13, 22"):
        open_decoder(case.path, layer=1)
    with pytest.raises(ValueError, match="takes one of them"):
        open_decoder(case.path, layer=7, model=0)


def test_what_names_and_paths_say(tmp_path: Path) -> None:
    def cfg(name: str) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        case = LAYOUTS[name](folder)
        return read_config(case.path, **case.options)

    found = cfg("openai_tied_identity")
    assert (found.site, found.layer, found.k, found.norm) == (
        "blocks.7.hook_resid_mid",
        7,
        K,
        "layer_norm",
    )
    found = cfg("goodfire")
    assert (found.site, found.model_name) == (
        "blocks.19.hook_resid_post",
        "meta-llama/Llama-3.1-8B-Instruct",
    )
    found = cfg("qwen_scope")
    assert (found.site, found.k, found.model_name) == (
        "blocks.3.hook_resid_post",
        5,
        "Qwen/Qwen3-8B-Base",
    )
    found = cfg("gemma_scope_2_transcoder")
    assert found.site == "model.layers.3.pre_feedforward_layernorm.output"
    assert found.site_out == "model.layers.3.post_feedforward_layernorm.output"
    found = cfg("llama_scope_transcoder")
    assert (found.site, found.site_out) == (
        "blocks.15.hook_resid_post",
        "blocks.15.hook_mlp_out",
    )
    assert found.model_name == "meta-llama/Llama-3.1-8B"
    found = cfg("sparsify_old_transcoder")
    assert (found.site, found.site_out, found.layer) == (
        "layers.3.mlp.input",
        "layers.3.mlp.output",
        3,
    )
    found = cfg("connor_rob")
    assert (found.site, found.layer, found.flatten_heads) == (
        "blocks.5.attn.hook_z",
        5,
        True,
    )
    found = cfg("circuit_tracer")
    assert (found.site, found.site_out, found.layer) == (
        "blocks.3.hook_resid_mid",
        "blocks.3.hook_mlp_out",
        3,
    )
    assert (found.model_name, found.gate, found.skip) == (
        "google/gemma-2-2b",
        "jumprelu",
        True,
    )
    found = cfg("qwen3_transcoder")
    assert (found.site, found.site_out, found.gate) == (
        "blocks.7.mlp.hook_in",
        "blocks.7.hook_mlp_out",
        "relu",
    )
    found = cfg("gemma_scope_embedding")
    assert (found.site, found.layer, found.expected_l0) == (
        "blocks.0.hook_resid_pre",
        0,
        6.0,
    )
    assert found.folded == (f"norm_scale={1 / np.sqrt(D):g}",)
    found = cfg("qresearch")
    assert (found.layer, found.dtype) == (19, "bfloat16")


def edit(path: Path, **changes: Any) -> None:
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        (
            "llama_scope",
            "hyperparams.json",
            {"dataset_average_activation_norm": None},
            "give norm_scale=",
        ),
        (
            "llama_scope",
            "hyperparams.json",
            {"norm_activation": "batch-wise"},
            "depends on the batch",
        ),
        ("llama_scope", "hyperparams.json", {"d_sae": 25}, r"which needs \[25, 6\]"),
        ("llama_scope", "hyperparams.json", {"act_fn": "gelu"}, "act_fn 'gelu'"),
        (
            "llamascopium_topk",
            "config.json",
            {"norm_activation": "dataset-wise"},
            "give norm_scale=",
        ),
        (
            "llamascopium_topk",
            "config.json",
            {"act_fn": "batchtopk"},
            "give threshold=, or gate='topk'",
        ),
        ("llamascopium_topk", "config.json", {"sae_type": "lorsa"}, "only plain SAEs"),
        (
            "llamascopium_topk",
            "config.json",
            {"use_glu_encoder": True},
            "use_glu_encoder is not loaded",
        ),
        (
            "gemma_scope_2_transcoder",
            "config.json",
            {"affine_connection": False},
            "affine_connection=False",
        ),
        ("gemma_scope_2_transcoder", "config.json", {"width": 25}, "width 25"),
        (
            "gemma_scope_2_crosscoder",
            "config.json",
            {"type": "clt"},
            "cross-layer transcoders are not loaded",
        ),
        (
            "sparsify_groupmax",
            "cfg.json",
            {"k": 7},
            "k=7 groups does not divide 24 latents",
        ),
        (
            "sparsify_signed",
            "cfg.json",
            {"activation": "relu"},
            "activation 'relu' is unknown",
        ),
        (
            "sparsify_signed",
            "cfg.json",
            {"skip_connection": True},
            r"− W_skip \(missing\)",
        ),
        (
            "connor_rob",
            "gpt2-small_L5_Hcat_z_v9_cfg.json",
            {"dict_size": 25},
            "dict_size=25",
        ),
        ("ckkissane", "cfg.json", {"d_in": 7}, "d_in=7"),
        (
            "saelens_matching_pursuit",
            "cfg.json",
            {"residual_threshold": "x"},
            "residual_threshold is 'x'",
        ),
        (
            "saelens_matching_pursuit",
            "cfg.json",
            {"residual_threshold": -1},
            "a threshold of 0 or more",
        ),
        (
            "saelens_matching_pursuit",
            "cfg.json",
            {"max_iterations": 0},
            "at least one iteration",
        ),
        ("saelens_abstopk", "cfg.json", {"k": "five"}, "k is 'five' in the config"),
    ],
)
def test_contradictions(
    tmp_path: Path, name: str, file: str, changes: dict, message: str
) -> None:
    case = LAYOUTS[name](tmp_path)
    folder = case.path if case.path.is_dir() else case.path.parent
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=message):
        load_sae(case.path, **case.options)


def test_what_a_file_leaves_open_is_asked_for(tmp_path: Path) -> None:
    case = LAYOUTS["ckkissane"](tmp_path)
    with pytest.raises(ValueError, match=r"give norm_scale=\(s_base, s_chat\)"):
        load_sae(case.path)
    # The published one is known, by its folder.
    known = tmp_path / "crosscoder-gemma-2-2b-model-diff/blocks.14.hook_resid_pre"
    known.mkdir(parents=True)
    for file in ("cc_weights.pt", "cfg.json"):
        shutil.copyfile(case.path / file, known / file)
    assert read_config(known).folded == ("norm_scale=0.275896", "norm_scale=0.244229")

    other = tmp_path / "layer3.sae.pt"
    save_torch(
        other,
        {
            "W_enc": Maker()(N, D),
            "W_dec": Maker()(D, N),
            "b_enc": Maker()(N),
            "b_dec": Maker()(D),
        },
    )
    with pytest.raises(ValueError, match="give k="):
        load_sae(other)
    assert read_config(other, k=3).k == 3

    folder = tmp_path / "cc"
    folder.mkdir()
    tensors = crosscoder_tensors(Maker(), 1, 1.0, False)
    del tensors["code_normalization_id"]
    save_torch(folder / "model_final.pt", tensors)
    with pytest.raises(
        ValueError, match="give code_normalization= one of CROSSCODER, SAE"
    ):
        load_sae(folder)
    assert (
        load_sae(folder, code_normalization="SAE").cfg.architecture
        == "BatchTopKCrossCoder"
    )
    save_torch(
        folder / "model_final.pt", tensors | {"threshold": np.array(-1, np.float32)}
    )
    with pytest.raises(ValueError, match="give one as threshold="):
        load_sae(folder, code_normalization="SAE")


def test_the_backup_without_its_factor_asks(tmp_path: Path) -> None:
    save_torch(
        tmp_path / "ae.pt",
        {"step": 1, "ae": linear(Maker()), "optimizer": {}, "config": {}},
    )
    with pytest.raises(
        ValueError, match=r"backup without norm_factor.*give norm_scale="
    ):
        load_sae(tmp_path, dict_class="AutoEncoderNew")
    sae = load_sae(tmp_path, dict_class="AutoEncoderNew", norm_scale=0.5)
    np.testing.assert_allclose(sae.enc_bias_n, linear(Maker())["encoder.bias"] * 2)


def test_either_orientation_of_the_affine_skip(tmp_path: Path) -> None:
    case = LAYOUTS["gemma_scope_2_transcoder"](tmp_path)
    np.testing.assert_array_equal(
        load_sae(case.path, affine="out_in").skip_dm, load_sae(case.path).skip_dm.T
    )
    with pytest.raises(ValueError, match="takes 'in_out' or 'out_in'"):
        load_sae(case.path, affine="sideways")


def test_published_folders_have_their_scale_whichever_way_they_are_reached(
    tmp_path: Path,
) -> None:
    name = "gemma_2b_blocks.12.hook_resid_post_16384"
    norm = {"normalize_activations": "expected_average_only_in"}
    for place in (
        "clone",
        "models--jbloom--Gemma-2b-Residual-Stream-SAEs/snapshots/ab",
    ):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        saelens(folder, "standard", standard_tensors(Maker()), **norm)
        assert read_config(folder).folded == ("norm_scale=0.213819",)
        assert read_config(folder / "sae_weights.safetensors").folded == (
            "norm_scale=0.213819",
        )
    renamed = tmp_path / "mine"
    renamed.mkdir()
    saelens(renamed, "standard", standard_tensors(Maker()), **norm)
    with pytest.raises(ValueError, match="give it as norm_scale="):
        load_sae(renamed)
    folder = tmp_path / "mistral_7b_layer_8"
    folder.mkdir()
    saelens(folder, "standard", standard_tensors(Maker()))
    assert read_config(folder).norm == "constant_norm_rescale"


def test_a_centred_residual_stream(tmp_path: Path) -> None:
    case = LAYOUTS["saelens_centred"](tmp_path)
    assert "input centred" in read_config(case.path).folded
    assert read_config(case.path, centre=False).folded == ()
    raw = json.loads((case.path / "cfg.json").read_text())
    for said in (
        {"model_name": "gemma-2b"},
        {"hook_name": "blocks.2.attn.hook_z"},
    ):  # TransformerLens leaves these alone
        (case.path / "cfg.json").write_text(
            json.dumps(raw | {"metadata": raw["metadata"] | said})
        )
        assert read_config(case.path).folded == ()
    (case.path / "cfg.json").write_text(
        json.dumps(raw | {"normalize_activations": "constant_norm_rescale"})
    )
    with pytest.raises(ValueError, match="give centre=False"):
        read_config(case.path)
    # The release's own config is silent; its folder tells.
    own = raw | {
        "metadata": {"hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2-small"}
    }
    for place in (
        "clone/GPT2-Small-SAEs-Reformatted",
        "models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/ab",
    ):
        folder = tmp_path / place / "blocks.2.hook_resid_pre"
        folder.mkdir(parents=True)
        shutil.copyfile(
            case.path / "sae_weights.safetensors", folder / "sae_weights.safetensors"
        )
        (folder / "cfg.json").write_text(json.dumps(own))
        sae = load_sae(folder)
        assert error(reconstruct(sae, case.x), case.recon) <= 1e-5


def test_scales_of_the_distilled_release(tmp_path: Path) -> None:
    case = LAYOUTS["r1_distill"](tmp_path)
    known = tmp_path / "800M-Slimpajama-0-OpenR1-Math-220k/L5R"
    known.mkdir(parents=True)
    for file in case.path.iterdir():
        if file.is_file():
            shutil.copyfile(file, known / file.name)
    edit(
        known / "config.json",
        norm_activation="dataset-wise",
        dataset_average_activation_norm=None,
    )
    assert read_config(known).folded[0] == "norm_scale=13.7727"
    renamed = shutil.copytree(known, tmp_path / "mine")
    with pytest.raises(ValueError, match="give norm_scale="):
        read_config(renamed)


def test_a_transcoder_of_a_set_without_its_activation(tmp_path: Path) -> None:
    case = LAYOUTS["circuit_tracer"](tmp_path)
    config = case.path.parent / "config.yaml"
    text = config.read_text()
    t = {
        k: v
        for k, v in load_file(case.path).items()
        if k != "activation_function.threshold"
    }
    save_file(t, case.path)
    assert read_config(case.path).gate == "relu"
    config.write_text(text + "activation: topk\nk: 4\n")
    assert (read_config(case.path).gate, read_config(case.path).k) == ("topk", 4)
    config.write_text(text + "activation: jump_relu\n")
    with pytest.raises(ValueError, match="give threshold="):
        read_config(case.path)
    assert load_sae(case.path, threshold=0.5).threshold_n[3] == 0.5
    for junk, message in (
        ("activation: tanh", "known: relu, jumprelu, topk"),
        ("- 1", "a list"),
        ("a: [", "is not YAML of plain values"),
    ):
        config.write_text(junk)
        with pytest.raises(ValueError, match=message):
            read_config(case.path)


def test_layers_of_a_gemma_crosscoder_must_all_be_there(tmp_path: Path) -> None:
    case = LAYOUTS["gemma_scope_2_crosscoder"](tmp_path)
    (case.path / "params_layer_1.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=r"2 files params_layer_\*, but its name has layers \('7', '13', '22'\)",
    ):
        load_sae(case.path)


def test_an_unnamed_weight_file_alone_in_its_folder_is_found(tmp_path: Path) -> None:
    case = LAYOUTS["goodfire"](tmp_path)
    assert read_config(tmp_path).source == "goodfire"
    shutil.copyfile(case.path, tmp_path / "copy.pth")
    with pytest.raises(ValueError, match=r"several SAEs.*point at its weight file"):
        load_sae(tmp_path)
