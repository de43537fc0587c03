"""Latents that a reader behind a server describes, on the miniature: what it is asked,
what its tests show, and what is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from configs import miniature as configs
from experiments import case_study
from sae_attr.study.cost import case_costs
from tests.experiments import _demo
from tests.experiments.test_case_study import config, latents, run
from tests.judge._server import Answer, LoopbackServer, completion, serving

MARKUP = "<script>alert(1)</script>"
Run = tuple[Path, LoopbackServer]
READ = {"described": 1, "described_random": 2, "tested": 6, "test_tokens": 2000}


def replies(number: int, request: dict[str, Any]) -> Answer:
    """Describes passages by the word that is marked most often, answers by the word that
    the latent adds most often, and matches by that word.
    """
    content = request["messages"][0]["content"]
    if "DESCRIPTION:" in content:
        marks = re.findall("«(.*?)»", content)
        if not marks:
            plain = " ".join(re.findall("answer as it is: (.*)", content)).split()
            changed = re.findall("feature stronger: (.*)", content)
            marks = [w for w in " ".join(changed).split() if w not in plain]
        word = Counter(marks).most_common(1)[0][0].strip() if marks else "nothing"
        return completion(f"I think.\nDESCRIPTION: **{MARKUP} [{word}]**")
    word = re.findall(r"\[(\w*)\]", content)
    shown = re.split(r"the passage\]|the prompt and its answer\]", content)[1]
    return completion("1" if word and word[0] in shown else "0")


def reading(server: LoopbackServer, miniature: Path, **changes: Any) -> Any:
    made = config(miniature, **READ, **changes)
    reader = {"kind": "openai", "model": "m", "base_url": server.url}
    made.cases.rude.reader.update(reader)  # the other case has none
    return made


@pytest.fixture(scope="module")
def described(
    tmp_path_factory: pytest.TempPathFactory,
    miniature: Path,
    studied: Path,
) -> Iterator[Run]:
    """A finished study whose latents are then described, and the server."""
    workdir = _demo.copied(studied, tmp_path_factory.mktemp("described") / "studied")
    with serving(replies) as server:
        run(reading(server, miniature), workdir, allow_change=True)
        yield workdir, server


def row_of(workdir: Path, latent: int) -> dict[str, Any]:
    rows = json.loads((workdir / "rude/reading.json").read_text())["latents"]
    return next(row for row in rows if row["latent"] == latent)


def test_a_planted_latent_is_described_by_what_it_adds_and_the_tests_tell(
    described: Run,
) -> None:
    workdir, _ = described
    by = {d["source"]: d for d in row_of(workdir, _demo.PLANTED)["descriptions"]}
    for source in ("answers", "neutral"):
        word = re.findall(r"\[(\w+)\]", by[source]["text"])[0]
        assert word in configs.RUDE, source
        assert by[source]["accuracy"]["value"] > 0.7, source
    result = json.loads((workdir / "result.json").read_text())
    tests = {t["source"]: t for t in result["cases"]["rude"]["reader"]["tests"]}
    assert tests["neutral"]["mean"]["value"] > tests["neutral"]["random_mean"]["value"]
    assert tests["neutral"]["random"] == READ["described_random"]
    assert "reader" not in result["cases"]["kind"]


def test_the_reader_sees_texts_alone(described: Run) -> None:
    """No number of a latent, no rank, no method, no word on random latents."""
    workdir, server = described
    numbers = {str(latent) for latent in latents(workdir, "rude")}
    assert server.calls > 100
    for request in server.requests:
        content = request["messages"][0]["content"]
        # The marks are digests, and may hold any digits.
        plain = re.sub(r"\[?\b[0-9a-f]{12}\b", "", content)
        assert not numbers & set(re.findall(r"\d+", plain)) - {"0", "1"}
        assert not re.search("latent|rank|random|delta|Δ|method", plain)


def test_what_the_reader_writes_is_text_on_the_page_and_nothing_is_asked_twice(
    described: Run, miniature: Path
) -> None:
    workdir, server = described
    html = (workdir / "report.html").read_text()
    assert MARKUP not in html
    assert MARKUP.replace("<", "&lt;").replace(">", "&gt;") in html
    assert MARKUP in (workdir / "rude/reading.txt").read_text()
    before = server.calls
    run(reading(server, miniature), workdir)
    assert server.calls == before
    study = case_study.opened(reading(server, miniature), epath.Path(workdir))
    costs = [cost for case in study.cases for cost in case_costs(case)]
    judged = sum(c.judged for c in costs if c.stage.endswith((".describe", ".match")))
    assert before <= judged + 2  # two first questions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "keywords"}, "reader.kind is keywords, which cannot write a descr"),
        ({"kind": "judge"}, "reader.kind is keywords, which cannot write a descr"),
        ({"kind": "openai", "model": "m"}, "reader openai lacks base_url; give reader"),
        ({"kind": "nobody"}, "reader kind 'nobody' is unknown"),
    ],
)
def test_a_reader_that_cannot_write_is_refused(
    miniature: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    made = config(miniature, cases=("rude",))
    made.cases.rude.reader.update(changes)
    with pytest.raises(ValueError, match=message):
        case_study.opened(made, epath.Path(tmp_path))
