"""The page as a parser sees it: nothing planted becomes markup, and everything that was
given is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest

from sae_attr.report.page import (
    CaseReport,
    PageContents,
    Table,
)
from sae_attr.report.page.escape import plain, script_json
from sae_attr.report.page.render import render_page
from sae_attr.report.safe_text import visible
from tests.report import _sample

VOID = {"meta", "link", "input", "img", "br"}


class Tree(HTMLParser):
    """Every tag with its attributes, and every text with the tags around it; complains
    of tags that do not nest.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data) -> None:
        self.texts.append((tuple(self.open), data))

    def inside(self, tag: str) -> list[str]:
        return [text for around, text in self.texts if around and around[-1] == tag]


@cache
def html() -> str:
    return render_page(_sample.report())


@cache
def tree() -> Tree:
    return Tree(html())


def test_a_token_of_thousands_of_characters_is_cut() -> None:
    report = _sample.report(1)
    case = report.cases[0]
    rows = ({**case.latents.rows[0], "tokens": ("x" * 4000,)}, *case.latents.rows[1:])
    cases = (replace(case, latents=replace(case.latents, rows=rows)),)
    page = render_page(replace(report, cases=cases))
    assert f'<bdi class="token">{"x" * 200}… (4,000 characters)</bdi>' in page
    assert "x" * 201 not in re.sub(
        r'data-order="x+"|<script.*?</script>', "", page, flags=re.DOTALL
    )


def test_planted_markup_is_text_and_only_text() -> None:
    tags = tree().tags
    assert {tag for tag, _ in tags} & {
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "b",
        "img",
    } == set()
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert sum(tag == "style" for tag, _ in tags) == 1
    assert [a for _, attrs in tags for a in attrs if a.startswith("on")] == []
    assert [
        a for _, attrs in tags for a in attrs if a == "style"
    ] == []  # the policy would refuse them
    shown = "".join(
        text
        for around, text in tree().texts
        if around[-1:] not in (("script",), ("style",))
    )
    for text in _sample.HOSTILE:
        assert visible(text) in shown


def test_nothing_points_outside_but_a_link_to_a_page_of_a_latent() -> None:
    links = []
    for tag, attrs in tree().tags:
        if tag == "a" and (attrs.get("href") or "").startswith("https:"):
            links.append(attrs)
            continue
        for name in ("src", "href", "action", "data", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), attrs
    assert "@import" not in html()
    assert "url(" not in html().replace("url(#", "")
    page = "https://www.neuronpedia.org/model/sae/7"
    assert links == 2 * [{"href": page, "rel": "noopener noreferrer"}]  # of two cases


def test_the_policy_allows_this_script_and_style_alone() -> None:
    policy = next(
        a["content"] for t, a in tree().tags if t == "meta" and "http-equiv" in a
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", html(), re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy


def test_text_that_acts_is_named() -> None:
    assert (
        visible("a\u202eb\x00c\n\t\ud800\u2066é\u200d")
        == "a⟨U+202E⟩b⟨U+0000⟩c\n\t⟨U+D800⟩⟨U+2066⟩é\u200d"
    )
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html()
    )
    html().encode()


def test_json_cannot_end_its_element_and_is_json() -> None:
    value = {
        "</script><script>": [
            "<!--",
            np.float32(0.5),
            np.nan,
            np.int64(3),
            np.array([1.0, np.inf]),
            {2},
            None,
        ]
    }
    text = script_json(value)
    assert not set(text) & set("<>&")
    assert json.loads(text) == {
        "</script><script>": ["<!--", 0.5, None, 3, [1.0, None], [2], None]
    }
    latents = json.loads(tree().inside("script")[0])
    assert visible(_sample.HOSTILE[0]) in [
        token for tokens in latents["misalignment"].values() for token in tokens
    ]


def test_every_latent_has_its_row_and_every_measured_point_its_words() -> None:
    case = _sample.report().cases[0]
    rows = [
        a["id"]
        for t, a in tree().tags
        if t == "tr" and (a.get("id") or "").startswith("misalignment-row-")
    ]
    assert rows == [f"misalignment-row-{r['latent']}" for r in case.latents.rows]
    dots = [
        a
        for t, a in tree().tags
        if a.get("class") == "dot" and a.get("data-case") == "misalignment"
    ]
    strips = [
        s
        for n in (case.effects, case.signed_effects)
        if n
        for p in n["panels"]
        for s in p["strips"]
    ]
    named = sum(np.isfinite(s["change"]).sum() for s in strips)
    named += 40 + 2 * 24  # and those of the ablation and of both planes
    assert len(dots) == named
    assert all(a["aria-label"].startswith(f"latent {a['data-latent']}, ") for a in dots)


def test_cells_carry_numbers_to_sort_by_and_nothing_where_they_are_not_known() -> None:
    orders = [
        (a["class"], a["data-order"])
        for t, a in tree().tags
        if t == "td" and "data-order" in a
    ]
    for kind, order in orders:
        if kind in ("integer", "number", "percent", "points") and order:
            assert np.isfinite(float(order))
    assert ("number", "") in orders
    assert ("points", "") in orders


def test_it_says_everything_it_was_given() -> None:
    shown = " ".join("".join(text for _, text in tree().texts).split())
    r = _sample.report()
    for text in (
        r.title,
        r.subtitle,
        *r.findings,
        *r.versions.values(),
        *r.hashes.values(),
        "12.4 s",
        "28,400",
    ):
        assert text in shown, text
    for text in (
        "weighing",
        "0.7",
        "Case 2",
        "REFUSAL",
        "excluded",
        "7 of 256",
        "+53.0 [+44.0, +60.0]",
        "p = 0.002",
    ):
        assert text in shown, text
    assert "nan" not in shown.split()


def test_the_same_report_gives_the_same_text() -> None:
    assert render_page(_sample.report()) == html()


def test_an_empty_study_and_one_with_nothing_measured_still_make_a_page() -> None:
    Tree(render_page(PageContents("Nothing", ())))
    strip = {
        "method": "random",
        "latents": [1],
        "change": [None],
        "low": [None],
        "high": [None],
    }
    panel = {
        "direction": "away",
        "model": "m",
        "base_rate": float("nan"),
        "band": None,
        "prompts": 0,
        "samples": 0,
    }
    case = CaseReport(
        "a",
        "A",
        "x",
        {"behaviour": "x", "panels": [panel | {"strips": [strip]}]},
        Table((), ()),
    )
    made = Tree(render_page(PageContents("One", (case,))))
    assert [a for t, a in made.tags if a.get("class") == "dot"] == []


@pytest.mark.parametrize("name", ["", "1a", 'a"b', "a b"])
def test_ids_are_plain_and_unique(name) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        render_page(PageContents("t", (replace(_sample.case(), id=name),)))
    with pytest.raises(ValueError, match="not unique"):
        render_page(PageContents("t", (_sample.case(), _sample.case())))


def test_plain_keeps_what_json_can_say() -> None:
    assert plain((1, True, "a", None, 0.5, b"x")) == [1, True, "a", None, 0.5, "b'x'"]
