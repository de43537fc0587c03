"""Settings of engines that sample in place of the model here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sae_attr.server.address import Patience
from sae_attr.server.budget import CallLimits
from sae_attr.server.extra_fields import check_extra

APIS = ("completions", "chat")
# Which engine samples sweeps that steer.
SWEEPS_BY = ("here", "export")
# Fields of every request for a sample, beside the number of tokens.
_STATED = ("model", "messages", "prompt", "seed", "temperature", "top_p", "stop")


@dataclass(frozen=True, kw_only=True)
class SampleServer(Patience, CallLimits):
    """Names a server that samples completions of a case's models without steering: those
    for pairs, and the unsteered model's own answers that coherence is measured against.
    A sweep that steers keeps its unsteered rows, which must come from the same engine.

    A sample must be whole, so no completion may be missing. Without limits of calls and
    tokens a run sends each row once, and `retries` times more at most where the server
    fails.

    Args:
      model: the server's name of `lm`; empty samples its completions here.
      model_aligned: the server's name of `lm_aligned`; empty samples its completions
        here.
      base_url: for instance http://127.0.0.1:8000/v1.
      key_variable: environment variable that holds the server's key.
      api: `completions` sends token ids, so that the server reads exactly the prompt
        that the model here reads; `chat` sends messages, which the server renders.
      token_field: the request's name for the most new tokens.
      extra: further fields of every request, such as return_token_ids=True of vLLM.

    Raises:
      ValueError: an unknown api, a model without an address, an extra field that the
        request states itself, or a limit outside its range.
    """

    model: str = ""
    model_aligned: str = ""
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    api: str = "completions"
    token_field: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Patience.__post_init__(self)
        CallLimits.__post_init__(self)
        if self.api not in APIS:
            raise ValueError(
                f"server api {self.api!r} is unknown; choose {' or '.join(APIS)}"
            )
        if (self.model or self.model_aligned) and not self.base_url:
            raise ValueError(
                f"server.model is {self.model or self.model_aligned!r}, but "
                "server.base_url is empty; give the server's address, or leave the "
                "model out"
            )
        check_extra(
            self.extra,
            (*_STATED, self.token_field),
            setting="server.extra",
            instead="sampling.temperature, sampling.top_p, sampling.max_new, "
            "sampling.stop, server.model and server.token_field",
        )

    def model_of(self, direction: str, *, aligned: bool) -> str:
        """Returns the server's name of the model that a direction steers; "" where it is
        sampled here.

        Args:
          aligned: the case has a second model.
        """
        second = direction == "toward" and aligned
        return self.model_aligned if second else self.model

    @property
    def patience(self) -> Patience:
        """Limits of asking the server."""
        names = [field.name for field in fields(Patience)]
        return Patience(**{name: getattr(self, name) for name in names})

    @property
    def identity(self) -> dict[str, Any]:
        """What completions depend on: the served models, and what they are sent."""
        return {
            "model": self.model,
            "model_aligned": self.model_aligned,
            "api": self.api,
            "extra": dict(self.extra),
        }
