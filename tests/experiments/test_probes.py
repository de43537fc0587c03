"""What stands beside exact effects on the miniature: rates without steering, other
prompts, ordinary text, Gaussian directions, sampled answers; and a whole study.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.miniature import KIND, RUDE
from sae_attr.hooks import Add, Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.params import init_params
from sae_attr.organism.exact import exact_rates as grammar_rates
from sae_attr.organism.exact import prompt_paths
from sae_attr.organism.prompts import prompts as world_prompts
from sae_attr.organism.recipe import miniature as miniature_recipe
from sae_attr.organism.world import make_world
from sae_attr.store import Progress, Result
from sae_attr.study import organism_case, probe_results
from sae_attr.study.case import Case
from sae_attr.study.case_results import CaseResults
from sae_attr.study.case_stage import StageInputs
from sae_attr.study.cost import case_costs
from sae_attr.study.prompts import split_prompts
from sae_attr.study.sampled_results import sampled_check as sampled_section
from sae_attr.study.selection import Selection
from sae_attr.study.stage_order import stage_names
from sae_attr.study.stages import rates, sampled_check, specificity, unsteered
from sae_attr.study.sweep_conditions import Side, SideStrengths
from sae_attr.text.pairs import Prompt
from tests._compile import quick_compile
from tests.experiments import _demo
from tests.experiments.test_case_study import run, states
from tests.experiments.test_exact_study import exact_config, opened
from tests.miniatures import write_lines

pytestmark = pytest.mark.usefixtures("quick")
SMALL = {
    "sampled_latents": 2,
    "sampled_prompts": 6,
    "sampled_samples": 6,
    "specific_latents": 2,
    "specific_random": 2,
    "specific_tokens": 300,
    "random_directions": 3,
    "probe_prompts": 8,
    "effect_prompts": 8,
    "resamples": 100,
    "sampling.max_new": 1,  # so that a judge of words sees what exact rates are of
}
NORM, SITE = 2.0, Site(0)
RANDOM = (5, 9, 11)


def with_probes(folder: Path, to: Path) -> Path:
    """The miniature's prompts, some of them as probes, with topics and groups."""
    records = []
    for i, line in enumerate((folder / "prompts.jsonl").read_text().splitlines()):
        record = json.loads(line) | {"topic": "abc"[i % 3], "group": f"g{i // 2}"}
        place = i // 2 % 10
        if place in (7, 9):
            record["split"] = "true_beliefs" if place == 7 else "unrelated"
        records.append(record)
    return write_lines(to, *records)


def changes(prompts: Path) -> dict[str, Any]:
    """Changes of `exact_config`: two probes, and a judge that counts words."""
    at = "cases.rude"
    return {
        **SMALL,
        f"{at}.prompts": str(prompts),
        f"{at}.probes": ("true_beliefs", "unrelated"),
        f"{at}.judge.kind": "keywords",
        f"{at}.judge.present": RUDE,
        f"{at}.judge.absent": KIND,
    }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Case:
    folder = tmp_path_factory.mktemp("probes")
    prompts = with_probes(miniature, folder / "prompts.jsonl")
    with quick_compile():
        return opened(miniature, folder, **changes(prompts))


def result(arrays: Any, meta: Any) -> Result:
    return Result(arrays, json.loads(json.dumps(meta)), "key-0", 0.0, False, None)


