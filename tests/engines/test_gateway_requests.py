"""What passes through the gateway, over real sockets."""

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from engine_stub import Asked, Behaviour, EngineStub, Gate, completion, engine_stub, waits
from gateway_process import TOKEN, GatewayProcess, chat, engine_of, gateway_process, route_to
from waiting import eventually

from evalrpc.engines.gateway.contract import Engine, Replica

STREAM = [b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % word for word in (b"One", b"two")]
STREAM_END = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'


def test_a_question_and_its_answer_pass(served: GatewayProcess, stub: EngineStub) -> None:
    answer = served.ask(chat("hi"))
    assert (answer.status, answer.text, answer.headers["content-type"]) == (200, "answer 1", "application/json")
    assert stub.asked[0].path == "/v1/chat/completions"
    assert stub.asked[0].fields == chat("hi")


def test_the_engine_gets_its_key_and_none_of_the_client(served: GatewayProcess, stub: EngineStub) -> None:
    served.client.put_engine(engine_of(stub, key="the-engine's"))
    sent = {
        "Authorization": "Bearer client's",
        "X-Api-Key": "client's",
        "Cookie": "client's",
        "OpenAI-Organization": "client's",
    }
    served.ask(chat("hi"), **sent, Traceparent="00-1-2-01")
    headers = stub.asked[0].headers
    assert headers["authorization"] == "Bearer the-engine's"
    assert headers["traceparent"] == "00-1-2-01"
    assert headers["host"] == f"127.0.0.1:{stub.server_port}"
    assert "client's" not in "".join(headers.values())


@pytest.mark.parametrize("status", [401, 400, 500])
def test_an_error_that_quotes_the_key_reaches_nobody_with_it(served: GatewayProcess, stub: EngineStub, status: int) -> None:
    stub.behave = lambda asked: asked.answer({"error": f"no: {asked.headers['authorization']}"}, status)
    served.client.put_engine(engine_of(stub, key="sk-secret"))
    served.client.put_route(replace(route_to(), max_tries=1, recording=served.client.status().routes[0].route.recording))
    for answer in (served.ask(chat("a")), served.request("GET", f"/j/{TOKEN}/v1/models")):
        assert (answer.status, answer.body) == (status, b'{"error": "no: Bearer *********"}')


def test_the_address_of_chats_may_be_taken_for_that_above_it(served: GatewayProcess, stub: EngineStub) -> None:
    answers = [served.ask(chat("a"), path=path) for path in ("/v1/chat/completions", "/v1/chat/completions/chat/completions")]
    assert [answer.status for answer in answers] == [200, 200]
    assert [asked.path for asked in stub.asked] == ["/v1/chat/completions"] * 2


def test_a_key_may_have_a_header_of_its_own(served: GatewayProcess, stub: EngineStub) -> None:
    served.client.put_engine(engine_of(stub, key="the-engine's", key_header="x-api-key"))
    served.ask(chat("hi"))
    assert stub.asked[0].headers["x-api-key"] == "the-engine's"
    assert "authorization" not in stub.asked[0].headers


def test_the_engine_gets_its_own_name_for_the_model(served: GatewayProcess, stub: EngineStub) -> None:
    served.client.put_engine(engine_of(stub, model="/weights/tiny"))
    served.ask(chat("hi"))
    assert stub.asked[0].fields["model"] == "/weights/tiny"


@pytest.mark.parametrize("key", ["", "secret"])
def test_megabytes_pass_as_they_are_but_for_the_name_of_the_model(served: GatewayProcess, stub: EngineStub, key: str) -> None:
    served.client.put_engine(engine_of(stub, model="other", key=key))
    body = chat("x" * 3_000_000)
    assert served.ask(body).status == 200
    assert stub.asked[0].fields == body | {"model": "other"}


def test_chunked_bodies_pass(served: GatewayProcess, stub: EngineStub) -> None:
    data = json.dumps(chat("x" * 200_000)).encode()
    connection = served.connect()
    chunks = (data[place : place + 10_000] for place in range(0, len(data), 10_000))
    connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", chunks, encode_chunked=True)
    assert connection.getresponse().status == 200
    assert stub.asked[0].body == data
    connection.close()


