"""SAEs by name: the table, what a name stands for, and what is said about a wrong one."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_attr.parallel import make_mesh
from sae_attr.sae.formats import FORMATS, load_sae, pinned, read_config
from sae_attr.sae.model import encode
from sae_attr.sae.registry.make_registry import installed_registry, table_text
from sae_attr.sae.registry.models import MODELS
from sae_attr.sae.registry.names import check_model, is_remote, named_sae
from sae_attr.sae.registry.rules import LOADERS, width_of
from sae_attr.sae.registry.search import Query, search
from sae_attr.sae.registry.table import TABLE, releases, weights_of
from sae_attr.site_names import parse_site
from sae_attr.store import fingerprint
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.input_files import InputFiles, fingerprints
from sae_attr.study.model_files import ModelFiles
from sae_attr.study.sae_files import SAEFiles
from tests._hub import COMMIT, Hub
from tests.sae._formulas import Case, Maker, keep, standard_tensors
from tests.sae._layouts import LAYOUTS, saelens
from tests.sae._temporal import write_released as write_temporal
from tests.sae._torchfiles import save_torch

GEMMA = "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medium"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder for miniatures."""
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


def put(hub: Hub, name: str, case: Case) -> None:
    """Lays the files of a miniature where the SAE of a name lies on the hub."""
    named = named_sae(name)
    assert named is not None
    target = hub.repository(named.release.repo) / named.sae.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if case.path.is_dir():
        shutil.copytree(case.path, target)
        return
    shutil.copyfile(case.path, target)
    config = case.path.with_name(f"{case.path.stem}_cfg.json")
    if config.exists():
        shutil.copyfile(config, target.with_name(f"{target.stem}_cfg.json"))


# ---- the table -----------------------------------------------------------------------


def test_the_table_holds_every_sae_of_the_registry() -> None:
    everything = releases()
    assert len(everything) == 170
    assert sum(len(release.saes) for release in everything.values()) == 13857
    assert TABLE.stat().st_size < 200_000
    for release in everything.values():
        assert (release.loader.format in FORMATS) != bool(release.loader.unread)
        for sae in release.saes.values():
            sites = [site for site in (sae.site, sae.site_out) if site]
            layers = {parse_site(site).layer for site in sites}
            assert layers == {sae.layer}
            assert sae.layer < release.model.layers


def test_an_entry_says_what_the_registry_says() -> None:
    named = named_sae(GEMMA)
    assert named is not None
    assert named.url == (
        "hf://google/gemma-scope-2-270m-it/resid_post/layer_12_width_16k_l0_medium/"
    )
    assert (named.sae.site, named.sae.latents, named.sae.l0) == (
        "layer12.resid_post",
        16384,
        60,
    )
    assert named.release.model.hub_id == "google/gemma-3-270m-it"
    million = named_sae("gemma-scope-2-270m-it-res/layer_12_width_1m_l0_medium")
    assert million is not None
    assert weights_of(million.release, million.sae) == 2 * 640 * 2**20
    clip = named_sae("llama_scope_lxr_8x/l15r_8x")
    assert clip is not None
    assert clip.sae.neuronpedia == "llama3.1-8b/15-llamascope-res-32k"
    assert (clip.sae.site, clip.sae.latents) == ("layer15.resid_post", 32768)


def test_the_table_is_made_from_the_registry_file() -> None:
    yaml = pytest.importorskip("yaml")
    try:
        file = installed_registry()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    registry = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    assert table_text(registry).encode() == gzip.decompress(TABLE.read_bytes())


def test_a_latent_has_a_page_only_where_the_registry_names_one_for_its_sae(
    tmp_path: Path,
) -> None:
    named = named_sae(GEMMA)
    assert named is not None
    page = "https://www.neuronpedia.org/gemma-3-270m-it/12-gemmascope-2-res-16k/7"
    assert named.page(7) == page
    for name in ("", 'a/b"onclick=', "a/b/../c", "javascript:a/b"):
        entry = replace(named.sae, neuronpedia=name)
        assert replace(named, sae=entry).page(7) == "", name
    # A folder with the same weights says nothing of who knows them.
    settings = Settings(lm="lm", sae=GEMMA, pairs="pairs", corpus="corpus")
    files = SAEFiles(settings, ModelFiles(settings, make_mesh("data=1")))
    assert files.latent_page(7) == page
    nameless = replace(settings, sae=str(tmp_path))
    assert replace(files, settings=nameless).latent_page(7) == ""


# ---- loading by name -----------------------------------------------------------------


def gemma_scope(folder: Path) -> Case:
    """Gemma Scope 1, whose path states the width."""
    m, d, n = Maker(70), 6, 16384
    t = {"W_enc": m(d, n), "W_dec": m(n, d), "b_enc": m(n), "b_dec": m(d)}
    t["threshold"] = np.abs(m(n))
    np.savez(folder / "params.npz", **t)
    x = m(5, d)
    pre = x.astype(np.float64) @ t["W_enc"] + t["b_enc"]
    codes = np.where(pre > t["threshold"], np.maximum(pre, 0), 0)
    return Case(folder, x, codes, codes @ t["W_dec"] + t["b_dec"])


