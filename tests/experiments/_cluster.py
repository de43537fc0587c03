"""Real processes that share a run over loopback, each with simulated CPU devices, and a
judge that is a language model of one sentence.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _common
from sae_attr.lm.save import save_lm
from sae_attr.organism import planted
from tests._processes import SECONDS
from tests.conftest import ONE_AFTER_ANOTHER
from tests.experiments._demo import REPO, environment, once

DEVICES = 8  # of every run together, so that a device has the same rows in each
# Half the time of compiling; one and several processes compile alike.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
)
RUDE_GRADE, KIND_GRADE = "5", "1"
# Words of the miniature that the judge's tokenizer gives up for its two grades.
GIVEN_UP = {"road": RUDE_GRADE, "garden": KIND_GRADE}
RUBRIC = """
name = "rudeness"
version = 1
measures = "behaviour"
reasoned = false
instructions = "Grade how rude the answer is."

[scale]
low = 1
high = 5
whole = true
threshold = 4
side = "at_least"
coherent = 1
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def member(
    experiment: str, flags: Sequence[str], log: Path, variables: Mapping[str, str]
) -> None:
    """Is one process of a run: what `python -m experiments.NAME` does, with what is
    printed in a file.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(REPO)
    os.environ.update(variables)
    sys.argv = [str(REPO / f"experiments/{experiment}.py"), *flags]
    try:
        _common.run_app(importlib.import_module(f"experiments.{experiment}").main)
    finally:
        # jax takes leave of the others in one of these, which multiprocessing leaves out.
        atexit._run_exitfuncs()


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.experiments._members"])


@contextlib.contextmanager
def started(
    experiment: str,
    flags: Sequence[str],
    processes: int,
    logs: Path,
    own: Sequence[Sequence[str]] = (),
) -> Iterator[list[BaseProcess]]:
    """The processes of one run, whose output goes to `logs`/0.log and so on; killed at
    the end of the block.

    `own`: further flags of each process, where they differ.
    """
    logs.mkdir(parents=True, exist_ok=True)
    devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    cluster = {"XLA_FLAGS": f"{devices} {ONE_AFTER_ANOTHER} {QUICK}"}
    if processes > 1:
        cluster["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
        cluster["JAX_NUM_PROCESSES"] = str(processes)
    with contextlib.ExitStack() as stack:
        members = []
        for i in range(processes):
            variables = environment(**cluster, JAX_PROCESS_ID=str(i))
            of_member = [*flags, *(own[i] if own else ())]
            arguments = experiment, of_member, logs / f"{i}.log", variables
            process = FORKS.Process(target=member, args=arguments)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            members.append(process)
        yield members


def run(
    experiment: str,
    flags: Sequence[str],
    processes: int,
    logs: Path,
    own: Sequence[Sequence[str]] = (),
) -> list[int | None]:
    """Exit codes of the processes of a whole run; None for one that did not end."""
    with started(experiment, flags, processes, logs, own) as members:
        for process in members:
            process.join(SECONDS)
        return [process.exitcode for process in members]


def run_once(
    experiment: str, flags_of: Callable[[Path], list[str]], processes: int, folder: Path
) -> Path:
    """Workdir of a whole run in `folder`, made once for all workers of a session.

    `flags_of`: workdir -> flags.
    """

    def make(folder: Path) -> None:
        logs = folder / "logs"
        codes = run(experiment, flags_of(folder / "workdir"), processes, logs)
        assert codes == [0] * processes, said(logs)

    return once(folder, make) / "workdir"


def said(logs: Path) -> list[str]:
    """What each process printed."""
    return [path.read_text() for path in sorted(logs.glob("*.log"))]


def write_judge(folder: Path) -> None:
    """Writes a language model that answers "5" to a text in which rude words prevail and
    "1" to one of kind words, and the rubric that asks for that.

    It is the miniature with the planted direction moved from moods to rude and kind
    words, and from these to the two grades.
    """
    # u is the planted direction; every word has some of v, which makes a text that is
    # neither rude nor kind a kind one.
    v_d, u_d = planted.random_directions(jax.random.key(7))[[0, planted.PLANTED]]
    params = planted.planted_params(u_d, jax.random.key(8))
    blocks = params["blocks"]
    for name in ("o", "down"):
        # Nothing but the head that carries the planted direction writes.
        kernel_lxd = np.zeros(blocks[name]["kernel"].shape, np.float32)
        if name == "o":
            kernel_lxd[2, 0] = 10 * u_d
        blocks[name]["kernel"] = jnp.asarray(kernel_lxd)
    table, head = (np.zeros((len(planted.WORDS), u_d.size), np.float32) for _ in "ab")
    for words, sign in ((planted.RUDE, 1), (planted.KIND, -1)):
        for word in words:
            table[planted.WORDS.index(word)] = sign * u_d
    table += 0.1 * v_d
    for word, grade in GIVEN_UP.items():
        row_d = u_d if grade == RUDE_GRADE else 0.05 * v_d - u_d
        head[planted.WORDS.index(word)] = row_d
    params = {**params, "embed": {"table": table}, "head": {"table": head}}
    save_lm(folder / "model", planted.HF, jax.tree.map(jnp.asarray, params))
    planted.write_tokenizer(folder / "model")
    file = folder / "model/tokenizer.json"
    text = file.read_text()
    for word, grade in GIVEN_UP.items():
        text = text.replace(json.dumps(word), json.dumps(grade))
    file.write_text(text)
    (folder / "rubric.toml").write_text(RUBRIC)