def test_what_follows_a_chunked_body_is_no_header(served: GatewayProcess, stub: EngineStub) -> None:
    body = json.dumps(chat("hi")).encode()
    with served.raw() as client:
        client.sendall(
            f"POST /j/{TOKEN}/v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        client.sendall(b"%x\r\n%b\r\n0\r\nContent-Type: text/odd\r\n\r\n" % (len(body), body))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert "text/odd" not in stub.asked[0].headers.values()


def test_what_harnesses_ask_beside_v1_goes_to_the_root_of_the_engine(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        asked.answer({"path": asked.path})

    stub.behave = behave
    for method, target in (("GET", "/tokenizer_info"), ("GET", "/health"), ("GET", "/v1/models?x=1"), ("POST", "/tokenize")):
        answer = served.request(method, f"/j/{TOKEN}{target}", b"{}" if method == "POST" else None)
        assert (answer.status, json.loads(answer.body)) == (200, {"path": target})
    counters = served.client.counters(TOKEN)
    assert counters is not None
    assert (counters.answered, counters.last_status) == (0, 200)


def test_an_endpoint_below_a_path_is_asked_there(served: GatewayProcess, stub: EngineStub) -> None:
    served.client.put_engine(Engine("tiny", (Replica(stub.url.replace("/v1", "/api/v1")),)))
    served.ask(chat("hi"))
    served.request("POST", f"/j/{TOKEN}/tokenize", b"{}")
    assert [each.path for each in stub.asked] == ["/api/v1/chat/completions", "/api/tokenize"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/sleep"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/v1/files"),
        ("DELETE", "/v1/models/tiny"),
        ("GET", "/v1/models/../files"),
        ("GET", "/v1/models/%2e%2E/files"),
        ("GET", "/v1/models/%252e%252e/files"),
        ("POST", "/v1/chat/../fine_tuning/jobs"),
        ("POST", "/v1/%63hat/completions"),
        ("PUT", "/v1/chat/completions"),
    ],
)
def test_what_would_change_an_engine_or_an_account_is_not_passed(
    served: GatewayProcess, stub: EngineStub, method: str, target: str
) -> None:
    answer = served.request(method, f"/j/{TOKEN}{target}", b"{}")
    assert answer.status == 404
    assert b"is not passed on" in answer.body
    assert not stub.asked


@pytest.mark.parametrize(
    "target", ["/", "/j/", "/j/x", f"/j/{TOKEN}", "/v1/models", f"/j/{TOKEN}x/v1/models", "/j/%00/v1", "*"]
)
def test_without_a_token_there_is_nothing(served: GatewayProcess, target: str) -> None:
    assert served.request("GET", target).status in (400, 404)


def test_the_token_may_be_a_bearer_token_which_no_engine_sees(served: GatewayProcess, stub: EngineStub) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = json.dumps(chat("a")).encode()
    first = served.request("POST", "/v1/chat/completions", body, headers)
    assert first.status == 200
    assert "authorization" not in stub.asked[0].headers
    assert served.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer another"}).status == 404
    assert served.request("POST", "/v1/chat/completions", body, {"Authorization": TOKEN[1:]}).status == 404
    served.client.remove_route(TOKEN)
    assert served.request("POST", "/v1/chat/completions", body, headers).status == 404
    assert len(stub.asked) == 1


def test_a_head_request_has_no_body(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = lambda asked: asked.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"{}" if asked.method == "GET" else b"")
    )
    answer = served.request("HEAD", f"/j/{TOKEN}/health")
    assert (answer.status, answer.body) == (200, b"")
    assert served.request("GET", f"/j/{TOKEN}/health").body == b"{}"


def test_errors_of_the_engine_pass_as_they_are(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = lambda asked: asked.answer({"error": {"message": "too long"}}, 400)
    answer = served.ask(chat("hi"))
    assert (answer.status, json.loads(answer.body)) == (400, {"error": {"message": "too long"}})
    counters = served.client.counters(TOKEN)
    assert counters is not None
    assert (counters.failed, counters.answered, counters.retried, counters.last_status) == (1, 0, 0, 400)


def test_an_answer_without_a_length_ends_with_its_connection(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(completion("all")).encode())
        asked.hang_up()

    stub.behave = behave
    assert [served.ask(chat(text)).text for text in ("a", "b")] == ["all", "all"]


def test_a_stream_passes_piece_by_piece(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = _streaming(gate)
    connection = served.connect()
    connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat("hi", stream=True)))
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream"
    assert response.read(len(STREAM[0])) == STREAM[0]  # while the engine has sent no more
    gate.open.set()
    assert response.read() == STREAM[1] + STREAM_END
    connection.close()
    counters = served.client.counters(TOKEN)
    assert counters is not None
    assert (counters.answered, counters.prompt_tokens, counters.completion_tokens, counters.empty) == (1, 4, 2, 0)


