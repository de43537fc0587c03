"""What is written for other tools: read back by our own loader, and by theirs where it
is installed.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sae_attr.files.gguf import write_control_vector
from sae_attr.files.hub import public_name
from sae_attr.files.vectors import write_vectors
from sae_attr.sae.export import save_dictionary_learning, save_saelens
from sae_attr.sae.formats import load_sae
from sae_attr.sae.model import SAE, encode, reconstruct
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from tests.sae._gguf import read_gguf
from tests.sae._layouts import LAYOUTS

FIXTURES = (
    "saelens/gated", "saelens/jumprelu_skip_transcoder", "saelens/standard_bfloat16", "saelens/standard_hook_z",
    "saelens/standard_constant_norm_rescale", "saelens/topk_layer_norm", "saelens/transcoder",
    "dictionary_learning/BatchTopKSAE", "dictionary_learning/GatedAutoEncoder", "sparsify/topk/layers.2",
    "gemma_scope/layer_2/width_512/average_l0_13", "openai/topk_normalize_from_saelens",
    "crosscoder/batchtopk_sae_normalized_fork",
)  # fmt: skip
MINIATURES = (
    "saelens_abstopk", "saelens_abstopk_rescaled", "saelens_matching_pursuit", "llama_scope", "sparsify_signed",
    "gemma_scope_2_transcoder", "llamascopium_jumprelu",
)  # fmt: skip


@pytest.mark.parametrize("name", FIXTURES)
def test_every_kind_of_fixture_comes_back_with_the_same_codes(
    shared: Path, tmp_path: Path, name: str
) -> None:
    folder = shared / "fixtures/sae" / name
    with np.load(folder / "golden.npz") as file:
        x = file["x"]
    sae = load_sae(folder)
    save_saelens(tmp_path / "sae", sae)
    back = load_sae(tmp_path / "sae")
    np.testing.assert_array_equal(encode(back, x), encode(sae, x))
    np.testing.assert_array_equal(reconstruct(back, x), reconstruct(sae, x))
    assert (back.cfg.site, back.cfg.site_out, back.cfg.k) == (
        sae.cfg.site,
        sae.cfg.site_out,
        sae.cfg.k,
    )
    assert (back.cfg.model_name, back.cfg.exclude_special) == (
        sae.cfg.model_name,
        sae.cfg.exclude_special,
    )


@pytest.mark.parametrize("name", MINIATURES)
def test_every_kind_of_miniature_comes_back_with_the_same_codes(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "from").mkdir()
    case = LAYOUTS[name](tmp_path / "from")
    sae = load_sae(case.path, **case.options)
    save_saelens(tmp_path / "to", sae)
    back = load_sae(tmp_path / "to")
    np.testing.assert_array_equal(encode(back, case.x), encode(sae, case.x))
    np.testing.assert_array_equal(reconstruct(back, case.x), reconstruct(sae, case.x))


def test_weights_keep_their_dtype_and_nothing_is_overwritten(tmp_path: Path) -> None:
    case = LAYOUTS["llama_scope"](tmp_path)
    sae = load_sae(case.path, dtype="bfloat16")
    save_saelens(tmp_path / "sae", sae)
    assert (
        load_file(tmp_path / "sae/sae_weights.safetensors")["W_dec"].dtype.name
        == "bfloat16"
    )
    assert json.loads((tmp_path / "sae/cfg.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(FileExistsError, match="holds an SAE already"):
        save_saelens(tmp_path / "sae", sae)


def test_what_the_layout_cannot_express_is_an_error(tmp_path: Path) -> None:
    def refused(name: str, message: str, **changes: object) -> None:
        folder = tmp_path / f"{name}{len(changes)}"
        folder.mkdir()
        case = LAYOUTS[name](folder)
        sae = load_sae(case.path, **case.options)
        with pytest.raises(ValueError, match=message):
            save_saelens(tmp_path / "out", sae.replace(cfg=replace(sae.cfg, **changes)))

    refused("ckkissane", "a crosscoder of 2 streams")
    refused("sparsify_groupmax", "no SAE with gate groupmax; it has relu")
    refused("llamascopium_topk", "gate topk with selection by decoder norm")
    refused("sparsify_old_transcoder", "no transcoder with gate topk")
    refused("gemma_scope_2_transcoder", "neither take b_dec", subtract_b_dec=True)
    refused(
        "saelens_matching_pursuit",
        "only where it takes it from the input",
        subtract_b_dec=False,
    )
    assert not (tmp_path / "out").exists()


def test_saelens_reads_what_we_write(tmp_path: Path) -> None:
    sae_lens, torch = pytest.importorskip("sae_lens"), pytest.importorskip("torch")
    names = (
        "saelens_abstopk",
        "saelens_matching_pursuit",
        "llama_scope",
        "saelens_skip_transcoder",
    )
    for name in (*names, "saelens_jumprelu_transcoder", "gemma_scope_2_transcoder"):
        (tmp_path / name).mkdir()
        case = LAYOUTS[name](tmp_path / name)
        sae = load_sae(case.path, **case.options)
        save_saelens(tmp_path / name / "out", sae)
        theirs = sae_lens.SAE.load_from_disk(tmp_path / name / "out")
        codes = theirs.encode(torch.tensor(case.x)).detach().numpy()
        np.testing.assert_allclose(codes, encode(sae, case.x), rtol=1e-4, atol=1e-5)
        output = theirs(torch.tensor(case.x)).detach().numpy()
        np.testing.assert_allclose(
            output, reconstruct(sae, case.x), rtol=1e-4, atol=1e-4
        )
        if name.startswith(
            "saelens"
        ):  # and the miniature itself, which was not written by us
            again = sae_lens.SAE.load_from_disk(case.path)
            np.testing.assert_allclose(
                again(torch.tensor(case.x)).detach(), case.recon, rtol=1e-4, atol=1e-4
            )


def test_vectors_come_back_with_their_metadata(tmp_path: Path) -> None:
    vectors = {"latent_3": jnp.arange(4.0), "mean": np.ones(4, np.float64)}
    write_vectors(
        tmp_path / "v.safetensors",
        vectors,
        {"model": "tiny", "latents": [3], "scale": 0.5},
    )
    found = load_file(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(found["latent_3"], np.arange(4.0))
    assert found["mean"].dtype == np.float64
    with safe_open(tmp_path / "v.safetensors", framework="numpy") as file:
        assert file.metadata() == {"model": "tiny", "latents": "[3]", "scale": "0.5"}
    with pytest.raises(ValueError, match=r"latent_3 for .* holds NaN"):
        write_vectors(tmp_path / "x.safetensors", {"latent_3": [np.nan]})
    with pytest.raises(ValueError, match="at least one"):
        write_vectors(tmp_path / "x.safetensors", {})


def test_control_vectors_are_laid_out_as_repeng_has_them(tmp_path: Path) -> None:
    directions = {3: np.linspace(-1, 1, 7), 11: jnp.ones(7)}
    write_control_vector(tmp_path / "v.gguf", directions, "llama")
    keys, found = read_gguf(tmp_path / "v.gguf")
    assert keys == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert list(found) == ["direction.3", "direction.11"]
    for layer, vector in directions.items():
        np.testing.assert_array_equal(
            found[f"direction.{layer}"], np.asarray(vector, np.float32)
        )
    for bad in (
        {},
        {3: np.ones(7), 4: np.ones(6)},
        {-1: np.ones(7)},
        {1: np.ones((2, 7))},
        {1: np.array([np.inf])},
    ):
        with pytest.raises(ValueError, match=r"layer|at least one|infinity"):
            write_control_vector(tmp_path / "x.gguf", bad, "llama")


def test_gguf_reads_our_control_vectors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write_control_vector(tmp_path / "v.gguf", {5: np.arange(6.0)}, "qwen2")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert (
        bytes(reader.get_field("controlvector.model_hint").parts[-1]).decode()
        == "qwen2"
    )
    assert [(t.name, t.data.tolist()) for t in reader.tensors] == [
        ("direction.5", [0, 1, 2, 3, 4, 5])
    ]


def _trained(objective: str) -> tuple[SAE, np.ndarray]:
    """A few steps of a small SAE, in raw units."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 6)) * 2 + 3).astype(np.float32)
    groups = (4, 8) if objective == "matryoshka" else ()
    cfg = TrainConfig(
        6, 12, 3, objective=objective, k=3, warmup=1, groups=groups, threshold_decay=0.5
    )
    state = train_sae(cfg, lambda step: x, progress=False).state
    return finished(
        cfg, state, site="blocks.2.hook_resid_post", layer=2, model_name="toy"
    ), x


