"""One HTML file from a study: everything inside, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_attr.comparison_records import LatentName
from sae_attr.report import numbers
from sae_attr.report.description_text import SOURCE_NAMES, description_sentence
from sae_attr.report.figures import Draw, draw_anew
from sae_attr.report.method_style import method_name
from sae_attr.report.page.cells import cell
from sae_attr.report.page.escape import plain, script_json
from sae_attr.report.page.panels import (
    ablation_panels,
    effect_panels,
    plane_panels,
    role_panels,
    sampled_panels,
    screen_panels,
    specificity_panels,
)
from sae_attr.report.page.records import CaseReport, PageContents
from sae_attr.report.safe_text import shortened, visible
from sae_attr.report.sentences import (
    case_sentences,
    difference_sentence,
    role_sentence,
)
from sae_attr.report.specificity_sentences import set_name

_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def render_page(contents: PageContents, draw: Draw = draw_anew) -> str:
    """Returns one HTML file that opens from disk without a network; the same text for
    the same contents.

    Args:
      draw: draws a panel, unless that was done before.

    Raises:
      ValueError: the id of a case is no plain name, or another case has it too.
    """
    _check_ids([case.id for case in contents.cases])
    page = files("sae_attr.report.page").joinpath("files")
    css = page.joinpath("page.css").read_text("utf-8")
    script = page.joinpath("page.js").read_text("utf-8")
    latents = {case.id: _latent_tokens(case) for case in contents.cases}
    template = _environment().get_template("page.html")
    return template.render(
        report=contents,
        draw=draw,
        css=Markup(css),
        script=Markup(script),
        policy=_policy(css, script),
        latents=Markup(script_json(latents)),
    )


def _check_ids(ids: list[str]) -> None:
    for name in ids:
        # Ids stand in anchors, in attributes and in the ids of the figures' elements.
        if not _ID.fullmatch(name):
            raise ValueError(
                f"case id {name!r}: use letters, digits, - and _, a letter first"
            )
    if len(set(ids)) < len(ids):
        raise ValueError(f"case ids {ids} are not unique")


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("sae_attr.report.page", "files"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A misspelt name in the template is an error (StrictUndefined), not an empty place.
    env.globals |= {
        "ablation_panels": ablation_panels,
        "case_sentences": case_sentences,
        "cell": cell,
        "description_sentence": description_sentence,
        "difference_sentence": difference_sentence,
        "effect_panels": effect_panels,
        "method_name": method_name,
        "plane_panels": plane_panels,
        "role_panels": role_panels,
        "role_sentence": role_sentence,
        "sampled_panels": sampled_panels,
        "screen_panels": screen_panels,
        "set_name": set_name,
        "source_names": SOURCE_NAMES,
        "specificity_panels": specificity_panels,
        "words": numbers,
    }
    env.filters |= {"shortened": shortened, "pretty": _pretty}
    return env


def _seen(value: Any) -> Any:
    """Makes text visible before it is escaped: every expression of the template comes
    through here.
    """
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value) if is_text else value


def _pretty(value: Any) -> str:
    """Returns any value as text: numbers in a list on one line, nested ones as indented
    JSON.
    """
    value = plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(map(_is_number, value)):
        return ", ".join(map(str, value))
    return json.dumps(value, indent=1, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _policy(css: str, script: str) -> str:
    """Returns the content security policy: this style, this script and embedded
    pictures; no connection, frame, form or other source.
    """
    # The page shows what models and tokenizers wrote. Should a text get through the
    # escaping, it still cannot run, look like a part of the page, or call home: hashes
    # allow one style sheet and one script, and nothing inline, style attributes included.
    # base-uri and form-action do not fall back to default-src.
    return (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    """Returns the name by which a policy allows one script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _latent_tokens(case: CaseReport) -> dict[LatentName, list[str]]:
    """Returns latent -> nearest tokens, for the card beside a point."""
    tokens = {}
    for row in case.latents.rows:
        if row.get("latent") is not None:
            tokens[row["latent"]] = list(row.get("tokens") or ())
    return tokens
