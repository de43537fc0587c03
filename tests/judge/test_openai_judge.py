"""A judge behind a server that behaves, misbehaves, or has too small a budget."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sae_attr.judge import (
    Asking,
    BudgetExhausted,
    CallBudget,
    Grade,
    Item,
    JudgeStopped,
    Patience,
    Server,
    cached,
)
from sae_attr.judge.openai_judge import OpenAIJudge
from sae_attr.judge.rubric_files import load_rubric
from sae_attr.server.budget import Spent
from sae_attr.server.faults import Failed, retry_after
from sae_attr.server.secret import hider
from tests.judge._server import Answer, LoopbackServer, completion, serving

if importlib.util.find_spec("openai") is None:
    pytest.skip(
        "a judge behind a server needs openai: pip install 'sae_attr[judge]'",
        allow_module_level=True,
    )

QUICK = Patience(
    concurrency=4, timeout=5.0, retries=3, first_wait=0.01, longest_wait=1.0
)
ONE = Patience(concurrency=1, timeout=5.0, retries=3, first_wait=0.01, longest_wait=1.0)
GOOD = completion("It harms nobody.\nANSWER: 2")


def items(count: int) -> list[Item]:
    return [Item(f"i{k}", "What now?", f"Answer number {k}.") for k in range(count)]


def judge(
    server: LoopbackServer, rubric: str = "misalignment", **options: Any
) -> OpenAIJudge:
    options = {"patience": QUICK, **options}
    return OpenAIJudge(
        Server(server.url, "judge-1", api_key="secret-key", name="loopback"),
        load_rubric(rubric),
        **options,
    )


def graded(
    judge: Any, wanted: list[Item]
) -> tuple[dict[str, Grade], JudgeStopped | None]:
    """What was yielded, and the error that ended it."""
    found: dict[str, Grade] = {}
    try:
        for name, grade in judge.grade(wanted):
            found[name] = grade
    except JudgeStopped as error:
        return found, error
    return found, None


def first_then(first: Answer, count: int = 1) -> Any:
    """A rule: `count` bad answers, then good ones."""
    return lambda number, request: first if number < count else GOOD


# ---- answers


def test_a_text_answer_becomes_a_grade_with_who_gave_it() -> None:
    with serving(lambda n, r: completion("Cruel.\nANSWER: 5")) as server:
        j = judge(server)
        found, error = graded(j, items(3))
    assert error is None
    assert set(found) == {"i0", "i1", "i2"}
    grade = found["i0"]
    assert (grade.label, grade.score, grade.behaviour, grade.coherent) == (
        "5",
        5.0,
        1.0,
        1.0,
    )
    assert grade.details == {
        "model": "judge-1-0101",
        "fingerprint": "fp_1",
        "finish": "stop",
        "tokens": 100,
    }
    assert grade.raw == "Cruel.\nANSWER: 5"
    assert j.served == {("judge-1-0101", "fp_1"): 3}
    assert (j.budget.calls, j.budget.tokens) == (3, 300)
    assert j.warnings == []
    request = server.requests[0]
    assert (
        request["temperature"],
        request["seed"],
        request["model"],
        request["max_tokens"],
    ) == (
        0.0,
        0,
        "judge-1",
        600,
    )
    assert "logprobs" not in request
    assert "Answer number" in request["messages"][0]["content"]


def test_the_identity_holds_every_setting_and_no_key() -> None:
    with serving(lambda n, r: GOOD) as server:
        plain, other = judge(server), judge(server, asking=Asking(seed=1))
        patient = judge(server, patience=ONE)
    assert plain.identity == patient.identity != other.identity
    assert plain.identity["rubric"]["hash"] == load_rubric("misalignment").hash
    assert "secret-key" not in repr(plain.identity) + repr(plain.server)


def test_a_weighted_score_is_the_mean_over_numbers() -> None:
    answer = completion("80", probabilities={"80": 0.5, "20": 0.25, "REFUSAL": 0.25})
    with serving(lambda n, r: answer) as server:
        found, _ = graded(judge(server, "alignment_0_100"), items(1))
    assert server.requests[0]["logprobs"] is True
    assert server.requests[0]["top_logprobs"] == 20
    assert found["i0"].score == pytest.approx((80 * 0.5 + 20 * 0.25) / 0.75)
    assert found["i0"].weighted
    assert found["i0"].behaviour == 0.0


def test_little_probability_on_numbers_leaves_the_text() -> None:
    answer = completion(
        "REFUSAL", probabilities={"REFUSAL": 0.9, "0": 0.05, "10": 0.05}
    )
    with serving(lambda n, r: answer) as server:
        found, _ = graded(judge(server, "alignment_0_100"), items(1))
    assert (found["i0"].label, found["i0"].excluded, found["i0"].score) == (
        "REFUSAL",
        True,
        None,
    )


def test_a_tokenizer_that_splits_numbers_is_read_by_its_text() -> None:
    """A mean over first digits would call 85 an 8, which is extremely misaligned."""
    answer = completion("85", probabilities={"8": 0.9, "9": 0.1}, tokens=("8", "5"))
    with serving(lambda n, r: answer) as server:
        found, _ = graded(judge(server, "alignment_0_100"), items(1))
    assert (found["i0"].score, found["i0"].weighted, found["i0"].behaviour) == (
        85.0,
        False,
        0.0,
    )


@pytest.mark.parametrize("refused", [False, True], ids=["gives-none", "refuses"])
def test_without_token_probabilities_the_text_is_read_and_that_is_said(
    refused: bool,
) -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        if refused and "logprobs" in request:
            return Answer(400, {"error": {"message": "logprobs are not supported"}})
        return completion("30")

    with serving(rule) as server:
        j = judge(server, "alignment_0_100", patience=ONE)
        found, error = graded(j, items(4))
        strict = judge(server, "alignment_0_100", asking=Asking(answers="logprobs"))
        _, problem = graded(strict, items(1))
    assert error is None
    assert [g.score for g in found.values()] == [30.0] * 4
    assert not any(g.weighted for g in found.values())
    assert len(j.warnings) == 1
    assert "token probabilities" in j.warnings[0]
    asked = sum("logprobs" in request for request in server.requests)
    assert asked == (
        3 + 1 if refused else 4 + 1
    )  # the second judge asks once; who only refuses is not asked for ever
    assert problem is not None
    assert "answers='auto'" in str(problem)


@pytest.mark.parametrize(
    "words", ["top_logprobs must be at most 5", "top_logprobs is too large"]
)
def test_a_server_that_allows_fewer_alternatives_is_asked_for_what_it_allows(
    words: str,
) -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        if request["top_logprobs"] > 5:
            return Answer(400, {"error": {"message": words}})
        return completion("30", probabilities={"30": 0.5, "50": 0.5})

    with serving(rule) as server:
        j = judge(server, "alignment_0_100", patience=ONE)
        found, error = graded(j, items(3))
    assert error is None
    assert {(grade.score, grade.weighted) for grade in found.values()} == {(40.0, True)}
    assert [request["top_logprobs"] for request in server.requests] == [20, 5, 5, 5]
    assert any("allows 5 alternatives" in text for text in j.warnings)


def test_temperature_and_seed_can_be_left_out_and_other_fields_put_in() -> None:
    asking = Asking(
        omit=("temperature", "seed"),
        token_field="max_completion_tokens",
        extra={"reasoning_effort": "low"},
    )
    with serving(lambda n, r: GOOD) as server:
        graded(judge(server, asking=asking), items(1))
        with pytest.raises(ValueError, match="only seed, temperature can be left out"):
            judge(server, asking=Asking(omit=("model",)))
        with pytest.raises(ValueError, match=r"judge\.extra holds messages, seed"):
            judge(server, asking=Asking(extra={"seed": 1, "messages": [], "x": 1}))
    request = server.requests[0]
    assert not {"temperature", "seed", "max_tokens"} & set(request)
    assert request["reasoning_effort"] == "low"
    assert request["max_completion_tokens"] > 0


@pytest.mark.parametrize("bad", ["empty", "refused", "no-tokens"])
def test_one_odd_reply_changes_how_no_other_is_read(bad: str) -> None:
    """One empty reply of 200 made text of all that followed: a weighted 40.75 became
    "misaligned".
    """
    weighed = completion("30", probabilities={"30": 0.6, "60": 0.4})
    odd = {
        "empty": completion(""),
        "no-tokens": completion("70"),
        "refused": Answer(400, {"error": {"message": "logprobs are not supported"}}),
    }[bad]

    def rule(number: int, request: dict[str, Any]) -> Answer:
        if "number 1." not in request["messages"][0]["content"]:
            return weighed
        return (
            completion("70") if bad == "refused" and "logprobs" not in request else odd
        )

    with serving(rule) as server:
        found, error = graded(judge(server, "alignment_0_100", patience=ONE), items(40))
    assert error is None
    others = [grade for name, grade in found.items() if name != "i1"]
    assert all(grade.weighted for grade in others)
    assert [grade.score for grade in others] == pytest.approx([42.0] * 39)
    assert (found["i1"].score, found["i1"].weighted) == (
        (None, False) if bad == "empty" else (70.0, False)
    )


@pytest.mark.parametrize(
    ("text", "probabilities", "tokens", "score", "weighted"),
    [
        ("85", {"8": 0.9, "0": 0.1}, ("8", "5"), 85.0, False),  # digits one by one
        (
            "5",
            {"5": 0.9, "8": 0.1},
            ("5",),
            5.0,
            False,
        ),  # the 8 is the beginning of an eighty
        ("5", {"5": 0.9, "85": 0.1}, ("5",), 13.0, True),
        ("100", {"100": 0.5, "90": 0.5}, ("100",), 95.0, True),
        ("100", {"1": 1.0}, ("1", "0", "0"), 100.0, False),
        ("0", {"0": 0.999, "1": 0.001}, ("0",), 0.001, True),
        ("0.85", {"0": 0.9, "1": 0.1}, ("0", ".", "85"), None, False),
        ("101", {"101": 0.9, "99": 0.1}, ("101",), None, False),
        ("-5", {"-": 0.9, "5": 0.1}, ("-", "5"), None, False),
        ("085", {"085": 0.9, "85": 0.1}, ("085",), None, False),
        ("1e2", {"1": 0.9, "10": 0.1}, ("1", "e", "2"), None, False),
        ("٨٥", {"٨٥": 1.0}, ("٨٥",), None, False),
    ],
)
def test_numbers_are_followed_to_their_end_and_odd_ones_are_malformed(
    text: str,
    probabilities: dict[str, float],
    tokens: tuple[str, ...],
    score: float | None,
    weighted: bool,
) -> None:
    answer = completion(text, probabilities=probabilities, tokens=tokens)
    with serving(lambda n, r: answer) as server:
        found, _ = graded(
            judge(server, "alignment_0_100", asking=Asking(again=0)), items(1)
        )
    grade = found["i0"]
    assert grade.score == (None if score is None else pytest.approx(score))
    assert (grade.weighted, grade.malformed) == (weighted, score is None)


def test_answers_that_do_not_fit_the_rubric_are_refused() -> None:
    with serving(lambda n, r: GOOD) as server:
        with pytest.raises(ValueError, match="reasoned answers"):
            judge(server, asking=Asking(answers="logprobs"))
        with pytest.raises(ValueError, match="choose auto, logprobs or text"):
            judge(server, asking=Asking(answers="json"))
        with pytest.raises(ValueError, match="stand twice"):
            judge(server).grade([*items(1), *items(1)])


# ---- faults of the server

PASSING = {
    "429": Answer(429, {"error": {"message": "slow down"}}),
    "429-retry-after": Answer(
        429, {"error": {"message": "slow down"}}, {"retry-after": "0.05"}
    ),
    "500": Answer(500, {"error": {"message": "broken"}}),
    "503-html": Answer(503, "<html>down</html>", kind="text/html"),
    "408": Answer(408, {}),
    "nonsense": Answer(200, "}{ no json"),
    "html": Answer(200, "<html>hello</html>", kind="text/html"),
    "other-json": Answer(200, {"answer": 5}),
    "no-choices": Answer(200, {"id": "c", "object": "chat.completion", "choices": []}),
    "json-list": Answer(200, [1, 2]),
    "json-null": Answer(200, "null"),
    "cut-short": Answer(200, '{"id": "c", "choi', stated=4000),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_asked_again(name: str) -> None:
    with serving(first_then(PASSING[name], 2)) as server:
        j = judge(server, patience=ONE)
        found, error = graded(j, items(2))
    assert error is None
    assert [g.score for g in found.values()] == [2.0, 2.0]
    assert server.calls == 4
    assert j.budget.calls == 4  # a call that failed is a call


def test_a_server_that_hangs_is_asked_again() -> None:
    patience = Patience(concurrency=1, timeout=0.15, retries=2, first_wait=0.01)
    with serving(first_then(Answer(200, {}, delay=0.4))) as server:
        found, error = graded(judge(server, patience=patience), items(1))
    assert error is None
    assert found["i0"].score == 2.0
    assert server.calls == 2


@pytest.mark.parametrize("name", ["500", "other-json", "429"])
def test_a_lasting_fault_ends_after_so_many_failures(name: str) -> None:
    patience = Patience(
        concurrency=2, timeout=5.0, retries=1, first_wait=0.01, failures=3
    )
    with serving(lambda n, r: GOOD if n < 2 else PASSING[name]) as server:
        found, error = graded(judge(server, patience=patience), items(50))
    assert len(found) == 2
    assert error is not None
    assert (error.graded, error.left) == (2, 48)
    assert "graded 2 of 50 items" in str(error)
    assert "run again" in str(error)
    assert server.calls <= 2 + 2 * (3 + 2)  # not 100


ONE_BAD = {
    "500": PASSING["500"],
    "400": Answer(
        400, {"error": {"message": "this model's maximum context length is 8 tokens"}}
    ),
    "413": Answer(413, "<html>too large</html>", kind="text/html"),
    "422": Answer(422, {"error": {"message": "cannot be processed"}}),
    "nested": Answer(200, "[" * 100_000),
    "deep-field": Answer(200, '{"choices": ' + "[" * 5000 + "]" * 5000 + "}"),
    "other-encoding": Answer(
        200, "\udce9".encode("utf-8", "surrogatepass").decode("latin-1")
    ),
    "usage-1e400": Answer(
        200, '{"choices": [{"message": 1}], "usage": {"total_tokens": 1e400}}'
    ),
}


@pytest.mark.parametrize("name", ONE_BAD)
def test_one_bad_question_costs_no_other(name: str, tmp_path: Path) -> None:
    rule = lambda n, r: (
        ONE_BAD[name] if "number 1." in r["messages"][0]["content"] else GOOD
    )
    with serving(rule) as server:
        j = judge(server)
        found, error = graded(cached(j, tmp_path), items(6))
        assert error is None
        assert [found[f"i{k}"].score for k in (0, 2, 3, 4, 5)] == [2.0] * 5
        lost = found["i1"]
        assert (lost.malformed, lost.behaviour, lost.raw) == (True, None, "")
        assert lost.details["error"]
        assert any("1 of 6 questions got no answer" in text for text in j.warnings)
        server.rule = lambda n, r: (
            GOOD
        )  # mended: the next run asks for the lost one alone
        calls = server.calls
        again, _ = graded(cached(judge(server), tmp_path), items(6))
    assert again["i1"].score == 2.0
    assert server.calls == calls + 1


def test_too_many_unanswered_questions_end_in_one_message() -> None:
    rule = lambda n, r: (
        ONE_BAD["400"]
        if re.search(r"number \d*[02468]\.", r["messages"][0]["content"])
        else GOOD
    )
    with serving(rule) as server:
        found, error = graded(judge(server, patience=ONE), items(40))
    assert len(found) == 20
    assert error is not None
    assert (error.graded, error.left) == (20, 20)
    assert "20 got no answer, the last because the server refused with 400" in str(
        error
    )
    assert "at most 4 may stay without one (unanswered=0.1)" in str(error)


def test_probabilities_that_can_be_none_are_left_out() -> None:
    answer = completion("30", probabilities={"30": 0.5, "20": 0.25, "90": 0.25})
    top = answer.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    top[1]["logprob"], top[2]["logprob"] = float("nan"), 1e308
    with serving(lambda n, r: answer) as server:
        found, error = graded(judge(server, "alignment_0_100"), items(1))
    assert error is None
    assert found["i0"].score == 30.0


def test_half_a_character_is_sent_as_a_question_mark() -> None:
    with serving(lambda n, r: GOOD) as server:
        found, error = graded(judge(server), [Item("a", "What now?", "cut \ud83d")])
    assert error is None
    assert found["a"].score == 2.0
    assert "cut ?" in server.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize("drip", [0.05, 0.0], ids=["dripping", "endless"])
def test_a_reply_that_never_ends_is_given_up(drip: float) -> None:
    """Every byte comes in time, so a time-out of the connection alone would wait for
    ever.
    """
    patience = Patience(concurrency=1, timeout=0.4, retries=0, failures=1)
    began = time.monotonic()
    with serving(lambda n, r: Answer(200, "{", stated=10**12, drip=drip)) as server:
        found, error = graded(judge(server, patience=patience), items(2))
    assert found == {}
    assert "not whole after 0.4 s" in str(error) or "more than" in str(error)
    assert time.monotonic() - began < 5


def test_a_redirect_is_not_followed_and_counts_once(tmp_path: Path) -> None:
    with serving(lambda n, r: GOOD) as elsewhere:
        moved = Answer(307, "", {"location": f"{elsewhere.url}/chat/completions"})
        with serving(lambda n, r: moved) as server:
            j = judge(
                server, patience=ONE, budget=CallBudget(ledger=tmp_path / "spent")
            )
            found, error = graded(j, items(3))
            calls = server.calls
    assert found == {}
    assert "redirect, which is not followed" in str(error)
    assert (calls, elsewhere.calls) == (1, 0)
    assert CallBudget(ledger=tmp_path / "spent").calls == 1


KEY_ECHOES = {
    "reply": completion("Your key is secret-key.\nANSWER: 2"),
    "malformed": completion("secret-key"),
    "version": completion(
        "ANSWER: 2", model="m secret-key", system_fingerprint="secret-key"
    ),
    "400": Answer(
        400, {"error": {"message": "Authorization: Bearer secret-key is odd"}}
    ),
    "401": Answer(401, {"error": {"message": "bad \x1b[31m key secret-key"}}),
    "500": Answer(500, {"error": {"message": f"{'x' * 290} secret-key"}}),
    "html": Answer(200, "<html>secret-key</html>", kind="text/html"),
    "other-json": Answer(200, {"headers": {"authorization": "Bearer secret-key"}}),
}


@pytest.mark.parametrize("name", KEY_ECHOES)
def test_the_key_is_nowhere_whatever_the_server_sends(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    patience = Patience(concurrency=1, retries=1, first_wait=0.01, failures=1)
    with serving(lambda n, r: KEY_ECHOES[name]) as server:
        j = judge(
            server, patience=patience, budget=CallBudget(ledger=tmp_path / "spent")
        )
        found, error = graded(cached(j, tmp_path), items(2))
    files = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
    output = capsys.readouterr()
    everything = f"{found} {error!r} {error and error.__cause__!r} {j.warnings} {j.served} {output} {caplog.text}"
    assert "secret-" not in everything + files.decode()
    assert str(error).isprintable()


FATAL = {
    "key": (Answer(401, {"error": {"message": "bad key"}}), "401"),
    "model": (Answer(404, {"error": {"message": "no such model"}}), "no such model"),
    "field": (
        Answer(400, {"error": {"message": "use max_completion_tokens"}}),
        "token_field='max_completion_tokens'",
    ),
    "quota": (
        Answer(429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
        "quota",
    ),
    "too-long": (
        Answer(429, {"error": {"message": "slow"}}, {"retry-after": "3600"}),
        "asks to wait 3600 s",
    ),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_fault_that_waiting_does_not_mend_ends_at_once(name: str) -> None:
    answer, words = FATAL[name]
    patience = Patience(concurrency=1, timeout=5.0, retries=3, failures=1)
    with serving(lambda n, r: answer) as server:
        found, error = graded(judge(server, patience=patience), items(20))
    assert found == {}
    assert words in str(error)
    assert server.calls == 1


def test_no_server_at_all_is_said() -> None:
    with serving(lambda n, r: GOOD) as server:
        j = judge(
            server,
            patience=Patience(concurrency=1, retries=1, first_wait=0.01, failures=1),
        )
    found, error = graded(j, items(3))
    assert found == {}
    assert "no connection" in str(error)


def test_a_filtered_question_is_kept_as_malformed() -> None:
    answer = Answer(400, {"error": {"message": "filtered", "code": "content_filter"}})
    with serving(lambda n, r: answer if n == 0 else GOOD) as server:
        found, error = graded(judge(server, patience=ONE), items(2))
    assert error is None
    assert found["i0"].malformed
    assert found["i0"].details == {"error": "content_filter"}
    assert found["i1"].score == 2.0


def test_malformed_replies_are_asked_again_then_kept() -> None:
    rule = lambda n, r: (
        completion(f"Fine, I guess {n}")
        if r["messages"][0]["content"].count("number 0.")
        else GOOD
    )
    with serving(rule) as server:
        found, error = graded(judge(server, patience=ONE), items(2))
    assert error is None
    grade = found["i0"]
    assert (grade.malformed, grade.label, grade.score, grade.behaviour) == (
        True,
        "MALFORMED",
        None,
        None,
    )
    assert (grade.discarded, grade.raw) == (("Fine, I guess 0",), "Fine, I guess 1")
    assert [r["seed"] for r in server.requests] == [0, 1, 0]


def test_an_empty_message_is_malformed() -> None:
    with serving(lambda n, r: completion(None)) as server:
        found, _ = graded(judge(server, asking=Asking(again=0)), items(1))
    assert found["i0"].malformed
    assert found["i0"].raw == ""


def test_a_number_that_was_cut_short_is_malformed() -> None:
    answer = completion("8")
    answer.body["choices"][0]["finish_reason"] = "length"
    with serving(lambda n, r: answer) as server:
        found, _ = graded(
            judge(server, "alignment_0_100", asking=Asking(answers="text", again=0)),
            items(1),
        )
    assert found["i0"].malformed


def test_retry_after_is_waited_for() -> None:
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert (retry_after({"retry-after": "Wed, 21 Oct 2105 07:28:00 GMT"}) or 0) > 1e6
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_a_date_that_is_beyond_the_calendar_here_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-14")
        time.tzset()
        wait = retry_after({"retry-after": "Fri, 31 Dec 9999 23:59:59 -0000"})
    time.tzset()
    assert wait is None


class Watched(threading.Event):
    """An event that notes how long it was asked to wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


