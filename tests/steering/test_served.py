"""Completions of a server on the loopback that behaves, misbehaves, or dies."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from etils import epath

from sae_attr.lm.draw import Sampling
from sae_attr.server.address import Patience, Server, openai_client
from sae_attr.server.attempts import Endpoint
from sae_attr.server.budget import CallBudget
from sae_attr.steering.answer_tokens import Answer, answer_ids
from sae_attr.steering.plan import UNSTEERED, Condition, Plan, row_seeds
from sae_attr.steering.served import SamplesStopped, ServedSampler, served_batches
from sae_attr.steering.sweep import sample_rows
from sae_attr.store import Progress
from sae_attr.study import cost
from sae_attr.study.serving_settings import SampleServer
from sae_attr.text.tokenizer import Tokenizer, encode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.judge._server import Answer as Sent
from tests.judge._server import LoopbackServer, serving
from tests.miniatures import write_tokenizer

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="asking a server needs openai: pip install 'sae_attr[judge]'",
)
KEY = "secret/key+1"
QUICK = Patience(
    concurrency=3, timeout=2.0, retries=4, first_wait=0.01, longest_wait=0.1
)
PROMPTS = {"a": [0, 10, 11], "b": [0, 12], "c": [0, 13, 14, 15]}
PLAN = Plan((UNSTEERED,), tuple(PROMPTS), 2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    file = folder / "tokenizer.json"
    record = json.loads(file.read_text()) | {"decoder": {"type": "Fuse"}}
    file.write_text(json.dumps(record))
    return load_tokenizer(folder)


def sampler(
    server: LoopbackServer,
    tokenizer: Tokenizer,
    patience: Patience = QUICK,
    key: str = KEY,
    **more: Any,
) -> ServedSampler:
    client = openai_client(Server(server.url, "m", api_key=key), patience)
    create = client.completions.create
    if "messages" in more:
        create = client.chat.completions.create
    endpoint = Endpoint(create, key, patience, CallBudget(), verbatim=True)
    sampling = Sampling(max_new=20, top_p=0.9, stop_ids=(1, 3))
    seed = jax.random.key(5)
    return ServedSampler(endpoint, "m", PROMPTS, seed, sampling, tokenizer, **more)


def sent(text: str, finish: str = "stop", **fields: Any) -> Sent:
    """A plain completion."""
    choice = {"index": 0, "text": text, "finish_reason": finish, **fields}
    return Sent(body={"object": "text_completion", "model": "m", "choices": [choice]})


def text_of(request: dict[str, Any]) -> str:
    """What the scripted model writes, of prompt and seed alone."""
    return f"{len(request['prompt'])}, {request['seed'] % 1000}."


FAULTS = [
    Sent(429, {"error": {"message": KEY}}, {"retry-after": "0"}),
    Sent(500, {"error": {"message": KEY}}),
    Sent(200, '{"choices": [{"te', stated=400),
    Sent(200, f"<html>{KEY}</html>", kind="text/html"),
    Sent(200, {"choices": []}),
    Sent(200, {"choices": [{"text": None, "finish_reason": "stop"}]}),
]


@needs_openai
def test_every_row_gets_its_completion_through_all_faults(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def rule(number: int, request: dict[str, Any]) -> Sent:
        if number < len(FAULTS):
            return FAULTS[number]
        return sent(text_of(request))

    progress = Progress(epath.Path(tmp_path))
    with serving(rule) as server:
        ask = sampler(server, tokenizer, extra={"return_token_ids": True})
        sampled = sample_rows(
            PLAN.rows, lambda rows: served_batches(ask, rows), progress, bar=False
        )
        assert server.calls == len(FAULTS) + len(PLAN.rows)
    seeds = row_seeds(jax.random.key(5), PLAN.rows)
    assert len(set(seeds)) == len(PLAN.rows)
    assert row_seeds(jax.random.key(5), PLAN.rows[::-1]) == seeds[::-1]
    for row, seed, completion in zip(PLAN.rows, seeds, sampled, strict=True):
        text = text_of({"prompt": PROMPTS[row.prompt], "seed": seed})
        assert completion.row == row
        assert completion.ids == tuple(encode(tokenizer, text, add_bos=False)[0])
        assert completion.stopped
    last = server.requests[-1]
    assert (last["temperature"], last["top_p"], last["max_tokens"]) == (1.0, 0.9, 20)
    assert last["return_token_ids"] is True
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


@needs_openai
def test_what_arrived_is_not_asked_for_again(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    progress = Progress(epath.Path(tmp_path))
    dead = Patience(concurrency=1, timeout=2.0, retries=0, failures=2)
    rule = lambda number, request: (
        sent(text_of(request)) if number < 3 else Sent(500, {"error": {"message": KEY}})
    )
    with serving(rule) as server:
        ask = sampler(server, tokenizer, dead)
        with pytest.raises(
            SamplesStopped, match=r"gave 3 of 6 completions, 3 are left"
        ) as error:
            sample_rows(PLAN.rows, lambda rows: served_batches(ask, rows), progress)
    assert KEY not in str(error.value)
    assert "[key]" in str(error.value)
    with serving(lambda number, request: sent(text_of(request))) as server:
        ask = sampler(server, tokenizer)
        sample_rows(PLAN.rows, lambda rows: served_batches(ask, rows), progress)
        assert server.calls == 3


@needs_openai
def test_an_answer_that_is_no_sample_ends_the_stage_and_chats_send_messages(
    tokenizer: Tokenizer,
) -> None:
    def rule(number: int, request: dict[str, Any]) -> Sent:
        if len(request["prompt"]) == 2:
            return sent("", "content_filter")
        return sent("ü" if len(request["prompt"]) == 3 else "fine")

    with serving(rule) as server:
        ask = sampler(server, tokenizer)
        with pytest.raises(
            SamplesStopped,
            match=r"gave 2 of 6 .*4 are left: 4 got .*4 rows of 2 prompts: '.', '.'\)",
        ):
            list(served_batches(ask, PLAN.rows))
        steered = PLAN.rows[0]._replace(condition=Condition.steered(7, 1.0))
        with pytest.raises(ValueError, match="1 rows are steered"):
            list(served_batches(ask, [steered]))
    messages = {name: [{"role": "user", "content": name}] for name in PROMPTS}
    message = {"role": "assistant", "content": "yes\ufffd"}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    body = {"object": "chat.completion", "choices": [choice]}
    with serving(lambda number, request: Sent(body=body)) as server:
        ask = sampler(server, tokenizer, messages=messages, stop=("\n",))
        ((sampled,),) = served_batches(ask, PLAN.rows[:1])
        assert server.requests[0]["messages"] == messages["a"]
        assert server.requests[0]["stop"] == ["\n"]
    assert sampled.ids == tuple(encode(tokenizer, "yes", add_bos=False)[0])
    assert not sampled.stopped


@needs_openai
@pytest.mark.parametrize("key", ["test", "sk-Ab/1", "none"])
@pytest.mark.parametrize("by_ids", [False, True])
def test_a_sample_is_kept_word_for_word_or_not_at_all(
    tokenizer: Tokenizer, key: str, by_ids: bool
) -> None:
    texts = [key, base64.b64encode(key.encode()).decode()]
    for text in texts:
        ids, _ = encode(tokenizer, text, add_bos=False)
        answer = sent("", token_ids=ids) if by_ids else sent(text)
        with serving(lambda number, request, answer=answer: answer) as server:
            ask = sampler(server, tokenizer, key=key)
            if key == "none":  # what is sent where there is no key
                ((sampled,),) = served_batches(ask, PLAN.rows[:1])
                assert sampled.ids == tuple(ids)
                continue
            with pytest.raises(SamplesStopped, match="holds the server's key") as error:
                list(served_batches(ask, PLAN.rows[:1]))
        assert text not in str(error.value)


def test_samples_are_taken_from_no_endpoint_that_rewrites_answers(
    tokenizer: Tokenizer,
) -> None:
    endpoint = Endpoint(lambda: None, KEY, QUICK, CallBudget())
    with pytest.raises(ValueError, match="verbatim=True"):
        ServedSampler(endpoint, "m", PROMPTS, jax.random.key(5), Sampling(), tokenizer)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"extra": {"model": "x", "n": 2, "min_p": 0.1}}, "holds model, n, which"),
        ({"extra": {"max_completion_tokens": 9}}, "holds max_completion_tokens"),
        ({"extra": {"most": 9}, "token_field": "most"}, "holds most, which"),
        ({"timeout": math.nan}, "timeout is nan; give seconds above 0"),
        ({"longest_wait": math.inf}, "longest_wait is inf"),
        ({"first_wait": 0.0}, "first_wait is 0"),
        ({"failures": 0}, "failures is 0; give a number from 1"),
        ({"retries": -1}, "retries is -1; give a number from 0"),
        ({"concurrency": math.nan}, "concurrency is nan"),
        ({"max_calls": -1}, "budget of -1 max_calls"),
    ],
)
def test_settings_of_a_server_are_refused_with_their_names(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        SampleServer(**values)


def test_costs_count_what_each_direction_samples_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = SimpleNamespace(
        strengths_by="samples",
        strength_samples=2,
        coherence_samples=3,
        sampling=SimpleNamespace(max_new=10),
        sweeps_by="here",
    )
    case: Any = SimpleNamespace(
        name="a",
        study=study,
        files=SimpleNamespace(lm_aligned="aligned"),
        settings=SimpleNamespace(server=SampleServer(model="m", base_url="http://x")),
        runtime=SimpleNamespace(batch_size=4),
        prompts=lambda split: ("p", "q"),
    )
    monkeypatch.setattr(cost, "measures_coherence", lambda case: True)
    reading = cost.Reading(layers=1, above=1, widths={"strengths": 5})
    steps = {}
    for direction in ("away", "toward"):
        of_direction = cost._strengths_cost(case, reading, direction, 5)
        assert (of_direction.samples, of_direction.judged) == (26, 20)
        steps[direction] = of_direction.steps
    # The server has the model with the behaviour alone: 20 rows are 5 batches, 6 are 2.
    assert steps == {"away": 50, "toward": 70}


def test_ids_end_at_a_stop_token_and_at_the_limit(tokenizer: Tokenizer) -> None:
    def ids(answer: Answer, max_new: int = 9) -> Any:
        return answer_ids(answer, [0], tokenizer, stop_ids=(3,), max_new=max_new)

    assert ids(Answer("", [8, 9, 3, 7], "length")) == ((8, 9), True)
    assert ids(Answer("", [8, 9], "stop"), 3) == ((8, 9), True)
    assert ids(Answer("abc", None, "stop"), 2)[1] is False
    assert ids(Answer("", None, "stop")) == ((), True)
    with pytest.raises(ValueError, match="beyond the tokenizer's vocabulary"):
        ids(Answer("", [10_000], "stop"))
    with pytest.raises(ValueError, match="not what its tokens write"):
        ids(Answer("für", None, "stop"))
