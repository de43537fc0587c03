"""The listing of public SAEs: tables, counts, and the command that uses one."""

import csv
import io
import json

import pytest
from absl.testing import flagsaver

from experiments import _command, list_saes
from sae_attr.sae.registry.search import Query, search


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
