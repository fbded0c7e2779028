"""What is recorded, and answered from the recording: also after kills, for clients that have gone, and on a full disk."""

import json
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from engine_stub import Asked, EngineStub, Gate, answer_with_number, completion, waits
from gateway_process import TOKEN, GatewayProcess, chat, engine_of, route_to
from waiting import eventually, in_background

from evalrpc.engines.gateway.contract import Counters, Lender

OTHER_TOKEN = "another-token-of-a-test_0123"


def counters_of(gateway: GatewayProcess, token: str = TOKEN) -> Counters:
    counters = gateway.client.counters(token)
    assert counters is not None
    return counters


def begin_attempt(gateway: GatewayProcess, recording: Path, attempt: str, **fields: object) -> None:
    """Begin another attempt with the same token."""
    gateway.client.remove_route(TOKEN)
    gateway.client.put_route(route_to(recording, attempt=attempt, **fields))


def test_another_attempt_asks_nothing_that_was_answered(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    first = [served.ask(chat(text)).body for text in "abc"]
    begin_attempt(served, recording, "2")
    assert [served.ask(chat(text)).body for text in "abcd"][:3] == first
    assert stub.questions == 4
    counters = counters_of(served)
    assert (counters.answered, counters.replayed, counters.prompt_tokens, counters.completion_tokens) == (4, 3, 40, 4)


def test_repeated_bodies_get_different_answers_and_the_same_ones_in_the_next_attempt(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    first = [served.ask(chat("hi")).text for _ in range(3)]
    assert first == ["answer 1", "answer 2", "answer 3"]
    for attempt in ("2", "3"):
        begin_attempt(served, recording, attempt)
        assert [served.ask(chat("hi")).text for _ in range(2)] == first[:2]
    assert [served.ask(chat("hi")).text for _ in range(2)] == ["answer 3", "answer 4"]


def test_bodies_are_the_same_whatever_the_order_of_their_fields(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    served.ask(b'{"model": "tiny", "messages": [], "max_tokens": 5}')
    begin_attempt(served, recording, "2")
    served.ask(b'{"max_tokens":5,"messages":[],"model":"tiny"}')
    assert stub.questions == 1
    served.ask(b'{"max_tokens":6,"messages":[],"model":"tiny"}')
    served.ask(b'{"max_tokens":6,"messages":[],"model":"tiny"}', path="/v1/completions")
    assert stub.questions == 3


def test_another_name_of_the_model_asks_nothing_again(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.client.put_engine(engine_of(stub, model="served"))
    served.ask(chat("hi", model="one"))
    begin_attempt(served, recording, "2")
    served.ask(chat("hi", model="two"))
    assert stub.questions == 1


def test_other_weights_or_another_engine_ask_everything_again(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    served.ask(chat("hi"))
    begin_attempt(served, recording, "2", key_prefix="other weights")
    served.ask(chat("hi"))
    assert stub.questions == 2


def test_large_bodies_are_recognised_by_their_bytes(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    body = chat("x" * 1_000_000)
    served.ask(body)
    begin_attempt(served, recording, "2")
    served.ask(body)
    assert stub.questions == 1
    assert counters_of(served).replayed == 1


def test_large_answers_are_recorded_compressed(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    stub.behave = lambda asked: asked.answer(completion("word " * 200_000))
    first = served.ask(chat("hi"))
    begin_attempt(served, recording, "2")
    assert served.ask(chat("hi")) == first
    assert stub.questions == 1
    assert sum(path.stat().st_size for path in recording.parent.glob("recording*")) < 200_000


def test_only_good_answers_are_recorded(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    stub.behave = lambda asked: asked.answer({"error": "no"}, 400)
    assert served.ask(chat("hi")).status == 400
    stub.behave = answer_with_number
    assert served.ask(chat("hi")).text == "answer 2"


def test_a_failed_question_does_not_shift_the_answers_of_repeated_bodies(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    def behave(asked: Asked) -> None:
        if stub.questions == 2:
            asked.answer({}, 400)
        else:
            answer_with_number(asked)

    stub.behave = behave
    assert [served.ask(chat("hi")).status for _ in range(3)] == [200, 400, 200]
    begin_attempt(served, recording, "2")
    assert [served.ask(chat("hi")).text for _ in range(2)] == ["answer 1", "answer 3"]


def test_streams_are_recorded_whole(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    events = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
    stub.behave = lambda asked: asked.send(events, content_type="text/event-stream")
    assert served.ask(chat("hi", stream=True)).body == events
    begin_attempt(served, recording, "2")
    answer = served.ask(chat("hi", stream=True))
    assert (answer.body, answer.headers["content-type"]) == (events, "text/event-stream")
    counters = counters_of(served)
    assert (stub.questions, counters.replayed, counters.truncated) == (1, 1, 1)


def test_what_beside_the_model_was_asked_is_not_recorded(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    for _ in range(2):
        served.request("POST", f"/j/{TOKEN}/tokenize", b"{}")
    assert stub.questions == 2


def test_no_key_is_ever_written(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.client.put_engine(engine_of(stub, key="secret-of-the-operator"))
    served.ask(chat("hi"), Authorization="Bearer secret-of-the-client")
    served.client.declare([], [])
    eventually(lambda: not recording.with_name("recording-wal").exists(), "for the recording to be closed")
    everything = b"".join(path.read_bytes() for path in recording.parent.iterdir()) + served.log.read_bytes()
    assert b"answer 1" in everything
    assert b"secret-of" not in everything
    assert TOKEN.encode() not in everything


# Clients that go, and come again.


def test_the_answer_of_a_client_that_has_gone_is_kept_for_its_next_try(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    _ask_and_go(served, "hi", gate)
    gate.open.set()
    eventually(lambda: counters_of(served).in_flight == 0)
    assert served.ask(chat("hi")).text == "answer 1"
    assert (stub.questions, counters_of(served).answered, counters_of(served).replayed) == (1, 1, 0)


def test_a_client_that_comes_again_early_waits_for_the_question_that_is_being_asked(
    served: GatewayProcess, stub: EngineStub
) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    _ask_and_go(served, "hi", gate)
    asking = in_background(lambda: served.ask(chat("hi")).text)
    eventually(lambda: served.client.status().connections == 1)
    gate.open.set()
    assert asking() == "answer 1"
    assert stub.questions == 1


def test_two_clients_with_the_same_body_get_two_answers(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    both = [in_background(lambda: served.ask(chat("hi")).body) for _ in range(2)]
    gate.wait_for_arrivals(2)
    gate.open.set()
    assert all(wait() for wait in both)
    assert counters_of(served).answered == stub.questions == 2


def test_a_stream_whose_client_has_gone_is_recorded(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    gate = Gate()
    events = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n'

    def behave(asked: Asked) -> None:
        asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\ndata" % len(events))
        gate.wait()
        asked.write(events[4:])

    stub.behave = behave
    _ask_and_go(served, "hi", gate, stream=True)
    gate.open.set()
    eventually(lambda: counters_of(served).in_flight == 0)
    assert counters_of(served).answered == 0
    assert served.ask(chat("hi", stream=True)).body == events
    assert stub.questions == 1


def test_a_route_that_ends_may_finish_its_questions_for_the_next_attempt(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    _ask_and_go(served, "hi", gate)
    served.client.remove_route(TOKEN, finish_seconds=60.0)
    gate.open.set()
    served.client.put_route(route_to(recording, attempt="2"))
    eventually(lambda: recording.exists() and _rows(recording) == 1)
    assert served.ask(chat("hi")).text == "answer 1"
    assert counters_of(served).replayed == 1


# Kills of the gateway.


def test_after_a_kill_nothing_that_was_answered_is_asked_again(
    mortal: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    """Clients ask 200 questions, try again as harnesses do, and the gateway is killed three times while they do."""
    gone = threading.Event()

    def ask(numbers: list[int]) -> list[bytes]:
        answers = []
        for number in numbers:
            while True:
                try:
                    answer = mortal.ask(chat(f"question {number % 50}"))  # each body four times
                except (OSError, ValueError):
                    gone.wait(0.01)
                    continue
                assert answer.status == 200
                answers.append(answer.body)
                break
        return answers

    clients = [in_background(lambda start=start: ask(list(range(start, 200, 4)))) for start in range(4)]
    for kill in range(1, 4):
        eventually(lambda kill=kill: stub.questions >= 50 * kill)
        mortal.kill()
        mortal.start()
        mortal.client.declare([engine_of(stub)], [route_to(recording)])
    answers = [answer for wait in clients for answer in wait()]
    assert len(set(answers)) == 200, "no answer was given twice"
    assert counters_of(mortal).answered >= 200
    assert stub.questions <= 200 + 3 * 4, "at most those in flight were asked again"
    asked = stub.questions
    begin_attempt(mortal, recording, "2")
    again = Counter(mortal.ask(chat(f"question {number % 50}")).body for number in range(200))
    assert stub.questions == asked
    assert max(again.values()) == 1


def test_counters_go_on_after_a_kill(mortal: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    stub.behave = lambda asked: asked.answer(completion("", "length", 7, 16))
    mortal.ask(chat("a"))
    stub.behave = lambda asked: asked.answer({}, 400)
    mortal.ask(chat("b"))
    before = counters_of(mortal)
    mortal.kill()
    mortal.start()
    mortal.client.declare([engine_of(stub)], [route_to(recording)])
    after = counters_of(mortal)
    assert (after.answered, after.truncated, after.empty, after.failed) == (1, 1, 1, 1)
    assert (after.prompt_tokens, after.completion_tokens) == (before.prompt_tokens, before.completion_tokens) == (7, 16)
    stub.behave = answer_with_number
    mortal.ask(chat("b"))
    assert counters_of(mortal).failed == 0


def test_a_gateway_that_was_started_again_holds_what_it_does_not_know(
    mortal: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    mortal.kill()
    mortal.start()
    asking = in_background(lambda: mortal.ask(chat("hi")).status)
    eventually(lambda: mortal.client.status().connections == 1)
    mortal.client.put_engine(engine_of(stub))
    mortal.client.put_route(route_to(token=OTHER_TOKEN))  # which is not the one that is waited for
    mortal.client.declare([engine_of(stub)], [route_to(recording)])
    assert asking() == 200
    assert mortal.ask(chat("hi"), "unknown-token-of-a-test_0123").status == 404


# Files.


def test_a_recording_is_bounded(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    begin_attempt(served, recording, "1", max_recording_bytes=60_000)
    stub.behave = lambda asked: asked.answer(completion("".join(map(chr, range(33, 2000)))))
    assert {served.ask(chat(str(number))).status for number in range(40)} == {200}
    counters = counters_of(served)
    assert counters.answered == 40
    assert 0 < counters.unrecorded < 40
    assert counters.recording_error == "the recording has reached its 60000 bytes"
    served.client.remove_route(TOKEN)
    eventually(lambda: recording.stat().st_size <= 64_000)


def test_a_damaged_recording_is_set_aside(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.client.remove_route(TOKEN)
    eventually(lambda: not recording.with_name("recording-wal").exists(), "for the recording to be closed")
    recording.write_bytes(b"this is no recording" * 1000)
    begin_attempt(served, recording, "2")
    assert served.ask(chat("hi")).status == 200
    assert recording.with_name("recording.damaged").read_bytes().startswith(b"this is no")
    assert (_rows(recording), counters_of(served).recording_error) == (1, "")


def test_a_damaged_answer_is_asked_again(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    served.ask(chat("hi"))
    with sqlite3.connect(recording) as database:
        database.execute("UPDATE answers SET body = x'7b7d'")
    begin_attempt(served, recording, "2")
    assert [served.ask(chat("hi")).text for _ in range(2)] == ["answer 2", "answer 3"]


@pytest.mark.parametrize("place", ["a link", "a folder", "a missing folder"])
def test_without_a_recording_requests_are_answered_all_the_same(
    served: GatewayProcess, stub: EngineStub, recording: Path, place: str
) -> None:
    path = recording.with_name("elsewhere")
    if place == "a link":
        path.symlink_to(recording.with_name("target"))
    elif place == "a folder":
        path.mkdir()
    else:
        path = path / "recording"
    begin_attempt(served, path, "2")
    assert [served.ask(chat("hi")).status for _ in range(2)] == [200, 200]
    counters = counters_of(served)
    assert (counters.unrecorded, counters.recording_error) == (2, "the recording can't be opened")
    assert not recording.with_name("target").exists()


def test_a_recording_that_cannot_be_written_fails_no_request_and_repeats_no_answer(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    served.ask(chat("hi"))
    begin_attempt(served, recording, "2")
    blocking = sqlite3.connect(recording, isolation_level=None)
    blocking.execute("BEGIN IMMEDIATE")  # so nobody else can write
    texts = [served.ask(chat("hi")).text for _ in range(2)]
    counters = counters_of(served)
    blocking.close()
    assert texts == ["answer 2", "answer 3"]  # the first is not noted as taken, so the next one might have got it again
    assert counters.unrecorded == 2
    assert "locked" in counters.recording_error
    assert served.ask(chat("ho")).status == 200
    assert counters_of(served).recording_error == ""


def test_answers_of_other_jobs_are_lent_where_the_engine_would_repeat_them(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    bodies = [chat("a", temperature=0), chat("b", seed=3), chat("c"), chat("d", temperature=1.0)]
    for body in bodies:
        served.ask(body)
    own = recording.with_name("own")
    prefix = route_to(recording).key_prefix  # that of the lender, which is another one than its own
    lenders = (Lender(str(recording), prefix), Lender(str(recording.with_name("missing")), prefix))
    served.client.put_route(route_to(own, OTHER_TOKEN, key_prefix="the same elsewhere", lenders=lenders))
    texts = [served.ask(body, OTHER_TOKEN).text for body in bodies]
    assert texts == ["answer 1", "answer 2", "answer 5", "answer 6"]
    assert counters_of(served, OTHER_TOKEN).replayed == 2
    assert _rows(own) == 4
    assert not recording.with_name("missing").exists()


def test_questions_of_each_part_of_a_route_are_counted_until_the_gateway_is_started_again(
    mortal: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    for part, text in (("1", "a"), ("2", "a"), ("2", "b")):
        assert mortal.ask(chat(text), path=f"/t/{part}/v1/chat/completions").status == 200
    mortal.ask(chat("c"))
    stub.behave = lambda asked: asked.answer({"error": "no"}, 400)
    mortal.ask(chat("d"), path="/t/3/v1/chat/completions")
    one, two, three = counters_of(mortal).parts
    assert (one.name, one.answered, one.prompt_tokens) == ("1", 1, 10)
    assert (two.name, two.answered, two.completion_tokens) == ("2", 2, 2)
    assert (three.name, three.answered, three.failed) == ("3", 0, 1)
    assert counters_of(mortal).answered == 4
    begin_attempt(mortal, recording, "2")
    mortal.ask(chat("b"), path="/t/2/v1/chat/completions")
    assert [(part.name, part.replayed) for part in counters_of(mortal).parts] == [("2", 1)]
    mortal.kill()
    mortal.start()
    mortal.client.declare([engine_of(stub)], [route_to(recording, attempt="2")])
    mortal.ask(chat("a"), path="/t/1/v1/chat/completions")
    assert counters_of(mortal).parts == (), "it does not know what the earlier one has counted"


def _rows(recording: Path) -> int:
    database = sqlite3.connect(recording)
    (count,) = database.execute("SELECT count(*) FROM answers").fetchone()
    database.close()
    return int(count)


def _ask_and_go(gateway: GatewayProcess, text: str, gate: Gate, **fields: object) -> None:
    connection = gateway.connect()
    connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat(text, **fields)))
    gate.wait_for_arrivals()
    connection.close()
    eventually(lambda: gateway.client.status().connections == 0)
