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
        """Parses the text between the tags of an answer."""
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
    # Unlike jinja2's own, no HTML escapes.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


ENVIRONMENT = environment()


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(source)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["ask"] == "names":
        tree = ENVIRONMENT.parse(request["source"])
        return {"names": sorted(jinja2.meta.find_undeclared_variables(tree))}
    day = datetime.fromisoformat(request["day"])
    variables = {**request["variables"], "strftime_now": day.strftime}
    # In pieces, so that a loop without end is stopped before its text fills the memory.
    pieces = _compiled(request["source"]).generate(variables)
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
    """Lets the system end this process after so much computing, whatever it is in the
    middle of; 0 takes that back.
    """
    # The signal's default action, not a handler: Python runs handlers between
    # bytecodes, and one multiplication of huge numbers never comes to the next. Time of
    # computing, not of the clock: a busy machine must not refuse a good template.
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
        except jinja2.TemplateError as error:
            answer = {"error": str(error)}
        except Exception as error:  # a template may raise anything
            answer = {"error": f"{type(error).__name__}: {error}"}
        _alarm(0)
        sys.stdout.write(json.dumps(answer) + "\n")  # of ASCII, half surrogates too
        sys.stdout.flush()


if __name__ == "__main__":
    main()