def qwen_scope(folder: Path) -> Case:
    """Qwen-Scope, whose repository states k: 50."""
    m, d, n = Maker(71), 6, 64
    t = {"W_enc": m(n, d), "W_dec": m(d, n), "b_enc": m(n), "b_dec": m(d)}
    path, x = save_torch(folder / "layer3.sae.pt", t), m.x()[:, :d]
    pre = np.maximum(x.astype(np.float64) @ t["W_enc"].T + t["b_enc"], 0)
    codes = keep(pre, pre, 50)
    return Case(path, x, codes, codes @ t["W_dec"].T + t["b_dec"])


# One SAE of every loader, and the miniature whose files take its place.
BY_LOADER: dict[str, Callable[[Path], Case]] = {
    "gemma-2-2b-res-matryoshka-dc/blocks.2.hook_resid_post": LAYOUTS["saelens_abstopk"],
    "gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_68": gemma_scope,
    "gemma-scope-2-1b-it-transcoders-all/layer_3_width_16k_l0_big_affine": LAYOUTS[
        "gemma_scope_2_transcoder"
    ],
    "qwen2.5-7b-instruct-andyrdt/resid_post_layer_3_trainer_1": LAYOUTS[
        "dictionary_learning_new"
    ],
    "llama_scope_lxr_8x/l15r_8x": LAYOUTS["llama_scope"],
    "llama_scope_r1_distill/l4r_800m_slimpajama": LAYOUTS["r1_distill"],
    "mwhanna-qwen3-14b-transcoders/layer_7": LAYOUTS["qwen3_transcoder"],
    "gpt2-small-hook-z-kk/blocks.5.hook_z": LAYOUTS["connor_rob"],
    "deepseek-r1-distill-llama-8b-qresearch/blocks.19.hook_resid_post": LAYOUTS[
        "qresearch"
    ],
    "goodfire-llama-3.1-8b-instruct/layer_19": LAYOUTS["goodfire"],
    "qwen-scope-3-8b-base-w64k-l50/layer3": qwen_scope,
    "temporal-sae-gemma-2-2b/blocks.12.hook_resid_post": write_temporal,
}


def test_every_loader_has_an_sae_here() -> None:
    loaders = {releases()[name.partition("/")[0]].loader.format for name in BY_LOADER}
    assert loaders == {loader.format for loader in LOADERS.values() if loader.format}


@pytest.mark.parametrize("name", BY_LOADER)
def test_a_name_loads_what_its_files_hold(hub: Hub, made: Path, name: str) -> None:
    case = BY_LOADER[name](made)
    put(hub, name, case)
    sae = load_sae(name)
    named = named_sae(name)
    assert named is not None
    codes = np.asarray(encode(sae, case.x))
    np.testing.assert_array_equal(codes != 0, case.codes != 0)
    np.testing.assert_allclose(codes, case.codes, rtol=1e-4, atol=1e-5)
    assert sae.cfg.source == named.release.loader.format
    assert parse_site(sae.cfg.site_out or sae.cfg.site or "") == named.site
    assert sae.cfg.model_name is not None
    assert hub.downloads == [(named.release.repo, None)]


def test_a_revision_is_fetched_and_pinned(hub: Hub, made: Path) -> None:
    name = "gemma-2-2b-res-matryoshka-dc/blocks.2.hook_resid_post"
    put(hub, name, BY_LOADER[name](made))
    assert pinned(name) == f"{name}@{COMMIT}"
    assert pinned(f"{name}@v2") == f"{name}@{COMMIT}"
    assert read_config(f"{name}@v2").gate == "abs_topk"
    repo = "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40"
    assert hub.downloads == [(repo, None), (repo, "v2"), (repo, "v2")]


def test_a_folder_may_be_called_like_a_file(hub: Hub, made: Path) -> None:
    name = "gpt2-small-resid-post-v5-32k/blocks.2.hook_resid_post"
    named = named_sae(name)
    assert named is not None
    # The one entry whose folder ends in .pt.
    odd = named_sae("gpt2-small-resid-post-v5-32k/blocks.0.hook_resid_post")
    assert odd is not None
    assert odd.sae.path.endswith(".pt")
    case = LAYOUTS["saelens_abstopk"](made)
    config = case.path / "cfg.json"
    config.write_text(config.read_text().replace("blocks.2.", "blocks.0."))
    put(hub, odd.name, case)
    assert load_sae(odd.name).cfg.site == "blocks.0.hook_resid_post"


def test_what_exists_here_goes_before_a_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_remote(GEMMA)
    Path(GEMMA).mkdir(parents=True)
    saelens(Path(GEMMA), "standard", standard_tensors(Maker()))
    assert not is_remote(GEMMA)
    assert read_config(GEMMA).source == "saelens"
    assert hub.downloads == []
    assert named_sae(f"hf://{GEMMA}") is None
    files = InputFiles(lm="", sae=GEMMA, corpus=__file__)
    assert fingerprints(files)["sae"] == fingerprint(GEMMA)
    shutil.rmtree(GEMMA)
    assert fingerprints(files)["sae"] == GEMMA