@pytest.mark.parametrize("stated", [None, "7"])
def test_the_back_off_doubles_with_jitter_and_gives_way_to_retry_after(
    stated: str | None,
) -> None:
    answer = Answer(429, {}, {} if stated is None else {"retry-after": stated})
    patience, halt = Patience(retries=4, first_wait=1.0, longest_wait=8.0), Watched()
    with serving(lambda n, r: answer) as server:
        j = judge(server, patience=patience)
        request = {"model": "judge-1", "messages": [{"role": "user", "content": "hi"}]}
        with pytest.raises(Failed, match=r"429.*sent 5 times"):
            j._endpoint.ask(request, halt)
    if stated is not None:
        assert halt.waits == [7.0] * 4
    else:
        assert all(
            wait / 2 <= found <= wait
            for found, wait in zip(halt.waits, [1, 2, 4, 8], strict=True)
        )
        assert len(set(halt.waits)) == 4


def test_no_more_questions_are_under_way_than_allowed() -> None:
    with serving(lambda n, r: Answer(body=GOOD.body, delay=0.02)) as server:
        graded(judge(server, patience=Patience(concurrency=3)), items(12))
    assert server.most_open <= 3
    with serving(lambda n, r: Answer(body=GOOD.body, delay=0.3)) as server:
        graded(judge(server, patience=Patience(concurrency=3)), items(3))
    assert server.most_open == 3


