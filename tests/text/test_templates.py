"""Chat templates as programs from a file: what they may not do, and that each fault is
one line.
"""

from __future__ import annotations

import os
import time

import pytest

from sae_attr.text import templates
from sae_attr.text.templates import TemplateError, render_template, template_names

DAY = "2025-01-31"


def rendered(source: str, **variables: object) -> str:
    return render_template(source, variables, day=DAY)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 10 ** (10 ** 9) }}", "ran longer than"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "ran longer than"),
        ("{% for a in range(999) %}{% for b in range(9999) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
         "writes more text|ran longer than"),
        ("{{ 'a' * 10 ** 10 }}", "more memory"),
        ("{{ 'a'.ljust(10 ** 10) }}", "more memory"),
        ("{{ '%9999999999d' % 1 }}", "more memory|ValueError"),
        ("{{ [0] * 10 ** 10 }}", "more memory"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages.missing.field }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected"),
        ("{" * 5000, "."),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deeply|."),
        ("{{ raise_exception('two\n\nlines ' + 'x' * 9999) }}", r"^two lines x+ \.\.\.$"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_template_without_end_or_sense_is_one_line(
    monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    monkeypatch.setattr(templates, "CHARACTERS", 1 << 20)
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=message) as raised:
        rendered(source)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert time.monotonic() - begun < 20
    assert (
        rendered("{{ x }}", x="on") == "on"
    )  # the next text is rendered as if nothing had been


def test_the_day_is_the_one_that_is_given() -> None:
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "31 Jan 2025"


def test_names_that_a_template_reads() -> None:
    source = "{% set y = x %}{{ y }}{% for m in messages %}{{ m }}{% endfor %}{{ strftime_now('%d') }}"
    assert template_names(source) == {"x", "messages", "strftime_now"}


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), float("nan")], ids=["set", "object", "nan"]
)
def test_values_that_are_no_json(value: object) -> None:
    if value != value:
        assert rendered("{{ x }}", x=value) == "nan"
        return
    with pytest.raises(TemplateError, match="not plain JSON"):
        rendered("{{ x }}", x=value)


def test_a_process_that_dies_is_started_again() -> None:
    assert rendered("a") == "a"
    assert templates._process is not None
    first = templates._process[1]
    os.kill(first.pid, 9)
    first.wait()
    assert rendered("b") == "b"
    assert templates._process[1].pid != first.pid
