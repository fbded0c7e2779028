"""The control socket, by the server's own client, against a real gateway."""

import json
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from engine_stub import EngineStub, Gate, waits
from gateway_process import TOKEN, GatewayProcess, chat, engine_of, gateway_process, route_to
from waiting import eventually

from evalrpc.engines.gateway.contract import CONTROL_SOCKET, PROTOCOL, Counters, Engine, Lender, Replica, RouteStatus
from evalrpc.engines.gateway_client import GatewayClient
from evalrpc.errors import GatewayRefusedError, GatewayUnavailableError

OTHER_TOKEN = "another-token-of-a-test_0123"


def test_a_gateway_that_was_just_started_says_that_it_knows_nothing(tmp_path: Path) -> None:
    with gateway_process(tmp_path) as gateway:
        status = gateway.client.status()
        assert (status.protocol, status.pid, status.address) == (PROTOCOL, gateway.pid, f"127.0.0.1:{gateway.port}")
        assert (status.declared, status.engines, status.routes) == (False, (), ())


def test_what_is_declared_is_listed_but_for_the_keys(gateway: GatewayProcess, recording: Path) -> None:
    engine = Engine("tiny", (Replica("http://127.0.0.1:1/v1", 3),), model="m", key="a secret", key_header="x-api-key")
    route = route_to(recording, lenders=(Lender("/elsewhere", "p"),), max_recording_bytes=5, max_tries=2)
    status = gateway.client.declare([engine], [route])
    assert status.declared
    assert status.engines == (replace(engine, key=""),)
    assert status.routes == (RouteStatus(route, Counters()),)
    assert gateway.client.status() == status


def test_the_keys_of_engines_are_not_printed() -> None:
    assert "a secret" not in repr(Engine("tiny", key="a secret"))
    assert TOKEN not in repr(route_to())


def test_a_server_that_starts_again_finds_the_routes_and_their_counters(served: GatewayProcess) -> None:
    served.ask(chat("hi"))
    with GatewayClient(served.folder) as another:
        (found,) = another.status().routes
    assert found.route.token == TOKEN
    assert found.counters.answered == 1


def test_a_declaration_keeps_what_it_names_and_ends_what_it_does_not(
    served: GatewayProcess, stub: EngineStub, recording: Path
) -> None:
    served.client.put_route(route_to(token=OTHER_TOKEN))
    served.ask(chat("hi"))
    served.ask(chat("hi"), OTHER_TOKEN)
    (left,) = served.client.declare([engine_of(stub)], [route_to(recording)]).routes
    assert left.counters.answered == 1
    assert served.ask(chat("hi"), OTHER_TOKEN).status == 404
    assert served.client.declare([], []).engines == ()


def test_a_removed_token_is_refused_at_once(served: GatewayProcess) -> None:
    served.ask(chat("hi"))
    counters = served.client.remove_route(TOKEN)
    assert counters is not None
    assert counters.answered == 1
    assert served.ask(chat("hi")).status == 404
    assert served.client.remove_route(TOKEN) is None
    assert served.client.counters(TOKEN) is None


def test_a_replica_that_is_named_no_more_goes_on_with_what_it_was_asked(served: GatewayProcess, stub: EngineStub) -> None:
    gate = Gate()
    stub.behave = waits(gate)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(served.ask, chat("hi"))
        gate.wait_for_arrivals()
        assert served.client.in_flight("tiny", stub.url) == 1
        served.client.put_engine(Engine("tiny"))
        assert served.client.in_flight("tiny", stub.url) == 1
        gate.open.set()
        assert answer.result().status == 200
    eventually(lambda: not served.client.in_flight("tiny", stub.url))
    assert served.client.in_flight("another", stub.url) == 0


def test_a_route_may_change_while_it_is_used(served: GatewayProcess, recording: Path) -> None:
    served.ask(chat("hi"))
    served.client.put_route(route_to(recording, hold_seconds=0.0))
    assert served.client.counters(TOKEN) == served.client.status().routes[0].counters
    served.client.put_engine(Engine("tiny"))
    assert served.ask(chat("ho")).status == 503


def test_another_instance_is_noticed(mortal: GatewayProcess) -> None:
    first = mortal.client.instance
    mortal.kill()
    with pytest.raises(GatewayUnavailableError, match="does not answer"):
        mortal.client.status()
    mortal.start()
    assert mortal.client.counters(TOKEN) is None
    assert mortal.client.instance not in ("", first)