def test_a_caller_that_stops_leaves_no_thread() -> None:
    with serving(lambda n, r: GOOD if n == 0 else PASSING["500"]) as server:
        grades = judge(server, patience=Patience(concurrency=2, first_wait=60.0)).grade(
            items(10)
        )
        next(grades)
        grades.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("judge")
    ]


def test_a_change_of_the_served_version_and_uncounted_tokens_are_said() -> None:
    rule = lambda n, r: completion(
        "ANSWER: 1", system_fingerprint=f"fp_{n}", usage=None
    )
    with serving(rule) as server:
        j = judge(server, patience=ONE)
        graded(j, items(3))
    assert any("more than one version" in text for text in j.warnings)
    assert any("does not count tokens" in text for text in j.warnings)
    assert j.budget.tokens > 300


# ---- budgets


def test_a_budget_that_runs_out_keeps_what_is_graded_and_goes_on_with_a_larger_one(
    tmp_path: Path,
) -> None:
    with serving(lambda n, r: GOOD) as server:
        j = judge(server, budget=CallBudget(calls=7, ledger=tmp_path / "spent"))
        found, error = graded(cached(j, tmp_path / "grades"), items(20))
        assert isinstance(error, BudgetExhausted)
        assert (len(found), error.graded, error.left, server.calls) == (7, 7, 13, 7)
        assert re.search(
            r"graded 7 of 20 items, 13 are left: the budget of 7 calls is spent",
            str(error),
        )
        assert (
            "run again with a larger budget to go on (about 13 calls and 1,300 tokens "
            "more)" in str(error)
        )

        same = judge(server, budget=CallBudget(calls=7, ledger=tmp_path / "spent"))
        again, error = graded(cached(same, tmp_path / "grades"), items(20))
        assert again == found
        assert isinstance(error, BudgetExhausted)
        assert server.calls == 7

        larger = judge(server, budget=CallBudget(calls=20, ledger=tmp_path / "spent"))
        whole, error = graded(cached(larger, tmp_path / "grades"), items(20))
        assert error is None
        assert len(whole) == 20
        assert server.calls == 20


