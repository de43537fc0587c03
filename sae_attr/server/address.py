"""The address of a server, its timeouts and retries, and its HTTP client."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from typing import Any

from sae_attr.server.transport import bounded_client


@dataclass(frozen=True)
class Server:
    """Names a model and where it is served.

    Args:
      base_url: for instance http://127.0.0.1:8000/v1.
      model: the server's name for the model.
      api_key: sent as the bearer token; never shown or stored.
      name: of the server, for readers. Neither it nor the address is part of the
        identity: the same model behind another address gives the same answers, and
        stored ones stay valid.
    """

    base_url: str
    model: str
    api_key: str = field(default="none", repr=False)
    name: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """The served model."""
        return {"model": self.model}


@dataclass(frozen=True)
class Patience:
    """Sets how a server is asked; none of it changes an answer.

    Args:
      concurrency: questions under way at once.
      timeout: seconds until a request counts as lost, its whole reply included.
      retries: how often a question is sent again after 408, 409, 425, 429, 5xx, a
        timeout, a broken connection or a body that is no completion.
      first_wait, longest_wait: seconds of the back-off, doubled each time, of which a
        random half to all is waited. A Retry-After of the server is waited in full; one
        longer than `longest_wait` ends the question.
      failures: questions in a row that may fail before no more are sent; where they are
        all about one prompt, a question about another prompt decides.

    Raises:
      ValueError: a number of questions below 1, a negative number of retries, or
        seconds that are no positive number.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    failures: int = 5

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("failures", 1), ("retries", 0)):
            count = getattr(self, name)
            # Written so that a NaN fails too.
            if not count >= least:
                raise ValueError(f"{name} is {count}; give a number from {least}")
        for name in ("timeout", "first_wait", "longest_wait"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{name} is {seconds:g}; give seconds above 0")


def openai_client(server: Server, patience: Patience) -> Any:
    """Makes an `openai` client without retries and redirects of its own, which would
    escape the budget.

    Raises:
      ImportError: openai is not installed; says how to.
    """
    try:
        openai = importlib.import_module("openai")
    except ImportError as error:
        raise ImportError(
            "asking a server needs openai; run: pip install 'sae_attr[judge]'"
        ) from error
    return openai.OpenAI(
        base_url=server.base_url,
        api_key=server.api_key,
        timeout=patience.timeout,
        max_retries=0,
        http_client=bounded_client(patience.timeout),
    )
