"""A real HTTP server on the loopback that answers as a chat-completion server does,
well or badly.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server sends: a status and a body; `stated` bytes are announced, after
    `delay` seconds.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    delay: float = 0.0
    stated: int | None = None
    drip: float | None = (
        None  # seconds between bytes of a body that never ends; 0 for as fast as it goes
    )


def completion(
    text: str | None,
    *,
    probabilities: Mapping[str, float] | None = None,
    tokens: tuple[str, ...] = (),
    **fields: Any,
) -> Answer:
    """A chat completion; with `probabilities`, those of the first of its tokens."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
    }
    if probabilities is not None:
        top = [
            {"token": t, "logprob": math.log(p), "bytes": None}
            for t, p in probabilities.items()
        ]
        content = [
            {**top[0], "token": token, "top_logprobs": top}
            for token in tokens or (text,)
        ]
        choice["logprobs"] = {"content": content}
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-1-0101",
        "usage": usage,
    }
    return Answer(
        body={**body, "choices": [choice], "system_fingerprint": "fp_1", **fields}
    )


class LoopbackServer:
    """Counts and keeps requests; `rule(number from 0, request) -> Answer` decides what
    they get.
    """

    def __init__(self, rule: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.rule, self.requests = rule, list[dict[str, Any]]()
        self.open, self.most_open, self.lock = 0, 0, threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def calls(self) -> int:
        return len(self.requests)

    def answer(self, request: dict[str, Any]) -> Answer:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        found = self.rule(number, request)
        time.sleep(found.delay)
        with self.lock:
            self.open -= 1
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                found = server.answer(json.loads(self.rfile.read(length)))
                text = (
                    found.body
                    if isinstance(found.body, str)
                    else json.dumps(found.body)
                )
                try:
                    self.send_response(found.status)
                    headers = {
                        "content-type": found.kind,
                        "content-length": str(found.stated or len(text.encode())),
                    }
                    for name, value in {**headers, **found.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text.encode())
                    while found.drip is not None:
                        self.wfile.write(b" " * (1 if found.drip else 2**20))
                        self.wfile.flush()
                        time.sleep(found.drip)
                except OSError:
                    pass  # the client gave up waiting
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(rule: Callable[[int, dict[str, Any]], Answer]) -> Iterator[LoopbackServer]:
    """A server that runs while the block lasts."""
    server = LoopbackServer(rule)
    thread = threading.Thread(
        target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
