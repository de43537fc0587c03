"""Studies measured by the probabilities of texts, on the miniature: against sampled
answers, what is refused, and a whole study without sampling or a judge.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.miniature import KIND, RUDE
from sae_attr.hooks import SetProjection
from sae_attr.parallel import make_mesh
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.store import Progress, Store
from sae_attr.study import case_study as opening
from sae_attr.study.case import Case, Runtime
from sae_attr.study.case_checks import check_case
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.exact_rates import exact_rates, unsteered_state
from tests._compile import quick_compile
from tests.experiments import _demo
from tests.experiments.test_case_study import config, run, states

pytestmark = pytest.mark.usefixtures("quick")
WORDS = {
    "present": tuple(f" {w}" for w in RUDE),
    "absent": tuple(f" {w}" for w in KIND),
}
EXACT = {
    "pairs_by": "continuations",
    "strengths_by": "exact",
    "effects_by": "exact",
    "budget.rule": "proportional",
    "budget.points": 0.5,
}


def exact_config(folder: Path, **changes: Any) -> ConfigDict:
    """The miniature's study of rudeness by the first word of an answer."""
    made = config(folder, ("rude",))
    made.cases.rude.continuations.update(WORDS)
    made.cases.rude.judge.update({"kind": "none", "present": None, "absent": None})
    made.update_from_flattened_dict({**EXACT, **changes})
    return made


def opened(folder: Path, workdir: Path, **changes: Any) -> Case:
    return opened_from(exact_config(folder, **changes), workdir)


def opened_from(made: ConfigDict, workdir: Path) -> Case:
    """The first case of a config's study."""
    runtime = Runtime(
        Store(workdir / "store"),
        epath.Path(workdir),
        make_mesh("data=1"),
        batch_size=48,
        progress=False,
    )
    return opening.open_study(made.to_dict(), runtime).cases[0]


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(epath.Path(tmp_path / "progress"))


# ---- against samples -----------------------------------------------------------------


def test_exact_rates_are_those_of_sampled_answers_within_their_error(
    miniature: Path, tmp_path: Path, progress: Progress
) -> None:
    """The same conditions, prompts, strengths, scope and skipped tokens, first words
    counted in samples and read from probabilities.
    """
    changes = {"sampling.max_new": 1, "effect_prompts": 4, "steer_skip": 1}
    case = opened(miniature, tmp_path, **changes)
    toward = Condition.steered(_demo.PLANTED, 1.0)
    conditions, samples = (UNSTEERED, toward), 48
    sweep = CaseSweep(case, "away", "effects", conditions, 2.0, samples)
    rates = sweep.exact_rates(progress, "rates")
    tokens_rn, _ = sweep.sample(progress, "samples")
    words = [case.text([token]) for token in tokens_rn[:, 0]]
    for side, sign in ((RUDE, 1), (KIND, -1)):
        said_kps = np.isin(words, side).reshape(2, 4, samples)
        share_kp = rates.behaviour_kp if sign > 0 else 1 - rates.behaviour_kp
        exact_kp = share_kp * rates.coherence_kp
        error_k = np.sqrt((exact_kp * (1 - exact_kp) / samples).sum(1)) / 4
        z_k = (said_kps.mean((1, 2)) - exact_kp.mean(1)) / error_k
        assert np.abs(z_k).max() < 3.5
    assert rates.behaviour_kp[1].mean() > rates.behaviour_kp[0].mean() + 0.2


def test_any_edit_and_any_batch_size_and_what_was_finished_is_not_run_again(
    miniature: Path, tmp_path: Path, progress: Progress
) -> None:
    case = opened(miniature, tmp_path)
    prompts = case.prompts("effects")[:5]
    rng = np.random.default_rng(0)
    units_kd = rng.standard_normal((7, case.setup.cfg.d_model)).astype(np.float32)
    units_kd /= np.linalg.norm(units_kd, axis=1, keepdims=True)
    edits = SetProjection(units_kd, np.zeros(7, np.float32))
    whole = exact_rates(case, "away", prompts, edits, progress, name="ablate")
    assert whole.prompts == tuple(prompt.id for prompt in prompts)
    assert whole.behaviour_kp.shape == whole.coherence_kp.shape == (7, 5)
    small = replace(case, runtime=replace(case.runtime, batch_size=3))
    parts = exact_rates(small, "away", prompts, edits, progress, name="ablate")
    np.testing.assert_allclose(parts.behaviour_kp, whole.behaviour_kp, atol=1e-6)
    # A third run only reads: another edit of the same name and shape changes nothing.
    other = SetProjection(-3 * units_kd, np.ones(7, np.float32))
    read = exact_rates(small, "away", prompts, other, progress, name="ablate")
    np.testing.assert_array_equal(read.behaviour_kp, parts.behaviour_kp)


# ---- what is refused -----------------------------------------------------------------