def test_a_stream_that_nobody_asked_for_passes_too(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    gate.open.set()
    stub.behave = _streaming(gate)
    assert served.ask(chat("hi")).body == b"".join(STREAM) + STREAM_END


def test_a_client_of_http_1_0_gets_no_chunks(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    gate.open.set()
    stub.behave = _streaming(gate)
    body = json.dumps(chat("hi", stream=True)).encode()
    with served.raw() as client:
        client.sendall(
            b"POST /j/%b/v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (TOKEN.encode(), len(body)) + body
        )
        head, _, rest = _read_all(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert rest == b"".join(STREAM) + STREAM_END


def test_connections_of_clients_and_to_engines_are_used_again(served: GatewayProcess, stub: EngineStub) -> None:
    connection = served.connect()
    for text in "abc":
        connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat(text)))
        assert connection.getresponse().read()
    connection.close()
    assert len({id(each.handler) for each in stub.asked}) == 1


def test_questions_are_spread_over_replicas_up_to_their_bounds(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    with engine_stub() as other:
        for each in (stub, other):
            each.behave = waits(gate)
        served.client.put_engine(engine_of(stub, other, max_in_flight=2))
        threads = _ask_all(served, [str(number) for number in range(10)])
        gate.wait_for_arrivals(4)
        eventually(lambda: (counters := served.client.counters(TOKEN)) and (counters.in_flight, counters.held) == (4, 6))
        gate.open.set()
        for thread in threads:
            thread.join()
        assert (stub.most_in_flight, other.most_in_flight) == (2, 2)
        assert stub.questions + other.questions == 10


def test_a_route_does_not_wait_behind_all_requests_of_another(served: GatewayProcess, stub: EngineStub) -> None:
    other = "another-token-of-a-test_0123"
    served.client.put_route(route_to(token=other))
    gate = Gate()
    stub.behave = waits(gate)
    served.client.put_engine(engine_of(stub, max_in_flight=1))
    threads = _ask_all(served, [str(number) for number in range(5)])
    eventually(lambda: (counters := served.client.counters(TOKEN)) and counters.held == 4)
    threads += _ask_all(served, ["late"], other)
    eventually(lambda: (counters := served.client.counters(other)) and counters.held == 1)
    gate.open.set()
    for thread in threads:
        thread.join()
    assert [b"late" in each.body for each in stub.asked].index(True) <= 2


def test_bytes_in_flight_are_bounded(tmp_path: Path, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    with gateway_process(tmp_path, "--max-bytes-in-flight", "4000000", "--max-body-bytes", "1500000") as gateway:
        gateway.client.declare([engine_of(stub)], [route_to()])
        threads = _ask_all(gateway, [str(number) + "x" * 1_000_000 for number in range(6)])
        gate.wait_for_arrivals(2)
        assert gateway.client.status().bytes_in_flight < 3_000_000
        assert not gate.arrived.acquire(timeout=0.2)
        gate.open.set()
        for thread in threads:
            thread.join()
        assert stub.questions == 6
        eventually(lambda: gateway.client.status().bytes_in_flight == 0)


def test_a_large_answer_passes_with_bounded_memory(served: GatewayProcess, stub: EngineStub) -> None:
    piece = b"x" * (1 << 20)

    def behave(asked: Asked) -> None:
        asked.handler.send_response(200)
        asked.handler.send_header("Content-Type", "application/json")
        asked.handler.send_header("Content-Length", str(100 << 20))
        asked.handler.end_headers()
        for _ in range(100):
            asked.write(piece)

    stub.behave = behave
    Path(f"/proc/{served.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = _memory(served, "VmRSS")
    connection = served.connect()
    connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat("hi")))
    response = connection.getresponse()
    length = 0
    while data := response.read(1 << 20):
        length += len(data)
    connection.close()
    assert length == 100 << 20
    assert _memory(served, "VmHWM") - before < 40 << 20
    counters = served.client.counters(TOKEN)
    assert counters is not None
    assert (counters.answered, counters.unrecorded) == (1, 1)


def _memory(gateway: GatewayProcess, name: str) -> int:
    lines = Path(f"/proc/{gateway.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _streaming(gate: Gate) -> Behaviour:
    def behave(asked: Asked) -> None:
        asked.handler.send_response(200)
        asked.handler.send_header("Content-Type", "text/event-stream")
        asked.handler.send_header("Transfer-Encoding", "chunked")
        asked.handler.end_headers()
        for number, piece in enumerate((*STREAM, STREAM_END)):
            if number == 1:
                gate.wait()
            asked.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        asked.write(b"0\r\n\r\n")

    return behave


def _ask_all(gateway: GatewayProcess, texts: list[str], token: str = TOKEN) -> list[threading.Thread]:
    threads = [threading.Thread(target=gateway.ask, args=(chat(text), token)) for text in texts]
    for thread in threads:
        thread.start()
    return threads


def _read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))