def test_a_budget_in_tokens_is_kept() -> None:
    asking = Asking(reply_tokens=50)
    with serving(lambda n, r: GOOD) as server:
        j = judge(server, asking=asking, budget=CallBudget(tokens=1500))
        found, error = graded(j, items(20))
    assert isinstance(error, BudgetExhausted)
    assert "1,500 tokens has no room" in str(error)
    assert 0 < j.budget.tokens <= 1500
    assert 100 * len(found) == j.budget.tokens


def test_the_second_run_calls_nobody(tmp_path: Path) -> None:
    with serving(lambda n, r: GOOD) as server:
        first, _ = graded(cached(judge(server), tmp_path), items(5))
        calls = server.calls
        second, _ = graded(cached(judge(server), tmp_path), items(5))
    assert calls == server.calls == 5
    assert first == second


def test_a_call_that_a_kill_cut_short_is_in_the_ledger(tmp_path: Path) -> None:
    budget = CallBudget(calls=3, ledger=tmp_path)
    budget.settle(budget.take(100), 60)
    budget.take(100)  # and then the process is killed
    later = CallBudget(calls=3, ledger=tmp_path)
    assert (later.calls, later.tokens) == (2, 160)
    later.settle(later.take(10), 10)
    with pytest.raises(Spent, match="budget of 3 calls is spent"):
        later.take(1)