WHERE = "cases.rude.continuations"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{WHERE}.absent": ()}, r"no text 'absent'.*continuations\.absent=TEXTS"),
        (
            {f"{WHERE}.absent": (" kind", " fool")},
            r"prompt 'q\d+': of the texts ' fool' \(present\) and ' fool' \(absent\)",
        ),
        (
            {f"{WHERE}.absent": (" fool dear",)},
            r"' fool' \(present\) and ' fool dear' \(absent\) one begins with all",
        ),
        ({f"{WHERE}.absent": ("",)}, r"continuations\.absent has ''; give texts"),
        (
            {f"{WHERE}.absent": (1,)},
            r"continuations\.absent has 1; give texts, in quotes",
        ),
        ({f"{WHERE}.measure": "odds"}, "measure 'odds' is unknown"),
        ({f"{WHERE}.least_mass": 1.5}, "least_mass 1.5 is a probability"),
        (
            {"effects_by": "samples"},
            "judge.kind=none, but effects_by=samples are graded",
        ),
        ({"pairs_by": "texts"}, "pairs_by 'texts' is unknown"),
        ({"steer_skip": -1}, "steer_skip is -1"),
        (
            {"cases.rude.organism": "validation"},
            "pairs_by=continuations, but case rude is the organism's",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(
    miniature: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(miniature, tmp_path, **changes)
    assert not (tmp_path / "store").exists()


def test_texts_without_probability_name_what_the_model_says_instead(
    miniature: Path, tmp_path: Path
) -> None:
    unlikely = {"present": (" the", " queen"), "absent": (" old",)}
    changes = {f"{WHERE}.{side}": texts for side, texts in unlikely.items()}
    case = opened(miniature, tmp_path, **{f"{WHERE}.least_mass": 0.2}, **changes)
    check_case(case)
    message = (
        r"case rude: the texts \[' the', ' queen'\] \(present\) and \[' old'\].*have "
        r"\d\.\d % of the probability .*After prompt 'q\d+' the model says '\w+' \d+\.\d %, '"
    )
    with pytest.raises(ValueError, match=message):
        unsteered_state(case, "away", case.prompts("effects"))


def test_single_prompts_without_probability_are_left_out_and_counted(
    miniature: Path, tmp_path: Path, progress: Progress
) -> None:
    case = opened(miniature, tmp_path, **{f"{WHERE}.least_mass": 0.02})
    first, second = case.prompts("effects")[:2]
    prompts = (
        first,
        replace(second, present=(" the the the the",), absent=(" of of of",)),
    )
    sweep = CaseSweep(case, "away", "effects", (UNSTEERED,), 1.0, 1)
    zero = SetProjection(np.zeros((1, case.setup.cfg.d_model), np.float32), np.zeros(1))
    rates = exact_rates(case, "away", prompts, zero, progress, name="some")
    assert rates.facts["left_out"] == [second.id]
    assert rates.prompts == (first.id,)
    whole = sweep.exact_rates(progress, "whole")
    np.testing.assert_allclose(
        rates.behaviour_kp[0, 0], whole.behaviour_kp[0, 0], atol=1e-6
    )


# ---- a whole study -------------------------------------------------------------------


@pytest.fixture(scope="session")
def exact_studied(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Path:
    """The workdir of a finished study."""
    workdir = tmp_path_factory.mktemp("exact") / "studied"
    with quick_compile():
        run(exact_config(miniature), workdir)
    return workdir


@pytest.mark.slow
def test_a_study_finds_the_planted_latent_without_sampling_or_a_judge(
    exact_studied: Path, miniature: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _demo.table(exact_studied / "rude" / "latents.csv")
    assert int(table[0]["latent"]) == _demo.PLANTED
    assert float(table[0]["away"]) < -0.3
    assert float(table[0]["toward"]) > 0.3
    result = json.loads((exact_studied / "result.json").read_text())
    facts = result["cases"]["rude"]["facts"]
    assert facts["effects"] == "by exact probabilities, nothing sampled"
    assert facts["coherence"] == "by exact probabilities"
    assert not {"judge", "missing answers", "rate in sampled answers"} & set(facts)
    assert result["cost"].pop("exact rows") > 400
    assert not any(result["cost"].values())
    # Without the latent the model is less rude; none of the others did a quarter as much.
    #   It acts on few of the prompts, which limits what sign flips over them can tell.
    ablated = [float(row["ablated"]) for row in table]
    assert ablated[0] < -0.05
    assert min(ablated[1:]) > ablated[0] / 4
    assert 0 < float(table[0]["ablated_q"]) < 0.5
    assert result["cases"]["rude"]["ablated"][0]["method"] == "delta_attribution"
    assert (exact_studied / "figures/rude.effects_of_ablation.svg").exists()
    plane = json.loads((exact_studied / "figures/rude.plane.json").read_text())
    assert plane["effects"] == ["steering", "ablation"]
    page = (exact_studied / "report.html").read_text()
    assert "no completions were sampled" in page
    stages = states(exact_config(miniature), exact_studied, capsys)
    assert set(stages.values()) == {"done"}
    kinds = {name.split(".")[1] for name in stages}
    assert "rates" in kinds
    assert not kinds & {"sample", "grade", "steer", "judge"}


@pytest.mark.slow
def test_a_second_run_of_an_exact_study_computes_nothing(
    exact_studied: Path, miniature: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exact_studied / "result.json").read_text()
    run(exact_config(miniature), exact_studied)
    assert "condition/s" not in capsys.readouterr().err
    assert (exact_studied / "result.json").read_text() == before
    other = exact_config(miniature, **{f"{WHERE}.present": WORDS["present"][1:]})
    missing = states(other, exact_studied, capsys)
    changed = {name for name, state in missing.items() if state != "done"}
    assert {"rude.pair", "rude.strengths.away", "rude.rates.toward"} <= changed
    assert "rude.mean_activation" not in changed
