"""One HTML file from a report: everything inside, nothing fetched, every text escaped."""

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

from sae_attr.report import numbers
from sae_attr.report.figures.strips import method_name
from sae_attr.report.page.contents import CaseReport, Picture, Report
from sae_attr.report.page.drawing import scatter_drawings, strip_drawings
from sae_attr.report.page.values import plain, script_json
from sae_attr.report.safe_text import shortened, visible

_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


def _seen(value: Any) -> Any:
    """What every expression of the template passes through before it is escaped."""
    return (
        visible(value)
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


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
    env.globals |= {
        "words": numbers,
        "method_name": method_name,
        "strips": strip_drawings,
        "scatter": scatter_drawings,
    }
    env.filters |= {"shortened": shortened, "pretty": _pretty, "data_url": _data_url}
    return env


def _pretty(value: Any) -> str:
    """Any value as text; nested ones as indented JSON."""
    value = plain(value)
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, indent=1, ensure_ascii=False)
    )


def _data_url(picture: Picture) -> str:
    if picture.suffix not in _TYPES:
        raise ValueError(
            f"picture {picture.title!r} is {picture.suffix}; the page shows "
            f"{', '.join(_TYPES)}"
        )
    return f"data:{_TYPES[picture.suffix]};base64,{base64.b64encode(picture.data).decode()}"


def _hash(text: str) -> str:
    """How a content security policy names the one script or style that it allows."""
    return (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    )


def _policy(css: str, script: str) -> str:
    """Allows this style, this script and embedded pictures; no connection, frame, form
    or other source.
    """
    return (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _said_of_latents(case: CaseReport) -> dict[int, Any]:
    """What the page says of a latent when its point is touched: its tokens and who
    chose it.
    """
    by_row = {
        int(row["latent"]): row
        for row in case.latents.rows
        if row.get("latent") is not None
    }
    return {
        i: {"tokens": row.get("tokens") or (), "methods": row.get("methods") or ()}
        for i, row in by_row.items()
    }


def _check(report: Report) -> None:
    ids = [case.id for case in report.cases]
    for name in ids:
        if not _ID.fullmatch(name):
            raise ValueError(
                f"case id {name!r}: use letters, digits, - and _, a letter first"
            )
    if len(set(ids)) < len(ids):
        raise ValueError(f"case ids {ids} are not unique")


def render_page(report: Report) -> str:
    """The report as one HTML file that opens from disk without a network; the same text
    for the same report.

    Raises:
      ValueError: a case id that is no plain name, or is there twice; a picture that is
        neither SVG nor PNG.
    """
    _check(report)
    css, script = (
        files("sae_attr.report.page").joinpath("files", name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    said = {
        case.id: {"name": case.behaviour, "latents": _said_of_latents(case)}
        for case in report.cases
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            css=Markup(css),
            script=Markup(script),
            policy=_policy(css, script),
            said=Markup(script_json(said)),
        )
    )
