"""Studies with further dictionaries, on the miniature: a planted crosscoder, the same SAE
once more, and what is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from experiments import _config
from sae_attr.organism import planted
from sae_attr.sae.crosscoder_export import save_crosscoder
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.store import InputAwaited, stage_keys, stored_results
from sae_attr.study import case_study as opening
from sae_attr.study.case_checks import check_dictionaries
from sae_attr.study.cost import case_costs
from sae_attr.study.stage_order import study_stages
from tests._compile import quick_compile
from tests.experiments import _demo
from tests.experiments.test_case_study import config, run, runtime_in
from tests.experiments.test_exact_study import exact_config, opened_from

pytestmark = pytest.mark.usefixtures("quick")
OWN, COUNT = 12, 40  # the latent of the second model alone; how many there are
SITE = "blocks.1.hook_resid_post"


def config_with(
    miniature: Path, dictionaries: dict[str, dict[str, Any]], **changes: Any
) -> ConfigDict:
    """The miniature's study with further dictionaries, as a command line names them."""
    made = exact_config(miniature, **changes)
    add_dictionaries(made, dictionaries)
    return made


def add_dictionaries(made: ConfigDict, dictionaries: dict[str, dict[str, Any]]) -> None:
    """Names them in a study's config."""
    for name, fields in dictionaries.items():
        for field, value in fields.items():
            path = f"cases.rude.dictionaries.{name}.{field}"
            _config.override(made, path, str(value))


def write_crosscoder(
    folder: Path, u_d: np.ndarray, *, site: str | None = SITE, streams: int = 2
) -> str:
    """Writes a crosscoder of random rows, equally long in all models, and u in the
    second model alone.
    """
    width = len(u_d)
    draw = np.random.default_rng(0).standard_normal((COUNT, 1, width))
    dec_nsd = np.repeat(draw, streams, axis=1)
    dec_nsd[OWN] = 0
    dec_nsd[OWN, 1] = u_d
    dec_nm = dec_nsd.reshape(COUNT, -1)
    cfg = SAEConfig(width, width, COUNT, streams=streams, site=site, layer=2)
    parts = [dec_nm.T, np.zeros(COUNT), dec_nm, np.zeros(streams * width)]
    arrays: Any = [np.asarray(part, np.float32) for part in parts]
    save_crosscoder(folder, SAE(*arrays, cfg=cfg))
    return str(folder)


def planted_row(miniature: Path) -> np.ndarray:
    tensors = load_file(miniature / "random_sae/sae_weights.safetensors")
    return tensors["W_dec"][planted.PLANTED]


# ---- what is refused -----------------------------------------------------------------


