"""The process that renders chat templates: one JSON request a line on stdin, one JSON
answer a line on stdout.

A template is a program from a file. Here it has a second's worth of Python and no more
memory, time or output than the limits say, and what it does to this process is no harm
to the one that asked. Run as a script by `templates`; it imports nothing of the
package.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

_PER_RUN = ("lipsum", "random")  # text that is another one in every run


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks assistant text for training; here
    its body only.
    """

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.Environment:
    """Returns the sandbox that transformers renders chat templates in, without what gives
    another text in every run.
    """
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    for name in _PER_RUN:
        env.filters.pop(name, None)
        env.globals.pop(name, None)
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise_exception
    return env


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )  # unlike jinja2's own, no HTML escapes


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


ENVIRONMENT = environment()


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(source)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["ask"] == "names":
        return {
            "names": sorted(
                jinja2.meta.find_undeclared_variables(
                    ENVIRONMENT.parse(request["source"])
                )
            )
        }
    day = datetime.fromisoformat(request["day"])
    pieces = _compiled(request["source"]).generate(
        {**request["variables"], "strftime_now": day.strftime}
    )
    return {"text": "".join(_at_most(pieces, request["characters"]))}


def _at_most(pieces: Iterator[str], characters: int) -> Iterator[str]:
    for piece in pieces:
        characters -= len(piece)
        if characters < 0:
            raise ValueError("it writes more text than a conversation has")
        yield piece


def _limit(memory: int) -> None:
    try:
        import resource  # absent on Windows
    except ImportError:
        return
    with suppress(ValueError, OSError):  # a limit that is lower already
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm(seconds: float) -> None:
    """After so much computing the system ends this process, whatever it is in the
    middle of; 0 takes that back.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def main() -> None:
    """Answers until stdin ends."""
    _limit(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _alarm(request["seconds"])
        try:
            answer = _answer(request)
        except MemoryError:
            answer = {"error": "it needs more memory than a conversation does"}
        except RecursionError:
            answer = {"error": "it is nested too deeply"}
        except Exception as error:  # a template may raise anything
            kind = (
                ""
                if isinstance(error, jinja2.TemplateError)
                else f"{type(error).__name__}: "
            )
            answer = {"error": f"{kind}{error}"}
        _alarm(0)
        sys.stdout.write(json.dumps(answer) + "\n")  # of ASCII, half surrogates too
        sys.stdout.flush()


if __name__ == "__main__":
    main()