def test_a_gateway_that_is_not_there_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailableError, match=str(tmp_path)):
        GatewayClient(tmp_path).status()
    with pytest.raises(GatewayUnavailableError):
        GatewayClient(tmp_path / "missing").status()


def test_a_gateway_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / CONTROL_SOCKET))
        listener.listen()
        with pytest.raises(GatewayUnavailableError, match="timed out"):
            GatewayClient(tmp_path, timeout_seconds=0.05).status()


def test_the_control_socket_is_private(gateway: GatewayProcess) -> None:
    assert stat.S_IMODE((gateway.folder / CONTROL_SOCKET).stat().st_mode) == 0o600


def test_a_folder_with_a_long_name_has_a_control_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    with gateway_process(folder) as gateway:
        assert gateway.client.status().pid == gateway.pid


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": "short"}, "a token has at least 22"),
        ({"token": "a-token-with-a/slash-in-it"}, "a token has at least 22"),
        ({"engine": "other"}, "there is no engine 'other'"),
        ({"max_tries": 0}, "max_tries"),
    ],
)
def test_a_wrong_route_is_refused(served: GatewayProcess, change: dict[str, object], reason: str) -> None:
    with pytest.raises(GatewayRefusedError, match=reason):
        served.client.put_route(replace(route_to(), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Engine("tiny", (Replica("ftp://127.0.0.1/v1"),)), "no URL of an engine"),
        (Engine("tiny", (Replica("http://user:password@127.0.0.1/v1"),)), "no URL of an engine"),
        (Engine("tiny", (Replica("http://127.0.0.1:1/v1?key=1"),)), "no URL of an engine"),
        (Engine("tiny", (Replica("http://127.0.0.1:1/a b"),)), "characters"),
        (Engine("tiny", (Replica("http://127.0.0.1:1/v1", 0),)), "max_in_flight"),
        (Engine("tiny", answer_seconds=0.0), "answer_seconds"),
        (Engine("tiny", key="a\r\nb"), "the key of 'tiny'"),
        (Engine("tiny", key="a", key_header="x:\n"), "the key of 'tiny'"),
    ],
)
def test_a_wrong_engine_is_refused_without_its_secrets(served: GatewayProcess, engine: Engine, reason: str) -> None:
    with pytest.raises(GatewayRefusedError, match=reason) as caught:
        served.client.put_engine(engine)
    assert "password" not in str(caught.value)


def test_an_engine_with_routes_stays(served: GatewayProcess) -> None:
    with pytest.raises(GatewayRefusedError, match="remove them first"):
        served.client.remove_engine("tiny")
    served.client.remove_route(TOKEN)
    served.client.remove_engine("tiny")
    assert served.client.status().engines == ()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"call": "fly"}',
        b'{"call": "counters", "arguments": []}',
        b'{"call": "counters", "arguments": {"token": 1}}',
        b'{"call": "put_route", "arguments": {"route": {"token": "x"}}}',
        b'{"call": "put_engine", "arguments": {"engine": {"name": "x", "replicas": 3}}}',
        b'{"call": "declare", "arguments": {}}',
        b'{"call": "remove_route", "arguments": {"token": "x", "finish_seconds": "soon"}}',
        b"[" * 100_000,
    ],
)
def test_nonsense_on_the_control_socket_is_answered_with_an_error(gateway: GatewayProcess, line: bytes) -> None:
    with _control(gateway) as control, control.makefile("rb") as replies:
        control.sendall(line + b"\n")
        assert json.loads(replies.readline())["error"]
        control.sendall(b'{"call": "status"}\n')
        assert json.loads(replies.readline())["result"]["pid"] == gateway.pid


def test_fields_of_a_later_version_are_ignored(gateway: GatewayProcess) -> None:
    with _control(gateway) as control, control.makefile("rb") as replies:
        control.sendall(b'{"call": "put_engine", "arguments": {"engine": {"name": "new", "colour": "green"}, "x": 1}}\n')
        assert "error" not in json.loads(replies.readline())
    assert gateway.client.status().engines == (Engine("new"),)


def _control(gateway: GatewayProcess) -> socket.socket:
    control = socket.socket(socket.AF_UNIX)
    descriptor = os.open(gateway.folder, os.O_PATH)
    control.connect(f"/proc/self/fd/{descriptor}/{CONTROL_SOCKET}")
    os.close(descriptor)
    return control