LEARNED = {
    "relu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "batch_topk": "BatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
}  # fmt: skip


@pytest.mark.parametrize("objective", LEARNED)
def test_trained_saes_come_back_from_both_layouts(
    tmp_path: Path, objective: str
) -> None:
    sae, x = _trained(objective)
    save_saelens(tmp_path / "lens", sae)
    save_dictionary_learning(tmp_path / "learning", sae)
    lens, learning = load_sae(tmp_path / "lens"), load_sae(tmp_path / "learning")
    assert learning.cfg.architecture == LEARNED[objective]
    assert lens.cfg.site == learning.cfg.site == "blocks.2.hook_resid_post"
    np.testing.assert_array_equal(encode(lens, x), encode(sae, x))
    np.testing.assert_allclose(
        encode(learning, x), encode(sae, x), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        reconstruct(learning, x), reconstruct(sae, x), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(FileExistsError):
        save_dictionary_learning(tmp_path / "learning", sae)


@pytest.mark.parametrize("objective", LEARNED)
def test_dictionary_learning_reads_what_is_written_for_it(
    tmp_path: Path, objective: str
) -> None:
    torch = pytest.importorskip(
        "torch", reason="needs torch and dictionary-learning (extra `peers`)"
    )
    utils = pytest.importorskip(
        "dictionary_learning.utils", reason="needs dictionary-learning (extra `peers`)"
    )
    sae, x = _trained(objective)
    save_dictionary_learning(tmp_path / "learning", sae)
    theirs, _ = utils.load_dictionary(str(tmp_path / "learning"), "cpu")
    with torch.no_grad():
        np.testing.assert_allclose(
            theirs.encode(torch.from_numpy(x)), encode(sae, x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("objective", LEARNED)
def test_saelens_reads_trained_saes(tmp_path: Path, objective: str) -> None:
    torch = pytest.importorskip(
        "torch", reason="needs torch and sae-lens (extra `peers`)"
    )
    lens = pytest.importorskip("sae_lens", reason="needs sae-lens (extra `peers`)")
    sae, x = _trained(objective)
    save_saelens(tmp_path / "lens", sae)
    theirs = lens.SAE.load_from_disk(tmp_path / "lens")
    with torch.no_grad():
        np.testing.assert_allclose(
            theirs.encode(torch.from_numpy(x)), encode(sae, x), rtol=1e-4, atol=1e-5
        )


def test_dictionary_learning_cannot_say_everything(tmp_path: Path) -> None:
    sae, _ = _trained("topk")
    for other in (
        {"norm": "layer_norm"},
        {"skip": True},
        {"subtract_b_dec": False},
        {"gate": "groupmax"},
    ):
        with pytest.raises(ValueError, match="dictionary_learning has"):
            save_dictionary_learning(
                tmp_path / "no", replace(sae, cfg=replace(sae.cfg, **other))
            )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("google/gemma-2-2b", "google/gemma-2-2b"), ("gpt2", "gpt2"), (None, None), ("owner/name@main", "owner/name@main"),
        ("/home/someone/secret/Llama-3.1-8B", "Llama-3.1-8B"), ("./models/mine", "mine"), ("~/models/mine/", "mine"),
        ("runs/organism/model", "organism"), ("/data/final", "data"), ("gs://bucket/team/mine/final", "mine"),
        ("C:\\Users\\me\\mine", "mine"),
        ("/root/.cache/huggingface/hub/models--google--gemma-2-2b/snapshots/0123abc", "google/gemma-2-2b"),
        ("/tmp/a\x1b[31mb", "a\\x1b[31mb"), (".", Path.cwd().name),
    ],
)  # fmt: skip
def test_a_model_is_named_without_where_it_lies(
    model: str | None, name: str | None
) -> None:
    assert public_name(model) == name


def test_what_is_written_names_no_place_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    sae = load_sae(LAYOUTS["gemma_scope_2_transcoder"](tmp_path).path)
    cfg = replace(sae.cfg, site="layer1.resid_post", site_out=None, skip=False)
    sae = replace(
        sae, skip_dm=None, cfg=replace(cfg, model_name=str(tmp_path / "mine"))
    )
    save_saelens(tmp_path / "a", sae)
    save_dictionary_learning(tmp_path / "b", sae)
    for folder in "ab":
        for file in (tmp_path / folder).iterdir():
            assert os.fsencode(tmp_path) not in file.read_bytes()
        assert load_sae(tmp_path / folder).cfg.model_name == "mine"
