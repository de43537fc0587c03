"""What the code cites of the documentation is there, and links lead somewhere."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
METHOD = (
    "The score",
    "The moment",
    "Presets and sign gating",
    "Mean activation and masks",
    "Baselines",
    "Ablation and approximations",
    "Steering",
    "Screening",
    "Strengths and coherence",
    "Effects and the random band",
    "Judges",
    "Ground truth",
)
PROGRAMS = ("sae_attr", "experiments", "configs", "benchmarks", "tests")
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
CITED = re.compile(r"\(docs/(\w+)\.md, ([^)]+)\)")


def headings(page: Path) -> list[str]:
    """The titles of a page's sections."""
    return re.findall(r"^#{2,3} (.+)$", page.read_text("utf-8"), re.MULTILINE)


def one_line(source: str) -> str:
    """Source text without line breaks, comment marks and joints of strings."""
    return re.sub(r'\s*\n\s*(# )?|"\s*\n\s*f?"', " ", source)


def test_the_method_has_the_sections_that_docstrings_cite() -> None:
    assert tuple(headings(REPO / "docs/method.md")) == METHOD


def test_every_cited_section_exists() -> None:
    absent = []
    for folder in PROGRAMS:
        for path in sorted((REPO / folder).rglob("*.py")):
            for page, titles in CITED.findall(one_line(path.read_text("utf-8"))):
                cited = REPO / f"docs/{page}.md"
                there = headings(cited) if cited.exists() else []
                for title in titles.split("; "):
                    if title not in there:
                        absent.append(f"{path.relative_to(REPO)}: {page}, {title}")
    assert absent == []


def test_nothing_cites_pages_that_are_not_here() -> None:
    elsewhere = re.compile(r"\((?:method, section|design:)")
    citing = []
    for folder in PROGRAMS:
        for path in sorted((REPO / folder).rglob("*.py")):
            if elsewhere.search(one_line(path.read_text("utf-8"))):
                citing.append(str(path.relative_to(REPO)))
    assert citing == []


def anchor(heading: str) -> str:
    """The anchor that a heading has on a rendered page."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(
        r"\]\(([^)#:\s]*(?:#[^)\s]+)?)\)", page.read_text("utf-8")
    ):
        name, _, section = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if section:
            assert section in [anchor(title) for title in headings(file)], target


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text("utf-8").splitlines()) < 150


SEVEN = (
    "sae_attr/hooks.py",
    "sae_attr/lm/block.py",
    "sae_attr/lm/model.py",
    "sae_attr/attribution/gradients.py",
    "sae_attr/attribution/scores.py",
    "sae_attr/steering/steered.py",
    "experiments/steer.py",
)


def test_the_seven_files_to_read_first_are_named_and_short() -> None:
    section = (REPO / "README.md").read_text("utf-8").split("## Read these seven")[1]
    named = re.findall(r"\]\(([^)]+\.py)\)", section.split("\n## ")[0])
    assert tuple(named) == SEVEN
    lines = [len((REPO / name).read_text("utf-8").splitlines()) for name in SEVEN]
    assert sum(lines) <= 1400, dict(zip(SEVEN, lines, strict=True))
