"""The flags that entrypoints share: defined once, so that one process may import
several of them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

Function = TypeVar("Function", bound=Callable[..., Any])

# The value is a ConfigDict with all overrides in it, which `_command.read_command`
# sets.
CONFIG: flags.FlagHolder[Any] = flags.DEFINE_string(
    "config",
    None,
    "Config: a name (attribute), a file (configs/attribute.py, my.py), or either with "
    ":WORD behind it.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for results and for what a killed run continues from; may be gs://.",
)
SHOW_TOKENS = flags.DEFINE_integer(
    "show_tokens",
    0,
    "Print exactly what is scored or learnt of this many rows, and stop.",
)
ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Use a workdir that was made with another config."
)
QUIET = flags.DEFINE_bool(
    "quiet",
    False,
    "Say nothing on stderr but warnings and errors; results are printed all the same.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Say what the run would need (shapes, memory, tokens of the prompts, time, whether "
    "the judge answers) without loading weights or writing anything; exit status 1 "
    "with the list of faults where it would fail.",
)
TOKENS_PER_SECOND = flags.DEFINE_list(
    "tokens_per_second",
    [],
    "For --dry_run, two numbers in place of a short measurement: tokens per second that "
    "the model reads, and that a batch of completions is sampled with (1781,107).",
)


def reads(*holders: flags.FlagHolder[Any]) -> Callable[[Function], Function]:
    """Marks a function that reads flags, so that an entrypoint which imports it has
    them, on its command line and in its --help.
    """

    def mark(function: Function) -> Function:
        vars(function)["flags"] = holders
        return function

    return mark
