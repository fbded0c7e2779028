"""Engines that fail, are busy, are away, or speak nonsense: what is asked again, held, and given up."""

import json
import threading
from collections.abc import Callable
from functools import partial
from http.client import IncompleteRead
from pathlib import Path

import pytest
from engine_stub import Asked, Behaviour, EngineStub, Gate, completion, engine_stub
from gateway_process import TOKEN, Answer, GatewayProcess, chat, engine_of, route_to
from waiting import DEADLINE_SECONDS, eventually, in_background

from evalrpc.engines.gateway.contract import Counters, Engine


def counters_of(gateway: GatewayProcess) -> Counters:
    counters = gateway.client.counters(TOKEN)
    assert counters is not None
    return counters


def fails_first(times: int, fail: Behaviour) -> Behaviour:
    """Return the behaviour of an engine that fails some times, and answers then."""

    def behave(asked: Asked) -> None:
        if asked.handler.server.questions <= times:
            fail(asked)
        else:
            asked.answer(completion("at last"))

    return behave


def _hang_up(asked: Asked) -> None:
    asked.hang_up()


def _break_off(asked: Asked) -> None:
    asked.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"choices": [')
    asked.hang_up()


def _break_off_chunks(asked: Asked) -> None:
    asked.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho\r\n')
    asked.hang_up()


def _break_off_without_length(asked: Asked) -> None:
    asked.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"choices": [')
    asked.hang_up()


FAILURES: dict[str, Behaviour] = {
    "500": lambda asked: asked.answer({"error": "oh"}, 500),
    "502": lambda asked: asked.send(b"<html>", 502, "text/html"),
    "504": lambda asked: asked.answer({}, 504),
    "429": lambda asked: asked.answer({}, 429),
    "429 with a time": lambda asked: asked.answer({}, 429, Retry_After="0"),
    "429 with a date": lambda asked: asked.answer({}, 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "503": lambda asked: asked.answer({}, 503),
    "529": lambda asked: asked.answer({}, 529),
    "an error with status 200": lambda asked: asked.answer({"error": {"message": "oh"}}),
    "no JSON": lambda asked: asked.send(b"<html>busy</html>"),
    "no object": lambda asked: asked.send(b"[]"),
    "deep JSON": lambda asked: asked.send(b"[" * 100_000),
    "nothing": lambda asked: asked.send(b""),
    "hang up": _hang_up,
    "break off": _break_off,
    "break off chunks": _break_off_chunks,
    "break off without length": _break_off_without_length,
    "no HTTP": lambda asked: asked.write(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "two lengths": lambda asked: asked.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "length and chunks": lambda asked: asked.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    ),
    "another protocol": lambda asked: asked.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
    "headers without end": lambda asked: asked.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_asked_again(served: GatewayProcess, stub: EngineStub, failure: str) -> None:
    stub.behave = fails_first(2, FAILURES[failure])
    answer = served.ask(chat("hi"))
    assert (answer.status, answer.text) == (200, "at last")
    counters = counters_of(served)
    assert (counters.answered, counters.retried, counters.failed, counters.unavailable) == (1, 2, 0, 0)
    assert stub.questions == 3


def test_what_fails_each_time_is_given_up_with_the_engines_own_error(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = FAILURES["500"]
    answer = served.ask(chat("hi"))
    assert (answer.status, json.loads(answer.body)) == (500, {"error": "oh"})
    assert stub.questions == 4
    assert (counters_of(served).failed, counters_of(served).retried) == (1, 3)


def test_what_an_engine_breaks_off_each_time_has_failed(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = FAILURES["hang up"]
    assert served.ask(chat("hi")).status == 502
    assert (counters_of(served).failed, counters_of(served).unavailable) == (1, 0)


def test_what_an_engine_breaks_off_and_ends_counts_as_if_there_was_none(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    served.client.put_route(route_to(recording, max_tries=1))
    stub.behave = lambda _: stub.close_connections()
    assert served.ask(chat("hi")).status == 502
    assert (counters_of(served).failed, counters_of(served).unavailable) == (1, 1)


def test_a_question_that_is_answered_later_has_not_failed(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.client.put_route(route_to(recording, max_tries=1))
    stub.behave = fails_first(2, FAILURES["500"])
    assert [served.ask(chat("hi")).status for _ in range(2)] == [500, 500]
    assert counters_of(served).failed == 1
    assert served.ask(chat("hi")).status == 200
    assert (counters_of(served).failed, counters_of(served).answered) == (0, 1)


def test_an_engine_that_is_silent_is_asked_again(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = fails_first(1, lambda _: gate.wait())
    served.client.put_engine(engine_of(stub, answer_seconds=0.2))
    assert served.ask(chat("hi")).text == "at last"
    gate.open.set()


def test_an_engine_that_is_silent_within_its_answer_is_asked_again(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()

    def pause(asked: Asked) -> None:
        asked.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        gate.wait()
        asked.hang_up()

    stub.behave = fails_first(1, pause)
    served.client.put_engine(engine_of(stub, answer_seconds=0.2))
    assert served.ask(chat("hi")).text == "at last"
    gate.open.set()


def test_what_an_engine_sends_after_its_answer_is_no_answer(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        asked.answer(completion("first"))
        asked.answer(completion("smuggled"))

    stub.behave = behave
    assert [served.ask(chat(text)).text for text in "abc"] == ["first"] * 3


def test_an_engine_that_closes_idle_connections_is_asked_on_another(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        asked.answer(completion())
        asked.hang_up()

    stub.behave = behave
    assert [served.ask(chat(text)).status for text in "abcde"] == [200] * 5
    assert counters_of(served).retried == 0


def test_requests_are_held_while_no_engine_is_up(served: GatewayProcess, stub: EngineStub) -> None:
    served.client.put_engine(Engine("tiny"))
    answers = _ask_in_the_background(served)
    eventually(lambda: counters_of(served).held == 1)
    served.client.put_engine(engine_of(stub))
    assert [answer.status for answer in answers()] == [200]
    assert counters_of(served).unavailable == 0


def test_requests_are_held_while_an_engine_comes_back_on_its_port(served: GatewayProcess, stub: EngineStub) -> None:
    with engine_stub() as first:
        served.client.put_engine(engine_of(first))
        assert served.ask(chat("hi")).status == 200
        port = first.server_port
    answers = _ask_in_the_background(served)
    eventually(lambda: counters_of(served).held == 1)
    with engine_stub(port=port):
        assert [answer.status for answer in answers()] == [200]
    assert counters_of(served).retried == 0


def test_requests_to_an_engine_that_is_lost_go_to_another(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    with engine_stub(lambda _: gate.wait()) as lost:
        served.client.put_engine(engine_of(lost))
        answers = _ask_in_the_background(served)
        gate.wait_for_arrivals()
        served.client.put_engine(engine_of(stub))
        lost.asked[0].hang_up()
        gate.open.set()
        assert [answer.status for answer in answers()] == [200]
    assert stub.questions == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_engine_is_no_failed_try(served: GatewayProcess, stub: EngineStub, status: int) -> None:
    stub.behave = fails_first(6, lambda asked: asked.answer({}, status, Retry_After="0"))
    assert served.ask(chat("hi")).status == 200
    assert counters_of(served).retried == 6


def test_what_is_held_for_too_long_is_given_up(served: GatewayProcess, recording: Path) -> None:
    served.client.put_engine(Engine("tiny"))
    served.client.put_route(route_to(recording, hold_seconds=0.1))
    answer = served.ask(chat("hi"))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, 503)
    assert (counters_of(served).unavailable, counters_of(served).failed) == (1, 1)


def test_a_busy_engine_that_stays_so_has_its_own_say(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.client.put_route(route_to(recording, hold_seconds=0.3))
    stub.behave = lambda asked: asked.answer({"error": "quota"}, 429, Retry_After="7")
    answer = served.ask(chat("hi"))
    assert (answer.status, answer.headers["retry-after"], json.loads(answer.body)) == (429, "7", {"error": "quota"})
    assert counters_of(served).unavailable == 1


def test_a_busy_engine_gets_less_at_once(served: GatewayProcess, stub: EngineStub) -> None:
    """Eight requests are refused together; from then on the engine is asked more and more, but not by all at once."""
    gate = Gate()
    barrier = threading.Barrier(8)
    after: list[int] = []

    def behave(asked: Asked) -> None:
        if asked.handler.server.questions <= 8:
            barrier.wait(DEADLINE_SECONDS)
            asked.answer({}, 429, Retry_After="0")
        else:
            after.append(asked.handler.server.in_flight)
            gate.wait()
            asked.answer(completion())

    stub.behave = behave
    answers = _ask_in_the_background(served, *(str(number) for number in range(8)))
    gate.wait_for_arrivals()
    eventually(lambda: counters_of(served).held > 0)
    held_back = counters_of(served).in_flight
    gate.open.set()
    assert [answer.status for answer in answers()] == [200] * 8
    assert held_back < 8


def test_a_stream_that_breaks_off_is_broken_off(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        asked.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: {}\n\r\n"
        )
        asked.hang_up()

    stub.behave = behave
    with pytest.raises((ConnectionError, IncompleteRead)):
        served.ask(chat("hi", stream=True))
    eventually(lambda: counters_of(served).failed == 1)
    assert counters_of(served).answered == 0


@pytest.mark.parametrize(
    "end", [b"", b'data: {"error": {"message": "oh"}}\n\ndata: [DONE]\n\n', b"data: nonsense\n\ndata: [DONE]\n\n"]
)
def test_a_stream_without_a_good_end_is_neither_recorded_nor_counted(
    served: GatewayProcess, stub: EngineStub, end: bytes
) -> None:
    stub.behave = lambda asked: asked.send(b'data: {"choices": []}\n\n' + end, content_type="text/event-stream")
    for _ in range(2):
        with pytest.raises((ConnectionError, IncompleteRead)):
            served.ask(chat("hi", stream=True))
    assert stub.questions == 2
    assert (counters_of(served).answered, counters_of(served).failed) == (0, 1)


def _ask_in_the_background(gateway: GatewayProcess, *texts: str) -> Callable[[], list[Answer]]:
    """Ask at once, and return what waits for the answers."""
    waits = [in_background(partial(gateway.ask, chat(text))) for text in texts or ("hi",)]
    return lambda: [wait() for wait in waits]