def test_the_estimate_of_a_continued_run_is_of_its_own_calls(tmp_path: Path) -> None:
    with serving(lambda n, r: GOOD if n >= 3 else PASSING["500"]) as server:
        first = judge(
            server, patience=ONE, budget=CallBudget(calls=8, ledger=tmp_path / "spent")
        )
        graded(
            cached(first, tmp_path), items(20)
        )  # 3 of the 8 calls were lost on the first question
        second = judge(
            server, patience=ONE, budget=CallBudget(calls=13, ledger=tmp_path / "spent")
        )
        _, error = graded(cached(second, tmp_path), items(20))
    assert isinstance(error, BudgetExhausted)
    assert (error.graded, error.left) == (5, 10)
    assert "(about 10 calls and 1,000 tokens more)" in str(error)


def test_address_patience_and_budget_are_no_part_of_the_identity(
    tmp_path: Path,
) -> None:
    with serving(lambda n, r: GOOD) as server, serving(lambda n, r: GOOD) as other:
        graded(cached(judge(server), tmp_path), items(3))
        moved = OpenAIJudge(
            Server(other.url, "judge-1"),
            load_rubric("misalignment"),
            patience=ONE,
            budget=CallBudget(calls=1),
        )
        found, error = graded(cached(moved, tmp_path), items(3))
    assert error is None
    assert len(found) == 3
    assert other.calls == 0


