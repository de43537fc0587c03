"""What every entrypoint shares: versions, settings of a study, and an end in one line
whatever happens.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import io
import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report import tables
from sae_attr.settings import settings_from
from sae_attr.store import own_workdir
from sae_attr.study.attribution_settings import Settings

from . import _command, _endings, _flags, _help, _hosts, _notes, _terminal

OTHER_KEYS = (
    "mesh",
    "compare",
    "bands",
)  # keys of a config that are no settings of a study


def versions() -> dict[str, Any]:
    """Returns `tables.versions`, and the devices."""
    return {
        **tables.versions(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the arrays as the bytes of an uncompressed .npz."""
    buffer = io.BytesIO()
    kwargs: dict[str, Any] = dict(arrays)
    np.savez(buffer, **kwargs)
    return buffer.getvalue()


def settings_of(
    config: ConfigDict, *, needs: tuple[str, ...] = ("lm", "sae", "pairs", "corpus")
) -> Settings:
    """Returns `Settings` from the config; a ValueError names what of `needs` is
    missing.
    """
    require(config, *needs)
    values = {k: v for k, v in config.to_dict().items() if k not in OTHER_KEYS}
    return settings_from(Settings, {"pairs": "", **values})


def require(config: ConfigDict, *names: str) -> None:
    """Raises ValueError for inputs that the config lacks."""
    absent = [name for name in names if not config.get(name)]
    if absent:
        raise ValueError(
            f"the config lacks {', '.join(absent)}; add "
            + " ".join(f"--config.{name}=PATH" for name in absent)
        )


def fix_day(config: ConfigDict, workdir: epath.Path) -> None:
    """Gives every `template_options` of a config a date: the one that the workdir's
    first run recorded, else today.

    A template that writes the day would give other token ids on another one, and all
    that depends on them would be made anew.
    """
    file = workdir / "config.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    _fix_day(
        config,
        recorded if isinstance(recorded, dict) else {},
        datetime.date.today().isoformat(),
    )


def _fix_day(config: Any, recorded: Mapping[str, Any], today: str) -> None:
    for name, value in config.items():
        # A judge or reader takes its case's day, if it renders at all.
        if not isinstance(value, ConfigDict) or name in ("judge", "reader"):
            continue
        before = recorded.get(name)
        before = before if isinstance(before, Mapping) else {}
        if name == "template_options" and value.get("date") is None:
            value["date"] = str(before.get("date") or today)
        _fix_day(value, before, today)


def begin(argv: Sequence[str], *, cluster: bool = True) -> None:
    """Does what every entrypoint does first: refuses unknown arguments, joins the
    cluster if there is one and compares its hosts, keeps compiled programs.

    `cluster`: False for an experiment of one process.

    Raises:
      ValueError: arguments that are not understood, or hosts that differ.
    """
    if len(argv) > 1:
        raise ValueError(
            f"arguments without a name: {' '.join(argv[1:])}; write --FLAG=VALUE or "
            "--config.KEY=VALUE"
        )
    if cluster and parallel.start_distributed():
        # jax aborts this process where process 0 is gone. What all threads do then says
        # nothing of it, and reading it while they run may fault: another status.
        faulthandler.enable(all_threads=False)
        config = _config()
        _hosts.watch_others()
        _hosts.check_hosts({} if config is None else config.to_dict(), sys.argv[1:])
    parallel.enable_compile_cache()


def _config() -> ConfigDict | None:
    """Returns the config of this command line; None before or without one."""
    value = _flags.CONFIG.value if flags.FLAGS.is_parsed() else None
    return value if isinstance(value, ConfigDict) else None


def own_workdir_of(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    ignore: Sequence[str] = (),
    allow_change: bool = False,
) -> AbstractContextManager[None]:
    """Holds a workdir for a run with this config (`store.own_workdir`); process 0 alone
    writes.
    """
    return own_workdir(
        workdir,
        config.to_dict(),
        ignore=ignore,
        allow_change=allow_change,
        writer=parallel.is_main(),
    )


STOPPED = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """A signal asked the run to end."""


def run_app(main: Callable[[list[str]], None]) -> None:
    """Runs an experiment: reads its command line, and ends it with an exit status and,
    where it failed, one message.

    Exit status: 0 done; 1 refused or failed, with one line (`check_sae`: the SAE does
    not fit); 75 ended by something else than itself (another process of the run, a
    workdir in use, a network), 130 and 143 stopped by Ctrl-C and by SIGTERM, after all of
    which the same command goes on; a bug ends with 1 and its traceback.
    """
    module = sys.modules[main.__module__]
    name = _command.experiment_of(module)
    if {"-h", "-?", "--help", "-help", "--helpshort"} & set(sys.argv[1:]):
        _terminal.use_streams()
        print(_help.help_text(sys.argv, name, module))
        return
    quiet = bool(
        {"--quiet", "-quiet", "--quiet=true", "--quiet=True", "--quiet=1"}
        & set(sys.argv[1:])
    )
    _terminal.use_streams(quiet=quiet)
    # absl's own handler is made by app.run, so the logs are set right inside.
    app.run(
        guarded(main, quiet=quiet),
        flags_parser=lambda argv: parse_flags(argv, name, module),
    )


def guarded(
    main: Callable[[list[str]], None], *, quiet: bool = False
) -> Callable[[list[str]], None]:
    """Makes a `main` that ends an input error with one message on stderr and an exit
    status; a bug keeps its traceback.
    """

    def run(argv: list[str]) -> None:
        _terminal.use_logs(quiet=quiet)
        try:
            with _stopping():
                main(argv)
        except Exception as error:
            message, status = _endings.ending_of(error, _config())
            if message is not None:
                awaits = status == _endings.AWAITS
                _hosts.say(message, "waiting" if awaits else "error")
            elif _notes.processes_of_run() == 1:
                raise
            else:
                traceback.print_exc()
            _end(message or f"{type(error).__name__}: {error}", status)
        except (KeyboardInterrupt, Stopped) as stop:
            number = signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT
            again = _command.command_line(sys.argv)
            print(
                f"\nstopped by {STOPPED[number]}; the same command goes on where it "
                f"was: {again}",
                file=sys.stderr,
            )
            _end(f"stopped by {STOPPED[number]}", 128 + number)

    return run


def _end(message: str, status: int) -> NoReturn:
    if _notes.processes_of_run() > 1:
        _hosts.end_with_others(message, status)
    sys.exit(status)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM is raised as `Stopped` while the block lasts, so that locks are given
    back and a line is said.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str) -> NoReturn:
    """Ends the run with one message on stderr and exit status 1."""
    _hosts.say(message)
    sys.exit(_endings.REFUSED)


def parse_flags(argv: list[str], experiment: str, module: ModuleType) -> list[str]:
    """Reads a command line; what is not understood ends the run with one message."""
    try:
        return _command.read_command(argv, experiment, _command.flags_of(module))
    except (ValueError, OSError) as error:
        fail(str(error))