# ---- what the files leave out, or deny -----------------------------------------------


def test_a_silent_file_takes_the_site_of_the_registry(hub: Hub, made: Path) -> None:
    name = "gemma-2-2b-res-matryoshka-dc/blocks.2.hook_resid_post"
    case = LAYOUTS["saelens_abstopk"](made)
    config = case.path / "cfg.json"
    content = json.loads(config.read_text())
    del content["metadata"]["hook_name"]
    config.write_text(json.dumps(content))
    assert read_config(case.path).site is None
    put(hub, name, case)
    cfg = load_sae(name).cfg
    assert (cfg.site, cfg.model_name) == ("layer2.resid_post", "google/gemma-2-2b")
    assert cfg.expected_l0 == 40


def test_a_file_that_denies_the_site_is_refused(hub: Hub, made: Path) -> None:
    name = "gemma-2-2b-res-matryoshka-dc/blocks.3.hook_resid_post"
    put(hub, name, LAYOUTS["saelens_abstopk"](made))
    with pytest.raises(
        ValueError,
        match=r"belongs at layer3.resid_post by the registry, and its own files say "
        r"blocks.2.hook_resid_post .* option site=",
    ):
        load_sae(name)
    assert load_sae(name, site="layer3.resid_post").cfg.site == "layer3.resid_post"


# ---- wrong names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medum",
            r"has no SAE 'layer_12_width_16k_l0_medum'; did you mean "
            rf"{GEMMA}, .*list_saes --release=gemma-scope-2-270m-it-res lists all 52",
        ),
        (
            "gemma-scope-2-270-it-res/layer_12_width_16k_l0_medium",
            rf"no release 'gemma-scope-2-270-it-res'; did you mean {GEMMA}",
        ),
        ("llama_scope_lxr_8x", r"is a release, and no SAE; did you mean .*/l0r_8x"),
        (
            "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0",
            r"cannot be loaded: its latents are those of a cross-layer transcoder",
        ),
    ],
)
def test_wrong_names_name_the_nearest(hub: Hub, name: str, message: str) -> None:
    for load in (load_sae, pinned):
        with pytest.raises(ValueError, match=message):
            load(name)
    assert hub.downloads == []


@pytest.mark.parametrize("path", ["nowhere/sae", "./llama_scope_lxr_8/x", "/a/b"])
def test_a_path_stays_a_path(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="is neither a file nor a folder"):
        load_sae(path)


def test_an_sae_of_another_model_is_refused() -> None:
    named = named_sae(GEMMA)
    assert named is not None
    for lm in ("mine", "./mine/model", "copies/Gemma-3-270m-it@main"):
        check_model(named, lm, layers=18, width=640)
    with pytest.warns(
        UserWarning, match=r"is an SAE of google/gemma-3-270m-it, and th"
    ):
        check_model(named, "google/gemma-3-270m", layers=18, width=640)
    for layers, width in ((18, 1152), (26, 640)):
        with pytest.raises(
            ValueError,
            match=rf"{GEMMA} is an SAE of google/gemma-3-270m-it, which has 18 layers "
            rf"and 640 channels at layer12.resid_post; mine has {layers} layers and "
            rf"{width} channels",
        ):
            check_model(named, "mine", layers=layers, width=width)


# ---- searching -----------------------------------------------------------------------


def test_filters_add_up() -> None:
    query = Query(model="gemma-3-270m-it", layer=12, site="resid_post", width="16k")
    names = [named.name for named in search(query)]
    assert GEMMA in names
    assert len(names) == 5  # three sizes of L0, and two of the set of all layers
    assert search(Query(match="gemma-3-270m no_such")) == []
    words = search(Query(match="16k MEDIUM 270m-it-res/ layer_12_"))
    assert [named.name for named in words] == [GEMMA]
    both = Query(release="gemma-scope-2b-pt-transcoders", site="mlp_out", layer=3)
    assert len(search(both)) == 1
    of_shape = {named.release.model for named in search(Query(shape=(18, 640)))}
    ids = ("google/gemma-3-270m", "google/gemma-3-270m-it")
    assert of_shape == {MODELS[name] for name in ids}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(model="gema-3-270m"), "no model 'gema-3-270m'; did you mean google/g"),
        (Query(release="llama_scop_lxr_8x"), "did you mean llama_scope_lxr_8x"),
        (Query(width="wide"), "is no number of latents; write 16384 or 16k"),
    ],
)
def test_a_search_for_nothing_names_the_nearest(query: Query, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(query)


def test_widths_have_several_names() -> None:
    sizes = [width_of(text) for text in ("16k", "65k", "64k", "1m", "16_384", "80k")]
    assert sizes == [16384, 65536, 65536, 2**20, 16384, 81920]