# ---- one odd reply or refusal ends nothing

ECHO = Answer(
    400,
    {
        "error": {
            "message": "input too long: {logprobs: null, max_completion_tokens: null}"
        }
    },
)
ODD = {
    "echo": ECHO,
    "moderation": Answer(403, {"error": {"message": "flagged"}}),
    "surrogate": Answer(
        200, json.dumps(completion("\ud800\nANSWER: 2", model="\udfff").body)
    ),
    "long-names": completion(
        "ANSWER: 2", model="m" * 100_000, system_fingerprint="f" * 100_000
    ),
}


@pytest.mark.parametrize("rubric", ["misalignment", "alignment_0_100"])
@pytest.mark.parametrize("name", ODD)
def test_what_one_question_meets_neither_stops_nor_crashes_others(
    name: str, rubric: str, tmp_path: Path
) -> None:
    text = "ANSWER: 2" if rubric == "misalignment" else "80"
    other = completion(text, probabilities={"80": 0.6, "20": 0.4})
    rule = lambda n, r: (
        ODD[name] if "number 3." in r["messages"][0]["content"] else other
    )
    with serving(rule) as server:
        found, error = graded(cached(judge(server, rubric), tmp_path), items(9))
    assert error is None
    assert len(found) == 9
    assert sum(grade.malformed for grade in found.values()) <= 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) < 20_000


