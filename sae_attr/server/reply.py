"""Reads the body of a completion, of a chat or plain, as plain values without the
server's key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_attr.files.text import printable
from sae_attr.server.faults import Passing

TOKEN_CHARS = 4  # characters per token, where the server does not count
_ROUNDING = 1e-3  # servers round log-probabilities of 0 up
_MOST_TOKENS = 10**9
_LONGEST_NAME = 200  # characters of a server's own names, kept beside every grade
_NO_COMPLETION = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
)

Alternatives = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """A server's answer.

    Args:
      text: the message's content.
      tokens: (token, alternatives as (token, natural logarithm of its probability)) in
        order; empty where not given.
      ids: token ids of the text, of a server that states them; else None.
      finish: why it ended ("stop", "length", ...).
      model, fingerprint: the server's names for itself.
      used: tokens of question and answer; `counted` is False where this is our
        estimate.
    """

    text: str
    tokens: tuple[tuple[str, Alternatives], ...]
    ids: tuple[int, ...] | None
    finish: str
    model: str
    fingerprint: str
    used: int
    counted: bool

    @property
    def has_probabilities(self) -> bool:
        """Whether any token has alternatives with probabilities."""
        return any(alternatives for _, alternatives in self.tokens)


def reply_of(
    completion: Any,
    request: Mapping[str, Any],
    hide: Callable[[str], str],
    *,
    verbatim: bool = False,
) -> Reply:
    """Reads a completion of the openai client.

    Args:
      request: with `messages`, of a chat; with `prompt`, a plain one.
      hide: of `secret.hider`.
      verbatim: leaves the text as it came, which may then hold the key.

    Raises:
      Passing: the body is no completion of the kind.
    """
    chat = "messages" in request
    try:
        choice = completion.choices[0]
        text = _text(choice.message) if chat else choice.text + ""
        tokens = _tokens(choice, hide) if chat else ()
    except _NO_COMPLETION as error:
        kind = "chat completion" if chat else "completion"
        body = hide(str(completion))[:200]
        raise Passing(
            f"the server sent no {kind} but {body!r}; check base_url"
        ) from error
    # The client's classes do not check what they are built from: any field may be absent
    # or of another type.
    usage = getattr(completion, "usage", None)
    counted = _count(getattr(usage, "total_tokens", None))
    used = counted or prompt_tokens(request) + len(text) // TOKEN_CHARS

    def name(value: Any) -> str:
        return printable(hide(str(value or "")), _LONGEST_NAME)

    return Reply(
        text=_with_whole_characters(text) if verbatim else hide(text),
        tokens=tokens,
        ids=_ids(choice),
        finish=name(choice.finish_reason),
        model=name(completion.model),
        fingerprint=name(getattr(completion, "system_fingerprint", None)),
        used=used,
        counted=bool(counted),
    )


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """Returns the tokens of a request's prompt, those of a text estimated."""
    prompt = request.get("prompt")
    if isinstance(prompt, str):
        return len(prompt) // TOKEN_CHARS
    if prompt is not None:
        return len(prompt)
    characters = sum([len(message["content"]) for message in request["messages"]])
    return characters // TOKEN_CHARS


def expected_tokens(request: Mapping[str, Any]) -> int:
    """Returns the tokens that a request may need: its prompt, and the longest answer that
    it allows.
    """
    longest = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return prompt_tokens(request) + int(longest)


def _ids(choice: Any) -> tuple[int, ...] | None:
    """Returns the token ids that a server states beside a text; None where it states
    none.
    """
    ids = getattr(choice, "token_ids", None)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        return None
    return tuple(ids)


def _text(message: Any) -> str:
    if isinstance(message.content, str):
        return message.content
    return str(getattr(message, "refusal", None) or "")


def _with_whole_characters(text: str) -> str:
    """Returns a text with U+FFFD, which tokenizers write for a character that was cut, in
    place of half a surrogate pair.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _tokens(
    choice: Any, hide: Callable[[str], str]
) -> tuple[tuple[str, Alternatives], ...]:
    content = getattr(getattr(choice, "logprobs", None), "content", None) or ()
    tokens = []
    for token in content:
        tokens.append((hide(str(token.token)), _alternatives(token, hide)))
    return tuple(tokens)


def _alternatives(token: Any, hide: Callable[[str], str]) -> Alternatives:
    """Returns tokens with log-probabilities, without those that cannot be one (NaN, above 0)."""
    out = []
    for alternative in token.top_logprobs or ():
        logprob = float(alternative.logprob)
        if logprob <= _ROUNDING:
            out.append((hide(str(alternative.token)), logprob))
    return tuple(out)


def _count(value: Any) -> int:
    """Returns a server's number of tokens; 0 for a value that cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 < value < _MOST_TOKENS else 0
