"""The settings of a question to a server, and the request that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge.rubrics import Rubric
from sae_attr.server.extra_fields import check_extra

ANSWERS = ("auto", "logprobs", "text")
_OMITTABLE = {"temperature", "seed"}
_STATED = ("model", "messages", "seed", "temperature", "logprobs", "top_logprobs")
_SHORT, _LONG = 8, 600  # tokens of a bare answer and of a reasoned one


@dataclass(frozen=True)
class Asking:
    """Sets how a question is put; all of it may change a grade, so all of it is part of the
    judge's identity.

    Args:
      answers: "auto" (scores weighted by token probabilities where the rubric asks for
        a bare number and the server gives them, else the text), "logprobs" (an error
        where it does not), or "text".
      temperature, seed: of the judge's sampling; the seed rises by 1 when a malformed
        reply is asked for again.
      reply_tokens: longest reply; None for 8 where the rubric asks for a bare answer
        and 600 where it may be reasoned. A model that thinks before it answers needs
        more.
      top_logprobs: alternatives asked for.
      again: how often a malformed reply is asked for again.
      token_field: the request's name for `reply_tokens`; newer servers want
        max_completion_tokens.
      omit: fields that are left out of the request, of temperature and seed: some
        reasoning models refuse them.
      extra: further fields of the request body.

    Raises:
      ValueError: another kind of answers, a field that cannot be left out, or an extra
        field that the request states itself.
    """

    answers: str = "auto"
    temperature: float = 0.0
    seed: int = 0
    reply_tokens: int | None = None
    top_logprobs: int = 20
    again: int = 1
    token_field: str = "max_tokens"
    omit: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answers not in ANSWERS:
            raise ValueError(
                f"answers={self.answers!r} is unknown; choose auto, logprobs or text"
            )
        if unknown := set(self.omit) - _OMITTABLE:
            raise ValueError(
                f"omit names {sorted(unknown)[0]!r}; only "
                f"{', '.join(sorted(_OMITTABLE))} can be left out"
            )
        check_extra(
            self.extra,
            (*_STATED, self.token_field),
            setting="judge.extra",
            instead="the judge's settings model, temperature, seed, reply_tokens and "
            "top_logprobs",
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Every setting; the longest reply under the name that stored grades have."""
        settings = {**vars(self), "extra": dict(self.extra)}
        settings["max_tokens"] = settings.pop("reply_tokens")
        return settings


def request_of(
    asking: Asking,
    rubric: Rubric,
    *,
    model: str,
    content: str,
    seed: int,
    top_logprobs: int | None,
) -> dict[str, Any]:
    """Returns the fields of `chat.completions.create` for one question.

    Args:
      content: of the only message.
      top_logprobs: alternatives of each token; None asks for no probabilities.
    """
    longest = asking.reply_tokens or (_LONG if rubric.reasoned else _SHORT)
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "seed": seed,
        "temperature": asking.temperature,
        asking.token_field: longest,
    }
    for name in asking.omit:
        del request[name]
    if top_logprobs is not None:
        request |= {"logprobs": True, "top_logprobs": top_logprobs}
    if asking.extra:
        request["extra_body"] = dict(asking.extra)
    return request
