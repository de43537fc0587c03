"""Prints one command line for every point of a sweep, for any scheduler to run.

    python -m launch.sweep 'sae.k=16,32 * seed=0..2' -- \\
        train_sae --config=train_sae --config.lm=MODEL --workdir=runs/k | xargs -P 2 -I{} sh -c '{}'

A sweep is made of assignments `KEY=VALUE,VALUE`, where `0..2` stands for 0,1,2 and
quotes hold a value with commas, brackets or spaces, and of

    A * B    every point of A with every point of B
    A & B    the first of A with the first of B, the second with the second, ...
    A + B    the points of A, then those of B

with brackets around parts; `*` and `&` bind before `+`. Operators have spaces around
them. Each point is a run of its own, in a folder below --workdir that its values name.
Keys and values are checked against the experiment's config before a line is printed.
Hardware: any; two seconds.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments import _command
from experiments._config import override

Point = dict[str, str]
"""Key below the config -> the text of its value."""

MOST = 10_000  # points; more is a slip
LONGEST = 120  # characters of a folder's name
_TOKEN = re.compile(r"""\s*([()]|[*&+](?=\s)|[\w.]+=(?:"[^"]*"|'[^']*'|[^\s()"'])+)""")
_VALUE = re.compile(r"""((?:"[^"]*"|'[^']*'|[^,"'])+)(?:,|$)""")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


# ---- the algebra ---------------------------------------------------------------------


def points_of(sweep: str) -> list[Point]:
    """Returns the points of a sweep in order.

    Raises:
      ValueError: text that is not understood, a key that is set twice in one point,
        parts of `&` with different numbers of points, a point that occurs twice.
    """
    tokens = list(_tokens(sweep))
    points = _sum(tokens)
    if tokens:
        raise ValueError(f"sweep {sweep!r}: {tokens[0]!r} comes unexpectedly")
    if len(points) > MOST:
        raise ValueError(
            f"the sweep has {len(points):,} points, above {MOST:,}; split it"
        )
    seen = set()
    for point in points:
        values = frozenset(point.items())
        if values in seen:
            raise ValueError(f"the sweep has the point {folder_name(point)} twice")
        seen.add(values)
    return points


def _tokens(sweep: str) -> Iterator[str]:
    position = 0
    text = sweep.strip() + " "
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"sweep {sweep!r}: {text[position:].strip()!r} is not understood; write "
                "KEY=VALUE,VALUE joined by *, & and + with spaces around them"
            )
        yield match[1]
        position = match.end()


def _sum(tokens: list[str]) -> list[Point]:
    points = _product(tokens)
    while tokens and tokens[0] == "+":
        tokens.pop(0)
        points = points + _product(tokens)
    return points


def _product(tokens: list[str]) -> list[Point]:
    points = _atom(tokens)
    while tokens and tokens[0] in "*&":
        operator = tokens.pop(0)
        others = _atom(tokens)
        if len(points) * len(others) > MOST and operator == "*":
            raise ValueError(f"the sweep has more than {MOST:,} points; split it")
        if operator == "*":
            pairs = [(point, other) for point in points for other in others]
        elif len(points) != len(others):
            raise ValueError(
                f"& joins {len(points)} points with {len(others)}; give both sides as "
                "many, or write *"
            )
        else:
            pairs = list(zip(points, others, strict=True))
        points = [_joined(point, other) for point, other in pairs]
    return points


def _atom(tokens: list[str]) -> list[Point]:
    if not tokens or tokens[0] in ")*&+":
        raise ValueError("the sweep lacks KEY=VALUE at an operator, or at its end")
    token = tokens.pop(0)
    if token != "(":
        key, _, values = token.partition("=")
        return [{key: value} for value in _values(values, token)]
    points = _sum(tokens)
    if not tokens or tokens.pop(0) != ")":
        raise ValueError("a bracket of the sweep is not closed")
    return points


def _values(text: str, token: str) -> list[str]:
    values = []
    for match in _VALUE.finditer(text):
        value = match[1]
        quoted = value[0] in "\"'"
        span = None if quoted else _RANGE.fullmatch(value)
        if quoted:
            values.append(value[1:-1])
        elif span is not None:
            first, last = int(span[1]), int(span[2])
            if not 0 <= last - first < MOST:
                raise ValueError(f"{token}: {value} is no range from low to high")
            values += [str(number) for number in range(first, last + 1)]
        elif "=" in value:
            raise ValueError(
                f"{token}: write spaces around operators, and quotes around a value "
                "with ="
            )
        else:
            values.append(value)
    return values


def _joined(point: Point, other: Point) -> Point:
    twice = sorted(point.keys() & other.keys())
    if twice:
        raise ValueError(
            f"{twice[0]} is set twice in one point; join its values with commas, or "
            "with +"
        )
    return {**point, **other}


# ---- command lines -------------------------------------------------------------------


def folder_name(point: Mapping[str, str]) -> str:
    """Returns the values of a point as a folder's name."""
    parts = []
    for key, value in point.items():
        parts.append(f"{key}={re.sub(r'[^A-Za-z0-9.=+-]+', '_', value).strip('_')}")
    return ",".join(parts)[:LONGEST]


def command_lines(
    points: Sequence[Point], arguments: Sequence[str], launcher: str
) -> list[str]:
    """Returns the command line of every point.

    Args:
      arguments: the experiment's name and its flags, --workdir among them.
      launcher: what stands in front, as a shell reads it.

    Raises:
      ValueError: no experiment or --workdir, an unknown key, a value that its key does
        not take, two points of one folder.
    """
    experiment, flags = _experiment(arguments)
    workdirs = [flag for flag in flags if flag.startswith("--workdir=")]
    if len(workdirs) != 1:
        raise ValueError("give one --workdir=FOLDER; every point gets a folder in it")
    rest = [flag for flag in flags if flag not in workdirs]
    lines: dict[str, str] = {}
    for point in points:
        _check(point, rest, experiment)
        keys = [f"--config.{key}={value}" for key, value in point.items()]
        workdir = f"{workdirs[0]}/{folder_name(point)}"
        if workdir in lines:
            raise ValueError(
                f"two points have the folder {workdir}; shorten the values"
            )
        command = shlex.join([experiment, *rest, *keys, workdir])
        lines[workdir] = f"{launcher} {command}"
    return list(lines.values())


def _experiment(arguments: Sequence[str]) -> tuple[str, list[str]]:
    programs = Path(_command.__file__).parent.glob("[a-z]*.py")
    names = sorted(path.stem for path in programs)
    if not arguments or arguments[0] not in names:
        raise ValueError(
            f"name the experiment behind --, one of {', '.join(names)}, and its flags"
        )
    return arguments[0], list(arguments[1:])


def _check(point: Point, flags: Sequence[str], experiment: str) -> None:
    """Raises ValueError where the experiment's config does not take a point."""
    name, overrides, _ = _command.split(flags)
    argument = experiment if name is None else name
    config = _command.fitted(_command.load_config(argument)[0], argument, experiment)
    config.lock()
    for key, value in [*overrides, *point.items()]:
        override(config, key, value)


def main() -> None:
    """Prints the lines, or one message with exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", help="the sweep, in quotes")
    parser.add_argument(
        "--launcher",
        default="launch/local.sh",
        help="what starts a run, such as 'sbatch --nodes=2 launch/slurm.sbatch'",
    )
    parser.add_argument("arguments", nargs="+", help="experiment and its flags")
    args = parser.parse_args()
    try:
        lines = command_lines(points_of(args.sweep), args.arguments, args.launcher)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