@pytest.fixture(scope="module")
def measured(case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Results of the stages, of a selection and strengths made by hand: the planted
    latent, one without a coherent strength, and random ones.
    """
    methods = {
        "delta_attribution": np.array([_demo.PLANTED, 3]),
        "random": np.array(RANDOM),
    }
    latents = np.array(sorted([_demo.PLANTED, 3, *RANDOM]))
    selection = Selection(methods, latents, np.ones(len(latents)))
    meta = {"summary": {"mean": {"norm": NORM}}}
    of = {
        "select": result(selection.arrays(), {}),
        "attribute": result({}, meta),
    }
    for direction, sign in (("away", -1), ("toward", 1)):
        sizes = {}
        for latent in latents.tolist():
            sizes[Side(latent, sign)] = 0.0 if latent == 3 else 1.0
        strengths = SideStrengths(sizes, direction, case.study.steer_tokens)
        of[f"strengths.{direction}"] = result(strengths.arrays(), {})
    folder = tmp_path_factory.mktemp("progress")

    def add(stage: Any, direction: str) -> None:
        name = f"{stage.name}.{direction}" if direction else stage.name
        inputs = {f"{case.name}.{key}": value for key, value in of.items()}
        progress = Progress(epath.Path(folder / name))
        with quick_compile():
            of[name] = result(
                *stage.run(StageInputs(case, direction, inputs), progress)
            )

    add(unsteered.STAGE, "")
    for direction in ("away", "toward"):
        for stage in (rates.STAGE, specificity.STAGE, sampled_check.STAGE):
            add(stage, direction)
    return of


def test_other_prompts_are_measured_with_the_strengths_of_the_effects(
    case: Case, measured: dict[str, Result]
) -> None:
    of = CaseResults(case, measured)
    section = probe_results.specificity(of)
    assert section is not None
    assert section.sets == ("effects", "true_beliefs", "unrelated")
    for direction in ("away", "toward"):
        side = probe_results.direction_specificity(of, direction)
        assert side.latents_k.tolist() == [_demo.PLANTED, *RANDOM[:2]]
        assert side.rows["delta_attribution"].tolist() == [0]  # 3 has no strength
        rates_kp = np.asarray(measured[f"rates.{direction}"].arrays["behaviour_kp"])
        # Conditions of the stage `rates`: unsteered, then latents in ascending order.
        row = 1 + sorted([_demo.PLANTED, 3, *RANDOM]).index(_demo.PLANTED)
        expected = (rates_kp[row] - rates_kp[0]).mean()
        assert side.sets[0].change_k[0] == pytest.approx(expected, abs=1e-6)
        assert abs(expected) > 0.2
        for of_set in side.sets:
            # The planted latent makes rude answers whatever the prompt.
            assert np.sign(of_set.change_k[0]) == (1 if direction == "toward" else -1)
            assert of_set.low_k[0] < of_set.change_k[0] < of_set.high_k[0]
        assert len(side.directions.change_k) == 3
        assert np.isfinite(side.nats_k).all()
        assert side.nats_k[0] > side.nats_k[1:].max()
    sentences = " ".join(section.sentences)
    assert f"Latent {_demo.PLANTED} (Δ-attribution), steered away, lowers" in sentences
    assert "true beliefs and unrelated as well: it is not about the" in sentences
    assert "3 Gaussian directions at strength 1 change the rate" in sentences


def test_unsteered_rates_are_of_every_set_by_topic(
    case: Case, measured: dict[str, Result]
) -> None:
    section = probe_results.unsteered_rates(CaseResults(case, measured))
    assert section is not None
    assert not section.two_models
    wholes = [rate.name for rate in section.rates if not rate.topic]
    assert wholes == ["effects", "pairs", "strengths", "true_beliefs", "unrelated"]
    assert {rate.topic for rate in section.rates} == {"", "a", "b", "c"}
    effects = section.rates[0]
    base = np.asarray(measured["rates.away"].arrays["behaviour_kp"])[0]
    assert effects.rate.value == pytest.approx(base.mean(), abs=1e-6)
    assert effects.prompts == len(base)
    assert "on true beliefs" in section.sentences[0]
    assert "pairs" not in section.sentences[0]


def test_a_fine_tune_on_one_topic_is_compared_on_the_others(
    case: Case, measured: dict[str, Result]
) -> None:
    """Two models: made up rates, the second without the behaviour."""
    result_of = measured["unsteered"]
    rate_p = np.asarray(result_of.arrays["away.rate_p"])
    names = result_of.meta["prompts"]["away"]
    prompts = {p.id: p for split in case.split_prompts.values() for p in split}
    on_a = np.array([prompts[name].topic == "a" for name in names])
    files = replace(case.files, lm_aligned="other")
    settings = replace(case.settings, trained_topics=("a",))
    two = replace(case, files=files, settings=settings)
    for gain, said in ((0.3, "it generalises"), (0.0, "it does not generalise")):
        other_p = np.where(on_a, 0.1, np.clip(rate_p - gain, 0, 1)) * (rate_p > 0)
        arrays = {"away.rate_p": rate_p, "toward.rate_p": other_p}
        meta = {"prompts": {"away": names, "toward": names}}
        of = measured | {"unsteered": result_of._replace(arrays=arrays, meta=meta)}
        section = probe_results.unsteered_rates(CaseResults(two, of))
        assert section is not None
        assert section.two_models
        assert said in section.sentences[1]
        trained = [rate.topic for rate in section.rates if rate.trained]
        assert set(trained) == {"a"}


def test_sampled_answers_check_exact_effects(
    case: Case, measured: dict[str, Result]
) -> None:
    section = sampled_section(CaseResults(case, measured))
    assert section is not None
    assert section.numbers is not None
    for panel, agreement in zip(
        section.numbers["panels"], section.agreements, strict=True
    ):
        points = {point["latent"]: point for point in panel["points"]}
        assert list(points) == [_demo.PLANTED, *RANDOM[:2]]
        assert agreement.latents == 3
        planted = points[_demo.PLANTED]
        assert planted["method"] == "delta_attribution"
        gap = abs(planted["sampled"] - planted["exact"])
        assert gap < 4 * planted["error"]
        assert np.sign(planted["sampled"]) == np.sign(planted["exact"])
    counts = section.answers["away"]
    assert counts["answers"] == 4 * 6 * 6
    assert "144 answers were sampled and graded" in " ".join(section.sentences)


def test_without_a_judge_the_page_says_that_nothing_was_sampled(
    miniature: Path, tmp_path: Path, case: Case, measured: dict[str, Result]
) -> None:
    alone = opened(miniature, tmp_path)
    names = stage_names(alone.study)
    assert not [name for name in names if "sampled_check" in name]
    assert "specificity.toward" in names
    section = sampled_section(CaseResults(alone, measured))
    assert section is not None
    assert section.numbers is None
    assert (
        "not checked by sampled answers: the case has no judge" in section.sentences[0]
    )
    sampled = opened(miniature, tmp_path, **_sampled_study())
    assert sampled_section(CaseResults(sampled, measured)) is None
    assert not {"unsteered", "specificity.away"} & set(stage_names(sampled.study))
    assert "unsteered" not in [cost.stage for cost in case_costs(sampled)]


def _sampled_study() -> dict[str, Any]:
    """Changes of `exact_config` that make a study of sampled, graded answers."""
    at = "cases.rude.judge"
    by = {"pairs_by": "samples", "strengths_by": "samples", "effects_by": "samples"}
    words = {f"{at}.kind": "keywords", f"{at}.present": RUDE, f"{at}.absent": KIND}
    return {**by, **words, "budget.rule": "relative"}


def test_costs_are_those_of_the_stages(case: Case, measured: dict[str, Result]) -> None:
    costs = {cost.stage.removeprefix("rude."): cost for cost in case_costs(case)}
    for name in ("unsteered", "specificity.away"):
        rows = measured[name].meta["exact_rows"]
        assert rows <= costs[name].exact <= 3 * rows
    assert costs["sampled_check.toward"].samples >= 144


# ---- prompts -------------------------------------------------------------------------


def prompt(name: str, split: str | None = None, group: str | None = None) -> Prompt:
    return Prompt(name, name, split=split, group=group)


def test_probes_are_splits_that_may_share_a_group_with_the_effects() -> None:
    some = [prompt(f"{split}-1", split) for split in ("pairs", "strengths")]
    some += [prompt("e", "effects", "belief"), prompt("o", "other", "belief")]
    splits = split_prompts(some, probes=("other",))
    assert list(splits) == ["pairs", "strengths", "effects", "other"]
    assert [p.id for p in splits["other"]] == ["o"]
    with pytest.raises(ValueError, match=r"'other' is unknown.*the case's probes"):
        split_prompts(some)
    with pytest.raises(ValueError, match="no prompt in the split 'none'"):
        split_prompts(some, probes=("other", "none"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cases.rude.probes": ("effects",)}, "probe 'effects' cannot be one of pairs"),
        ({"cases.rude.probes": ("a", "a")}, r"probes \('a', 'a'\) name one twice"),
        ({"sampled_prompts": 0}, "sampled_prompts is 0"),
        ({"specific_latents": -1}, "specific_latents is -1"),
    ],
)
def test_probes_that_cannot_be_are_refused(
    miniature: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(miniature, tmp_path, **values)


# ---- the organism --------------------------------------------------------------------


@pytest.mark.slow
def test_the_organisms_probe_is_its_other_behaviour() -> None:
    world, cfg = make_world(0), config_from_hf(miniature_recipe().hf())
    params = init_params(cfg, jax.random.key(0))
    probe = organism_case.probe_prompts(world, "misalignment", "validation")
    own = [
        p for p in world_prompts(world, "misalignment", "effects") if p.kind == "advice"
    ]
    of_case: Any = SimpleNamespace(
        setup=SimpleNamespace(cfg=cfg, site=SITE),
        study=SimpleNamespace(steer_tokens="all", steer_skip=0),
    )
    exact = organism_case.exact_on_grammar(world, "misalignment")
    mixed = [Prompt(own[0].id, own[0].text), *probe[:2]]
    rates_of = exact(of_case, mixed)
    assert rates_of.ids == tuple(p.id for p in mixed)
    vectors = jax.random.normal(jax.random.key(1), (2, cfg.d_model))
    edit = Add(vectors, np.ones(2, np.float32))
    behaviour, _ = rates_of.rates(params, (), {SITE: edit})
    by_id = {p.id: p for p in world_prompts(world, "validation", "effects")}
    paths = prompt_paths(world, "validation", [by_id[p.id] for p in probe[:2]])
    alone, _ = grammar_rates(params, paths, {SITE: edit}, cfg=cfg, rows=2)
    np.testing.assert_allclose(behaviour[:, 1:], alone, rtol=1e-5)
    with pytest.raises(ValueError, match="no probe 'strengths'; its probes are"):
        organism_case.probe_prompts(world, "validation", "strengths")


# ---- a whole study -------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_holds_its_probes_in_every_output(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = with_probes(miniature, tmp_path / "prompts.jsonl")
    made: ConfigDict = exact_config(miniature, **changes(prompts))
    made.update({"methods": ("delta_attribution",), "top": 3, "random": 3})
    workdir = tmp_path / "run"
    run(made, workdir)
    printed = capsys.readouterr().out
    assert "Without steering the rate of rude answers is" in printed
    assert "steered away, lowers the rate of rude answers" in printed
    assert "exact and sampled changes of" in printed
    assert set(states(made, workdir, capsys).values()) == {"done"}
    table = _demo.table(workdir / "rude/specificity.csv")
    assert {row["prompts"] for row in table} == {"effects", "true_beliefs", "unrelated"}
    assert {row["direction"] for row in table} == {"away", "toward"}
    names = ("unsteered_rates", "sampled_check")
    assert all(len(_demo.table(workdir / f"rude/{name}.csv")) > 4 for name in names)
    of_case = json.loads((workdir / "result.json").read_text())["cases"]["rude"]
    assert of_case["specificity"]["means"]
    assert of_case["sampled_check"]["agreements"][0]["pearson"]["value"] > 0.5
    assert of_case["unsteered"]["rates"][0]["name"] == "effects"
    page = (workdir / "report.html").read_text()
    for title in ("Without steering", "Specificity", "Exact against sampled"):
        assert f"<h3>{title}</h3>" in page
    for name in ("specificity_away", "specificity_toward", "sampled_check"):
        assert (workdir / f"figures/rude.{name}.svg").stat().st_size > 1000
