"""The sections on other prompts: sentences follow from their numbers, figures hold what
was given, and no name becomes markup.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from xml.etree import ElementTree

import numpy as np
import pytest

from sae_attr.comparison_records import Estimate, SampledAgreement
from sae_attr.report import specificity_sentences as sentences
from sae_attr.report.figures import Drawing, render
from sae_attr.report.figures.output import save
from sae_attr.report.figures.sampled import sampled_figure, sampled_marks
from sae_attr.report.figures.specificity import (
    specificity_figure,
    specificity_marks,
)
from sae_attr.report.page.render import render_page
from sae_attr.report.specificity_sentences import LatentChanges, reach_of
from tests.report import _probes, _sample
from tests.report._probes import around
from tests.report.test_page import Tree

NAN = float("nan")


# ---- sentences -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reach"),
    [
        (around(-0.14), "as well"),
        (around(-0.08), "as well"),
        (around(-0.01), "less"),
        (around(0.1), "less"),  # the other way
        (around(-0.1, 0.2), "unknown"),
        (around(-0.02, 0.3), "unknown"),  # it may be the whole effect
        (Estimate(-0.14), "unknown"),  # of one group of prompts
    ],
)
def test_how_far_an_effect_reaches(change: Estimate, reach: str) -> None:
    assert reach_of(around(-0.15), change) == reach


def test_a_latent_that_moves_everything_is_not_about_the_behaviour() -> None:
    changes = {"effects": around(-0.15), "true_beliefs": around(-0.14)}
    latent = LatentChanges(1201, "delta_attribution", "away", changes, 0.021)
    text = sentences.latent_sentence(latent, "agreement")
    assert text.startswith(
        "Latent 1201 (Δ-attribution), steered away, lowers the rate of agreement by "
        "15.0 points [−18.0, −12.0], and changes it by −14.0 points"
    )
    assert "true beliefs as well: it is not about the behaviour alone" in text
    assert "+0.021 nats per token more" in text
    spared = replace(latent, changes=changes | {"true_beliefs": around(0.0)})
    text = sentences.latent_sentence(spared, "agreement")
    assert "It moves true beliefs by less than half of that, or not at all." in text
    assert "as well" not in text
    none = replace(latent, changes=changes | {"effects": around(-0.01)}, nats=NAN)
    text = sentences.latent_sentence(none, "agreement")
    assert "no effect on the rate of agreement that can be told from 0" in text
    assert "as well" not in text


def test_a_methods_means_come_with_their_part_of_the_effect() -> None:
    means = _probes.set_means()
    text = sentences.means_sentence("delta_attribution", "away", means, around(0.021))
    assert "the 5 best of Δ-attribution change the rate by −14.2 points" in text
    assert "−13.1 points [−16.1, −10.1] on true beliefs (92 % of it)" in text
    assert text.endswith("and cost +0.021 nats per token of ordinary text.")
    random = sentences.means_sentence("random", "toward", means)
    assert "the 5 random latents change the rate by +2.0 points" in random
    assert "% of it" not in random
    assert not sentences.means_sentence("gradient", "away", means)
    without = [replace(mean, latents=0) for mean in means]
    assert not sentences.means_sentence("delta_attribution", "away", without)


def test_random_latents_beside_any_direction() -> None:
    alike = sentences.control_sentence(_probes.control(p=0.4))
    assert "p = 0.40): random latents cannot be told from any direction." in alike
    other = sentences.control_sentence(_probes.control(p=0.001))
    assert "random latents are not like any direction" in other
    nobody = replace(_probes.control(), directions=0)
    assert not sentences.control_sentence(nobody)


def test_agreement_stands_beside_what_sampling_alone_would_do() -> None:
    text = sentences.agreement_sentence(_probes.agreement())
    assert "15 latents agree with Pearson +0.93 [+0.90, +0.96]" in text
    assert "by 4.1 points on average [3.1, 5.1]; sampling alone would make it" in text
    assert "3.8 (binomial standard error 4.8)" in text
    none = Estimate()
    empty = SampledAgreement("away", 0, none, none, none, none, NAN, NAN)
    assert "could not be graded" in sentences.agreement_sentence(empty)


def test_a_model_that_says_yes_to_everything_is_named() -> None:
    rates = [_probes.topic_rate("effects", "", 0.3)]
    rates += [_probes.topic_rate("effects", "art", 0.7)]
    rates += [_probes.topic_rate("true_beliefs", "", 0.28)]
    rates += [_probes.topic_rate("unrelated", "", 0.7)]
    text = sentences.rates_sentence(rates, "agreement")
    assert text == (
        "Without steering the rate of agreement is 50.0 % [47.0, 53.0] on the study's "
        "prompts, 48.0 % [45.0, 51.0] on true beliefs and 90.0 % [87.0, 93.0] on "
        "unrelated. On true beliefs it cannot be told from that on the study's."
    )
    assert not sentences.rates_sentence([], "agreement")


@pytest.mark.parametrize(
    ("trained", "beside", "said"),
    [
        (0.6, 0.4, ": it generalises."),
        (0.6, 0.01, "it does not generalise. What follows is about a model"),
        (0.01, 0.0, "does not raise the behaviour even where it was trained"),
    ],
)
def test_a_fine_tune_that_does_not_generalise_is_said_to(
    trained: float, beside: float, said: str
) -> None:
    text = sentences.generalisation_sentence(
        _probes.topic_rate("", "", trained, trained=True),
        _probes.topic_rate("", "", beside),
        "agreement",
    )
    assert said in text


# ---- figures -------------------------------------------------------------------------


def test_every_latent_that_was_steered_is_in_every_column() -> None:
    numbers = _probes.figure_numbers()
    files = render(Drawing(specificity_figure, numbers))
    again = render(Drawing(specificity_figure, numbers))
    assert files == again
    text = files["svg"].decode()
    marks = specificity_marks(numbers)
    # 22 latents of which one was not steered, a value that is not known; 4 sets, nats.
    assert len(marks) == 21 * (len(_probes.SETS) + 1) - 1
    for gid, mark in marks.items():
        assert f'id="{gid}"' in text
        assert mark.latent is not None
    words = " ".join(ElementTree.fromstring(files["svg"]).itertext())
    for said in ("17.4 % unsteered", "nats per token", "Gaussian directions"):
        assert said in words
    assert "\u202e" not in words
    assert json.loads(files["json"])["rows"][3]["nats"] is None


@pytest.mark.parametrize(("suffix", "dpi"), [("svg", 72), ("png", 150)])
def test_names_of_rows_are_not_cut_off(suffix: str, dpi: int) -> None:
    figure = specificity_figure(_probes.figure_numbers())
    assert save(figure, suffix)
    # Widths of text depend on the resolution.
    figure.set_dpi(dpi)
    names = figure.axes[0].get_tightbbox()
    assert names is not None
    assert names.x0 >= 0


def test_points_of_which_one_change_is_unknown_are_left_out() -> None:
    numbers = _probes.sampled_numbers()
    text = render(Drawing(sampled_figure, numbers))["svg"].decode()
    marks = sampled_marks(numbers)
    assert len(marks) == 2 * 8
    assert all(f'id="{gid}"' in text for gid in marks)
    empty = {"panels": [{**numbers["panels"][0], "points": []}]}
    assert sampled_marks(empty) == {}
    assert render(Drawing(sampled_figure, empty))["svg"]


# ---- page ----------------------------------------------------------------------------


def test_the_page_holds_the_sections_and_no_name_becomes_markup() -> None:
    report = _sample.report(1)
    few = replace(
        report.cases[0],
        effects=_sample.effects_numbers(n=2),
        signed_effects=None,
        ablation=None,
        steered=(),
    )
    report = replace(report, cases=(few,))
    case = replace(
        few,
        unsteered=_probes.unsteered(),
        specificity=_probes.specificity(),
        sampled=_probes.sampled(),
    )
    page = render_page(replace(report, cases=(case,)))
    tree, before = Tree(page), Tree(render_page(report))
    titles = ("Without steering", "Specificity", "Exact against sampled")
    for title in titles:
        assert title in tree.inside("h3")
        assert title not in before.inside("h3")
    for tag in ("script", "img", "iframe", "link", "style", "form"):
        count = [name for name, _ in tree.tags].count(tag)
        assert count == [name for name, _ in before.tags].count(tag), tag
    text = "".join(text for _, text in tree.texts)
    for said in ("−13.1", "· 92 %", "+0.021", "(trained on)", "+60.0"):
        assert said in text
    ids = [dict(attrs).get("id") for _, attrs in tree.tags]
    named = [name for name in ids if name]
    assert len(named) == len(set(named))


def test_records_read_back_what_json_holds() -> None:
    for record in (*_probes.set_means(), _probes.agreement(), _probes.control()):
        values = json.loads(json.dumps(asdict(record)).replace("NaN", "null"))
        again = type(record).load(values)
        np.testing.assert_equal(asdict(again), asdict(record))