def of_kind(kind: str, miniature: Path, folder: Path) -> str:
    """The path of a dictionary of some kind."""
    u_d = planted_row(miniature)
    made = folder / "crosscoder"
    if kind == "sae":
        return str(miniature / "random_sae")
    if kind == "model":
        return str(miniature / "model")
    if kind == "nothing":
        return str(folder / "nothing")
    if kind == "narrow":
        return write_crosscoder(made, u_d[:32])
    if kind == "elsewhere":
        return write_crosscoder(made, u_d, site="blocks.2.hook_resid_post")
    if kind == "layer":
        return write_crosscoder(made, u_d, site=None)
    if kind == "three":
        return write_crosscoder(made, u_d, streams=3)
    return write_crosscoder(made, u_d)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("narrow", {}, r"rows of \S+ have 32 numbers, but layer1\.resid_post of the case's model has 64"),
        ("elsewhere", {}, r"was trained at layer2\.resid_post, but the case is studied at layer1\.resid_post"),
        ("layer", {}, r"was trained at layer 2, but the case is studied at layer1\.resid_post, which is layer 1"),
        ("three", {}, r"dictionaries\.found: the dictionary has 3 streams; .* needs a crosscoder of 2"),
        ("model", {}, r"give the folder of an SAE or crosscoder: --config\.cases\.rude\.dictionaries\.found\.sae=PATH"),
        ("nothing", {}, r"dictionaries\.found: .*nothing lies at .*found\.sae=PATH"),
        ("sae", {"by": "delta_norm"}, r"found\.by is delta_norm, which .* has 1 stream: set"),
        ("sae", {"by": "luck"}, "by 'luck' is unknown; choose of auto, delta_norm, mean_code"),
        ("sae", {"reads": "lips"}, "reads 'lips' is unknown; choose of auto, site, diff"),
        ("sae", {"reads": "difference"}, "active on two models, but the case has no lm_aligned"),
        ("sae", {"top": 0}, "top is 0; it must be at least 1"),
        ("sae", {"raeds": "site"}, r"no key 'cases\.rude\.dictionaries\.found\.raeds'; did you mean .*found\.reads\?"),
        ("crosscoder", {"by": "mean_code"}, "active on two models, but the case has no lm_"),
        ("crosscoder", {"reads": "site"}, "but the crosscoder in .* reads both models"),
    ],
)  # fmt: skip
def test_dictionaries_that_do_not_belong_are_refused_with_both_sides(
    miniature: Path, tmp_path: Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    given = {"sae": of_kind(kind, miniature, tmp_path), **fields}
    made = config_with(miniature, {"found": given})
    with pytest.raises(ValueError, match=message):
        check_dictionaries(opened_from(made, tmp_path))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("recommended", {}, "'recommended' has the name of a method"),
        ("random", {}, "'random' has the name of a method"),
        ("a-b", {}, "'a-b': give a name of letters, digits and _"),
        ("twin", {"ablate_by": "activation"}, "latents of twin do not have; set ablate_by=projection"),
    ],
)  # fmt: skip
def test_names_that_stand_for_something_else_are_refused(
    miniature: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    given = {name: {"sae": miniature / "random_sae"}}
    with pytest.raises(ValueError, match=message):
        opened_from(config_with(miniature, given, **changes), tmp_path)


def test_the_cost_counts_further_latents(miniature: Path, tmp_path: Path) -> None:
    sae = miniature / "random_sae"
    given: dict[str, Any] = {"twin": {"sae": sae}, "few": {"sae": sae, "top": 2}}
    cost = {}
    for name, dictionaries in (("with", given), ("without", {})):
        case = opened_from(config_with(miniature, dictionaries), tmp_path)
        (rates,) = [c for c in case_costs(case) if c.stage == "rude.rates.away"]
        cost[name] = rates.exact / len(case.prompts("effects"))
    signs = 2  # the fixed one and the gradient's
    assert cost["with"] - cost["without"] == signs * (6 + 2)


def test_dictionaries_of_a_case_leave_the_stages_of_others_alone(
    miniature: Path, tmp_path: Path
) -> None:
    keys = {}
    for name, given in (
        ("before", {}),
        ("named", {"twin": {"sae": miniature / "sae"}}),
    ):
        made = config(miniature)
        add_dictionaries(made, given)
        runtime = runtime_in(tmp_path)
        keys[name] = stage_keys(opening.open_study(made.to_dict(), runtime).stages)
    before, named = keys["before"], keys["named"]
    changed = {stage for stage in before if named[stage] != before[stage]}
    assert "rude.select" in changed
    assert not [stage for stage in changed if stage.startswith("kind.")]


# ---- a whole study -------------------------------------------------------------------


def dictionaries(miniature: Path, folder: Path) -> dict[str, Any]:
    """The study's own SAE once more, and a crosscoder with the planted direction."""
    return {
        "twin": {"sae": str(miniature / "random_sae")},
        "cross": {"sae": str(folder / "crosscoder"), "top": 3},
    }


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """The folder of a finished study with two further dictionaries, `studied`, of what
    it selected without them, `before`, and of a crosscoder.
    """
    folder = tmp_path_factory.mktemp("further")
    write_crosscoder(folder / "crosscoder", planted_row(miniature))
    workdir = folder / "studied"
    with quick_compile():
        run(sampled_config(miniature, {}), workdir, until="select")
        shutil.copytree(workdir, folder / "before")
        given = dictionaries(miniature, folder)
        run(sampled_config(miniature, given), workdir, allow_change=True)
    return folder


def sampled_config(
    miniature: Path, dictionaries: dict[str, Any], **changes: Any
) -> ConfigDict:
    """A study by samples and a judge of words."""
    made = config(miniature, ("rude",), gradient_signed=False, **changes)
    add_dictionaries(made, dictionaries)
    return made


def row_of(workdir: Path, latent: str) -> dict[str, str]:
    rows = _demo.table(workdir / "rude/latents.csv")
    (row,) = [row for row in rows if row["latent"] == latent]
    return row


# Of the SAE's latents alone: what ordinary text, statistics over prompts and its own
# ranking say of them.
ONLY_OF_SAE = {
    *("latent", "methods", "delta_norm", "se", "firing_rate", "dense"),
    *("fires_on_pairs", "exact", "rank_user_only", "delta_code"),
}


@pytest.mark.slow
def test_the_same_sae_once_more_has_the_rows_of_the_sae(further: Path) -> None:
    rows = _demo.table(further / "studied/rude/latents.csv")
    of_sae = [r for r in rows if "delta_attribution" in r["methods"].split()]
    assert len(of_sae) == 6
    for row in of_sae:
        twin = row_of(further / "studied", f"twin:{row['latent']}")
        assert twin["methods"] == "twin"
        for column in row.keys() - ONLY_OF_SAE:
            assert twin[column] == row[column], column


@pytest.mark.slow
def test_a_planted_direction_of_another_dictionary_leaves_the_random_band(
    further: Path,
) -> None:
    row = row_of(further / "studied", f"cross:{OWN}")
    assert row["methods"] == "cross"
    assert float(row["delta_norm"]) == 1
    assert row["outside"] == "true"
    same = row_of(further / "studied", str(planted.PLANTED))
    assert float(row["away"]) == pytest.approx(float(same["away"]), abs=1e-4)
    # The others' rows are equally long in both models: the first of them.
    for number in range(2):
        other = row_of(further / "studied", f"cross:{number}")
        assert float(other["delta_norm"]) == 0.5
        assert abs(float(other["away"])) < abs(float(row["away"]))
    result = json.loads((further / "studied/result.json").read_text())["cases"]["rude"]
    counts = {(c["method"], c["direction"]): c["outside"] for c in result["counts"]}
    assert counts["cross", "away"] >= 1
    assert "Δ_norm" in result["facts"]["dictionary cross"]
    page = (further / "studied/report.html").read_text("utf-8")
    assert f'data-latent="cross:{OWN}"' in page


@pytest.mark.slow
def test_further_dictionaries_change_nothing_of_the_other_methods(
    further: Path, miniature: Path
) -> None:
    selected = {}
    for name, given in (("before", {}), ("studied", dictionaries(miniature, further))):
        case = opened_from(sampled_config(miniature, given), further / name)
        stored = stored_results(case.runtime.store, study_stages([case]))
        selected[name] = stored["rude.select"].arrays
    for name, latents in selected["before"].items():
        if name.startswith("method."):
            np.testing.assert_array_equal(selected["studied"][name], latents)
    fresh = selected["studied"].keys() - selected["before"].keys()
    assert fresh == {"method.twin", "method.cross"}


@pytest.mark.slow
def test_an_exported_sweep_names_further_latents(
    further: Path, miniature: Path, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(further / "studied", tmp_path / "exported"))
    given = dictionaries(miniature, further)
    made = sampled_config(miniature, given, sweeps_by="export")
    with pytest.raises(InputAwaited):
        run(made, workdir, allow_change=True)
    (sweep, *_) = sorted((workdir / "sweeps").iterdir())
    lines = (sweep / "rows.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    steered = [row for row in rows if row["arm"].startswith(f"latent cross:{OWN},")]
    vectors = load_file(sweep / "vectors.safetensors")
    u_d = planted_row(miniature)
    for row in steered:
        np.testing.assert_allclose(vectors[row["edits"][0]["vector"]], u_d, atol=1e-6)
    assert {row["strength"] for row in steered} == {-0.5, -1.0}