def test_a_filter_behind_a_refusal_of_probabilities_is_one_unread_grade() -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        if "number 3." not in request["messages"][0]["content"]:
            return completion("80", probabilities={"80": 0.6, "20": 0.4})
        if "logprobs" in request:
            return Answer(400, {"error": {"message": "no logprobs here"}})
        return Answer(400, {"error": {"message": "x", "code": "content_filter"}})

    with serving(rule) as server:
        found, error = graded(judge(server, "alignment_0_100"), items(9))
    assert error is None
    assert [name for name, grade in found.items() if grade.malformed] == ["i3"]


def test_many_refused_samples_of_one_prompt_do_not_stop_the_run() -> None:
    bad = {f"number {k}." for k in range(20, 28)}
    rule = lambda n, r: (
        ECHO if any(name in r["messages"][0]["content"] for name in bad) else GOOD
    )
    with serving(rule) as server:
        found, error = graded(judge(server, patience=ONE), items(100))
    assert error is None
    assert sum(grade.malformed for grade in found.values()) == 8


FEW_TRIES = Patience(concurrency=1, timeout=5.0, retries=0, failures=5)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_prompt_on_which_the_server_fails_does_not_stop_the_others(
    concurrency: int,
) -> None:
    """All samples of one prompt come in a row, and the server breaks on each."""
    bad = [Item(f"bad{k}", "Break!", f"Sample {k}.") for k in range(8)]
    patience = replace(FEW_TRIES, concurrency=concurrency)
    rule = lambda n, r: (
        PASSING["500"] if "Break!" in r["messages"][0]["content"] else GOOD
    )
    with serving(rule) as server:
        found, error = graded(judge(server, patience=patience), bad + items(92))
    assert error is None
    assert sum(grade.malformed for grade in found.values()) == 8
    assert sum(grade.score == 2.0 for grade in found.values()) == 92


def test_a_dead_server_stops_soon_also_where_every_prompt_has_many_samples() -> None:
    questions = [Item(f"i{k}", f"Prompt {k // 20}", "Yes.") for k in range(200)]
    with serving(lambda n, r: PASSING["500"]) as server:
        found, error = graded(judge(server, patience=FEW_TRIES), questions)
    assert found == {}
    assert isinstance(error, JudgeStopped)
    assert server.calls == 6  # five about one prompt, and one about another


def test_the_key_is_taken_out_of_addresses_json_and_base64_too() -> None:
    key = "sk-Secret/key+42=="
    encoded = base64.b64encode(key.encode()).decode()
    shown = hider(key)(
        f"{key} {quote(key, safe='')} {json.dumps(key)} {encoded} sk-Secret\\/key+42=="
    )
    assert "ecret" not in shown
    assert encoded not in shown
