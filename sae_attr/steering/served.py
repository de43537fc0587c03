"""Sampling rows without steering from a server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from sae_attr.lm.draw import Sampling
from sae_attr.server.attempts import Endpoint
from sae_attr.server.faults import Filtered, NoLogprobs, Refused
from sae_attr.server.many import ask_many
from sae_attr.server.reply import Reply
from sae_attr.server.tally import Tally
from sae_attr.steering.answer_tokens import Answer, answer_ids
from sae_attr.steering.plan import UNSTEERED, SweepRow, row_seeds
from sae_attr.steering.sweep import SampledRow
from sae_attr.text.chat import Message
from sae_attr.text.tokenizer import Tokenizer, decode

_SHOWN_PROMPTS = 3  # in a message
UNKNOWN = float("nan")  # log-probability of an answer that was sampled elsewhere


class SamplesStopped(RuntimeError):
    """A server was asked no more before every row had a completion; those that came were
    yielded before this was raised.
    """


@dataclass(frozen=True, eq=False)
class ServedSampler:
    """Asks a server for completions of rows.

    Args:
      endpoint: the server, whose answers come verbatim; of chat completions where
        `messages` are given.
      model: the server's name for the model.
      prompts: token ids by prompt id, which are sent as they are.
      key: typed random key; a row folds its own numbers into it.
      sampling: temperature, top_p, most new tokens, and the ids that end a completion.
      tokenizer: of the model.
      messages: prompt id -> messages, which the server renders; None sends token ids.
      stop: texts that end a completion.
      token_field: the request's name for the most new tokens.
      extra: further fields of every request.

    Raises:
      ValueError: an endpoint that rewrites answers.
    """

    endpoint: Endpoint
    model: str
    prompts: Mapping[str, Sequence[int]]
    key: jax.Array
    sampling: Sampling
    tokenizer: Tokenizer
    messages: Mapping[str, Sequence[Message]] | None = None
    stop: Sequence[str] = ()
    token_field: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.endpoint.verbatim:
            raise ValueError(
                "samples need answers as they were sent; make the endpoint with "
                "verbatim=True"
            )

    def request(self, row: SweepRow, seed: int) -> dict[str, Any]:
        """Returns the fields of one request."""
        request: dict[str, Any] = {
            "model": self.model,
            "seed": seed,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            self.token_field: self.sampling.max_new,
        }
        if self.messages is None:
            request["prompt"] = list(self.prompts[row.prompt])
        else:
            messages = self.messages[row.prompt]
            request["messages"] = [dict(message) for message in messages]
        if self.stop:
            request["stop"] = list(self.stop)
        if self.extra:
            request["extra_body"] = dict(self.extra)
        return request

    def row_of(self, row: SweepRow, reply: Reply) -> SampledRow:
        """Returns the completion that a reply holds.

        Raises:
          Refused: the reply cannot be read as tokens of the model.
          Fatal: its tokens write the server's key.
        """
        answer = Answer(reply.text, reply.ids, reply.finish)
        try:
            ids, stopped = answer_ids(
                answer,
                self.prompts[row.prompt],
                self.tokenizer,
                stop_ids=self.sampling.stop_ids,
                max_new=self.sampling.max_new,
            )
        except ValueError as error:
            raise Refused(f"the answer cannot be used: {error}") from error
        if reply.ids is not None:  # the text was looked at, these may write another
            self.endpoint.check_without_key(decode(self.tokenizer, ids))
        return SampledRow(row, ids, stopped, UNKNOWN)


def served_batches(
    sampler: ServedSampler, rows: Sequence[SweepRow]
) -> Iterator[list[SampledRow]]:
    """Yields completions as they arrive, one at a time, so that each is kept at once.

    Raises:
      ValueError: a row that is steered, which a server cannot do.
      SamplesStopped: a row has no completion after all attempts.
    """
    steered = [row for row in rows if row.condition != UNSTEERED]
    if steered:
        raise ValueError(
            f"{len(steered)} rows are steered, the first is {steered[0].id!r}; a server "
            "samples rows without steering alone"
        )
    seeds = dict(zip(rows, row_seeds(sampler.key, rows), strict=True))

    def one(row: SweepRow, halt: threading.Event) -> SampledRow:
        request = sampler.request(row, seeds[row])
        try:
            return sampler.row_of(row, sampler.endpoint.ask(request, halt))
        except (Filtered, NoLogprobs) as error:
            raise Refused(f"the server refused: {error}") from None

    budget = sampler.endpoint.budget
    tally = Tally[SweepRow, SampledRow](
        deque(rows),
        len(rows),
        sampler.endpoint.patience,
        begun=(budget.calls, budget.tokens),
        about=lambda row: row.prompt,
    )
    for _, sampled in ask_many(tally, one, name="samples"):
        yield [sampled]
    stop = tally.stop(budget)
    if stop is not None:
        remedy = "run again to ask for the rest"
        if stop.spent:
            remedy = f"run again with a larger budget to go on{stop.estimate}"
        refused = [row for row, error in tally.unanswered if isinstance(error, Refused)]
        if refused:
            remedy = _remedy_of_refusals(refused)
        raise SamplesStopped(
            f"the server of {sampler.model} gave {stop.answered} of {len(rows)} "
            f"completions, {stop.left} are left: {stop.reason}. What arrived is kept; "
            f"{remedy}"
        )


def _remedy_of_refusals(rows: Sequence[SweepRow]) -> str:
    """Returns what to do about rows that a server refuses.

    A grade may be missing, a completion may not: whatever cannot be answered, a long
    prompt or one that a filter refuses, is no random part of the prompts.
    """
    prompts = list(dict.fromkeys([row.prompt for row in rows]))
    shown = ", ".join([repr(prompt) for prompt in prompts[:_SHOWN_PROMPTS]])
    if len(prompts) > _SHOWN_PROMPTS:
        shown += ", …"
    return (
        f"but a server refuses again what it refused ({len(rows)} rows of "
        f"{len(prompts)} prompts: {shown}): leave these prompts out, or sample them here "
        "(an empty server.model)"
    )
