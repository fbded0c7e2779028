"""Endpoints over TLS, as a vendor's API is."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from engine_stub import Asked, EngineStub, Gate, completion, engine_stub
from gateway_process import TOKEN, GatewayProcess, chat, gateway_process, route_to
from waiting import eventually

from evalrpc.engines.gateway.contract import Counters, Engine, Replica

AUTHORITY = Authority()


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway on a machine that trusts the authority."""
    folder = tmp_path_factory.mktemp("gateway")
    env = {"SSL_CERT_FILE": str(AUTHORITY.write(folder)), "NO_PROXY": "*"}
    with gateway_process(folder, env=env) as gateway:
        yield gateway


def _context(folder: Path, authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(folder))
    return context


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[EngineStub]:
    with engine_stub(tls=_context(tmp_path, AUTHORITY)) as stub:
        yield stub


@pytest.fixture
def served(gateway: GatewayProcess, stub: EngineStub, recording: Path) -> GatewayProcess:
    engine = _endpoint(stub, model="vendor-model", key="sk-secret", answer_seconds=60.0)
    gateway.client.declare([engine], [route_to(recording)])
    return gateway


def _endpoint(stub: EngineStub, **fields: object) -> Engine:
    return Engine("tiny", (Replica(f"https://localhost:{stub.server_port}/api/v1", 8),), **fields)  # type: ignore[arg-type]


def _counters(gateway: GatewayProcess) -> Counters:
    counters = gateway.client.counters(TOKEN)
    assert counters is not None
    return counters


def test_a_question_passes_with_the_operators_key(served: GatewayProcess, stub: EngineStub) -> None:
    for text in ("a", "b" * 300_000):
        assert served.ask(chat(text), Authorization="Bearer client's", Cookie="client's").status == 200
    for asked in stub.asked:
        assert (asked.path, asked.fields["model"]) == ("/api/v1/chat/completions", "vendor-model")
        assert (asked.headers["authorization"], asked.headers["accept-encoding"]) == ("Bearer sk-secret", "identity")
        assert "client's" not in "".join(asked.headers.values())
    assert len({id(asked.handler) for asked in stub.asked}) == 1, "the connection was used again"


def test_answers_are_recorded_and_replayed(served: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    first = served.ask(chat("hi"))
    served.client.remove_route(TOKEN)
    served.client.put_route(route_to(recording, attempt="2"))
    assert served.ask(chat("hi")) == first
    assert stub.questions == 1


def test_streams_pass(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()

    def behave(asked: Asked) -> None:
        asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        asked.write(b'10\r\ndata: {"x": 1}\n\n\r\n')
        gate.wait()
        asked.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    stub.behave = behave
    connection = served.connect()
    connection.request("POST", f"/j/{TOKEN}/v1/chat/completions", json.dumps(chat("hi", stream=True)))
    response = connection.getresponse()
    assert response.read(16) == b'data: {"x": 1}\n\n'
    gate.open.set()
    assert response.read() == b"data: [DONE]\n\n"
    connection.close()


def test_a_limited_rate_is_waited_for(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = lambda asked: asked.answer({}, 429, Retry_After="0") if stub.questions < 4 else asked.answer(completion())
    assert served.ask(chat("hi")).status == 200
    assert _counters(served).retried == 3


def test_what_breaks_off_is_asked_again(served: GatewayProcess, stub: EngineStub) -> None:
    def behave(asked: Asked) -> None:
        if stub.questions == 1:
            asked.hang_up()
        elif stub.questions == 2:
            asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
            asked.hang_up()
        elif stub.questions == 3:
            asked.write(b"nonsense\r\n\r\n")
        else:
            asked.answer(completion("at last"))

    stub.behave = behave
    assert served.ask(chat("hi")).text == "at last"


def test_silence_is_not_waited_for(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = lambda asked: gate.wait() if stub.questions == 1 else asked.answer(completion("at last"))
    served.client.put_engine(_endpoint(stub, answer_seconds=0.3))
    assert served.ask(chat("hi")).text == "at last"
    gate.open.set()


def test_redirects_are_not_followed(served: GatewayProcess, stub: EngineStub) -> None:
    stub.behave = lambda asked: asked.answer({}, 307, Location="https://localhost:1/elsewhere")
    assert served.ask(chat("hi")).status == 307
    assert stub.questions == 1


def test_an_endpoint_that_cannot_prove_who_it_is_is_not_asked(gateway: GatewayProcess, tmp_path: Path, recording: Path) -> None:
    with engine_stub(tls=_context(tmp_path, Authority("another"))) as impostor:
        gateway.client.declare([_endpoint(impostor, key="sk-secret")], [route_to(recording, hold_seconds=0.3)])
        answer = gateway.ask(chat("hi"))
        assert answer.status == 503
        assert b"certificate verify failed" in answer.body
        assert not impostor.asked


def test_an_endpoint_that_is_not_there_is_held_for(gateway: GatewayProcess, stub: EngineStub, recording: Path) -> None:
    absent = Engine("tiny", (Replica("https://localhost:1/v1"),))
    gateway.client.declare([absent], [route_to(recording, hold_seconds=0.3)])
    assert gateway.ask(chat("hi")).status == 503
    eventually(lambda: _counters(gateway).unavailable == 1)
