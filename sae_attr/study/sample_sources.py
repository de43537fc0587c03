"""Which engine samples a sweep in place of the model here: a server, or one that takes
files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from etils import epath

from sae_attr.lm.draw import Sampling
from sae_attr.server.address import Patience, Server, openai_client
from sae_attr.server.attempts import Endpoint
from sae_attr.server.budget import CallBudget
from sae_attr.server.relay import relayed
from sae_attr.steering.plan import SweepRow
from sae_attr.steering.served import (
    SamplesStopped,
    ServedSampler,
    served_batches,
)
from sae_attr.steering.sweep import SampleBatches, SampledRow, record_of, sampled_of
from sae_attr.steering.sweep_completions import completion_files, read_completions
from sae_attr.steering.sweep_export import SweepExport, write_export
from sae_attr.store import InputAwaited
from sae_attr.store.files import is_local
from sae_attr.study.case import Case
from sae_attr.text.chat import Message
from sae_attr.text.pairs import Prompt

SERVED = "served"  # the ledgers of servers in the workdir


def served_model(case: Case, direction: str) -> str:
    """Returns the server's name of the model that a direction steers; "" where it is
    sampled here.
    """
    aligned = bool(case.files.lm_aligned)
    return case.settings.server.model_of(direction, aligned=aligned)


def declared_server(case: Case) -> dict[str, Any]:
    """Returns what completions of a server depend on, for stages that ask one."""
    server = case.settings.server
    if not server.model and not server.model_aligned:
        return {}
    return {"server": server.identity}


def sampled_here(case: Case, direction: str, *, steered: bool) -> bool:
    """Returns whether the model here samples what a direction steers: the sweeps that
    steer it, or its completions without steering.
    """
    if steered:
        return case.study.sweeps_by == "here"
    return not served_model(case, direction)


def from_server(
    case: Case, direction: str, split: str, key: jax.Array, sampling: Sampling
) -> SampleBatches:
    """Returns what samples rows of a case's model, without steering, from its server;
    with several processes, process 0 asks for all. Arguments are those of
    `server_sampler`.
    """
    sampler = server_sampler(case, direction, split, key, sampling)
    return partial(_asked_by_main, partial(served_batches, sampler))


def server_sampler(
    case: Case,
    direction: str,
    split: str,
    key: jax.Array,
    sampling: Sampling,
    *,
    endpoint: Endpoint | None = None,
) -> ServedSampler:
    """Returns what asks the server of a case for completions of one of its models.

    Args:
      direction: that steers the model.
      split: of the prompts.
      key: typed random key of the sweep.
      endpoint: None as the settings say.

    Raises:
      ImportError: openai is not installed.
      ValueError: a prompt that the server's kind of request cannot hold.
    """
    settings = case.settings.server
    prompts = case.prompts(split)
    messages = chats_of(prompts) if settings.api == "chat" else None
    return ServedSampler(
        endpoint or _endpoint(case),
        served_model(case, direction),
        case.prompt_ids(split),
        key,
        sampling,
        case.setup.tokenizer,
        messages,
        case.study.sampling.stop,
        settings.token_field,
        settings.extra,
    )


def _endpoint(case: Case) -> Endpoint:
    """Returns the server of a case, within the budget of the workdir."""
    settings = case.settings.server
    # Of all runs of the workdir, as for judges; process 0 alone asks, and writes.
    ledger = case.runtime.workdir / SERVED / case.name
    budget = CallBudget(settings.max_calls, settings.max_tokens, ledger=ledger)
    return endpoint_of(case, settings.patience, budget)


def endpoint_of(case: Case, patience: Patience, budget: CallBudget) -> Endpoint:
    """Returns the server of a case; its key comes from the environment, and is neither
    stored nor shown.
    """
    settings = case.settings.server
    key = os.environ.get(settings.key_variable) or Server.api_key
    server = Server(settings.base_url, settings.model, api_key=key)
    client = openai_client(server, patience)
    create = client.completions.create
    if settings.api == "chat":
        create = client.chat.completions.create
    return Endpoint(create, key, patience, budget, verbatim=True)


def chats_of(prompts: Sequence[Prompt]) -> dict[str, Sequence[Message]]:
    """Returns prompt id -> messages.

    Raises ValueError for a prompt that is a text or token ids: a server would put its
    chat template around it.
    """
    messages: dict[str, Sequence[Message]] = {}
    for prompt in prompts:
        if isinstance(prompt.prompt, str) or prompt.prompt_ids is not None:
            raise ValueError(
                f"prompt {prompt.id!r} is no list of messages, and server.api=chat "
                "would put a chat template around it; set server.api=completions"
            )
        messages[prompt.id] = prompt.prompt
    return messages


def _asked_by_main(
    sample: SampleBatches, rows: Sequence[SweepRow]
) -> Iterator[list[SampledRow]]:
    """Yields on every process what process 0 alone samples."""
    by_id = {row.id: row for row in rows}

    def records() -> Iterable[Mapping[str, Any]]:
        for batch in sample(rows):
            for sampled in batch:
                yield record_of(sampled)

    for record in relayed(records, record=str, error=SamplesStopped):
        yield [sampled_of(by_id[record["id"]], record)]


# ---- sweeps that leave as files ------------------------------------------------------

EXPORTS = "sweeps"  # in the workdir


def declared_engine(settings: Any) -> dict[str, Any]:
    """Returns who samples sweeps that steer, for their stages; {} for the model here.

    Args:
      settings: of a study or of one sweep, which have `sweeps_by`.
    """
    by = settings.sweeps_by
    return {} if by == "here" else {"sweeps_by": by}


def from_files(export: SweepExport, workdir: epath.Path, name: str) -> SampleBatches:
    """Returns what writes rows as an export, and reads their completions.

    Args:
      export: of the sweep; its rows are replaced by those that are asked for.
      workdir: of the run.
      name: of the sweep, for the folder's name.

    Raises:
      ValueError: a workdir in a bucket.
    """
    if not is_local(workdir):
        raise ValueError(
            f"sweeps_by=export writes to {os.fspath(workdir)}, which is no folder of "
            "this machine; use a local --workdir, or sweeps_by=here"
        )
    return partial(_answered, export, workdir / EXPORTS, name)


def _answered(
    export: SweepExport, folder: epath.Path, name: str, rows: Sequence[SweepRow]
) -> Iterator[list[SampledRow]]:
    """Yields all completions of rows at once, so that none is kept of files that do not
    fit.

    Raises:
      InputAwaited: there are none yet; the export is written.
      ValueError: completions that do not fit the rows.
    """
    by_id = {row.id: row for row in rows}

    def records() -> Iterable[Mapping[str, Any]]:
        of_rows = export.of(rows)
        place = folder / f"{name}-{of_rows.digest[:12]}"
        files = completion_files(place)
        if not files:
            write_export(of_rows, place)
            raise InputAwaited(
                f"a sweep waits for completions of {len(rows):,} rows: it is in "
                f"{os.fspath(place)} (docs/serving.md); put completions.jsonl there, "
                "and run the same command again"
            )
        return [record_of(sampled) for sampled in read_completions(of_rows, files)]

    answers = relayed(records, record=_error_record, error=_error_of)
    yield [sampled_of(by_id[record["id"]], record) for record in answers]


def _error_record(error: Exception) -> dict[str, Any]:
    return {"text": str(error), "awaited": isinstance(error, InputAwaited)}


def _error_of(record: Mapping[str, Any]) -> Exception:
    kind = InputAwaited if record["awaited"] else ValueError
    return kind(record["text"])
