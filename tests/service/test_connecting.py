"""How the clients reach a server: by every kind of address, past proxies, with TLS, over a channel of the caller's own."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import Authority
from fake_server import FakeServer, FakeService
from waiting import DEADLINE_SECONDS

from evalrpc.client import AsyncEvalClient, EvalClient, channel_options
from evalrpc.errors import UnauthenticatedError, UnavailableError
from evalrpc.v1.evaluation_service_pb2_grpc import add_EvaluationServiceServicer_to_server

DEAD_PROXY = "http://127.0.0.1:9"

Version = Callable[..., str]
Listen = Callable[..., "Listening"]


def blocking_version(address: str, **credentials: Any) -> str:
    with EvalClient(address, **credentials) as client:
        return client.get_server_info().version


def asyncio_version(address: str, **credentials: Any) -> str:
    async def version() -> str:
        async with AsyncEvalClient(address, **credentials) as client:
            return (await client.get_server_info()).version

    return asyncio.run(version())


@pytest.fixture(params=[blocking_version, asyncio_version])
def version(request: pytest.FixtureRequest) -> Version:
    """Ask the server at an address for its version."""
    ask: Version = request.param
    return ask


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


class Listening:
    """A server that listens where FakeServer does not."""

    def __init__(self, address: str, credentials: grpc.ServerCredentials | None = None) -> None:
        self.server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        add_EvaluationServiceServicer_to_server(FakeService(), self.server)
        if credentials is None:
            self.port = self.server.add_insecure_port(address)
        else:
            self.port = self.server.add_secure_port(address, credentials)
        self.server.start()


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Start a server at an address, perhaps with credentials."""
    started: list[Listening] = []

    def start(*args: Any) -> Listening:
        started.append(Listening(*args))
        return started[-1]

    yield start
    for listening in started:
        listening.server.stop(None).wait()


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, DEAD_PROXY)


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "localhost:{}", "ipv4:127.0.0.1:{}", "dns:///localhost:{}", "http://127.0.0.1:{}/"]
)
def test_loopback_is_never_reached_through_a_proxy(server: FakeServer, dead_proxy: None, version: Version, form: str) -> None:
    assert version(form.format(server.port)) == "9.9.9"


def test_all_of_127_is_loopback(dead_proxy: None, version: Version, listen: Listen) -> None:
    server = listen("127.0.0.2:0")

    assert version(f"127.0.0.2:{server.port}") == "9.9.9"


def test_ipv6_loopback_is_never_reached_through_a_proxy(dead_proxy: None, version: Version, listen: Listen) -> None:
    try:
        server = listen("[::1]:0")
    except RuntimeError:
        pytest.skip("this machine has no IPv6")
    for form in ("[::1]:{}", "ipv6:[::1]:{}", "http://[::1]:{}"):
        assert version(form.format(server.port)) == "9.9.9"


def test_the_command_line_reaches_loopback_without_the_proxy(server: FakeServer, dead_proxy: None) -> None:
    command = (sys.executable, "-m", "evalrpc", "info", "--address", server.address)
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "9.9.9" in done.stdout


def test_any_other_address_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(DEADLINE_SECONDS)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with EvalClient("evalrpc.invalid:50051") as client, ThreadPoolExecutor() as threads:
            answer = threads.submit(client.is_healthy)
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(1024).startswith(b"CONNECT evalrpc.invalid:50051 ")
            client.close()
            assert not answer.result(DEADLINE_SECONDS)


def test_a_socket_of_this_machine_is_an_address(tmp_path: Path, dead_proxy: None, version: Version, listen: Listen) -> None:
    path = tmp_path / "evalrpc.sock"
    listen(f"unix:{path}")

    assert version(f"unix:{path}") == "9.9.9"
    assert version(f"unix://{path}") == "9.9.9"


# TLS and tokens

AUTHORITY = Authority()


def credentials(
    *, days: float = 2, names: tuple[str, ...] = ("localhost",), clients: Authority | None = None
) -> grpc.ServerCredentials:
    cert, key = AUTHORITY.issue(names=names, days=days)
    return grpc.ssl_server_credentials([(key, cert)], clients and clients.pem, clients is not None)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return AUTHORITY.write(tmp_path)


def test_https_trusts_the_certificates_of_this_machine(
    ca: Path, monkeypatch: pytest.MonkeyPatch, version: Version, listen: Listen
) -> None:
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    server = listen("localhost:0", credentials())

    assert version(f"https://localhost:{server.port}") == "9.9.9"


def test_https_trusts_those_that_are_named_instead(
    ca: Path, monkeypatch: pytest.MonkeyPatch, version: Version, listen: Listen
) -> None:
    address = f"https://localhost:{listen('localhost:0', credentials()).port}"

    assert version(address, tls_ca=ca) == "9.9.9"
    monkeypatch.setenv("EVALRPC_TLS_CA", str(ca))
    assert version(address) == "9.9.9"


def test_a_client_shows_its_certificate(tmp_path: Path, ca: Path, version: Version, listen: Listen) -> None:
    clients = Authority("clients")
    server = listen("localhost:0", credentials(clients=clients))
    cert, key = clients.issue("alice").write(tmp_path, "alice")

    assert version(f"https://localhost:{server.port}", tls_ca=ca, tls_cert=cert, tls_key=key) == "9.9.9"


@pytest.mark.parametrize(
    ("server_credentials", "scheme", "said"),
    [
        (lambda: credentials(names=("other.example",)), "https://", "its certificate is one for other hosts"),
        (lambda: credentials(days=-0.5), "https://", "its certificate has expired"),
        (lambda: None, "https://", "what listens there does not speak TLS"),
        (credentials, "http://", "it hung up at once; perhaps it speaks TLS"),
        (lambda: credentials(clients=Authority()), "https://", "or wants a certificate of the client"),
    ],
)
def test_a_handshake_that_fails_is_explained(
    server_credentials: Callable[[], Any], scheme: str, said: str, ca: Path, listen: Listen
) -> None:
    server = listen("localhost:0", server_credentials())

    assert said in refusal_at(f"{scheme}localhost:{server.port}", ca if scheme == "https://" else None)


def test_a_server_that_nobody_vouches_for_is_explained(tmp_path: Path, listen: Listen) -> None:
    server = listen("localhost:0", credentials())

    said = refusal_at(f"https://localhost:{server.port}", Authority("other").write(tmp_path))

    assert said == "its certificate is signed by nobody whom this client trusts; tls_ca names whom to trust"


def refusal_at(address: str, ca: Path | None) -> str:
    """Return why the server can't be reached, by a call that is made only once."""
    with EvalClient(address, tls_ca=ca) as client, pytest.raises(UnavailableError) as caught:
        client.delete_job("j")
    return str(caught.value)


def test_a_token_travels_with_every_call_of_either_client(
    server: FakeServer, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.service.token = "evr_1_secret"
    assert version(server.address, token="evr_1_secret") == "9.9.9"
    monkeypatch.setenv("EVALRPC_TOKEN", "evr_1_secret")
    assert version(f"http://{server.address}") == "9.9.9"
    assert set(server.service.authorizations) == {"Bearer evr_1_secret"}
    with pytest.raises(UnauthenticatedError, match="sign in") as caught:
        version(server.address, token="evr_wrong")
    assert "evr_" not in str(caught.value)


def test_a_token_travels_with_streams_and_with_pages(server: FakeServer) -> None:
    server.service.token = "evr_1_secret"
    with EvalClient(server.address, token="evr_1_secret") as client:
        job = client.evaluate("m", ["t"])
        next(client.watch(job.job_id))
        assert list(client.list_tasks()) == server.service.names

    async def watch() -> None:
        async with AsyncEvalClient(server.address, token="evr_1_secret") as client:
            async for _ in client.watch(job.job_id):
                break

    asyncio.run(watch())
    assert len(server.service.received["ListTasks"]) == 2
    assert len(server.service.received["WatchJob"]) == 2


def test_a_token_in_a_file_is_exchanged_under_a_client(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("evr_old")
    server.service.token = "evr_old"
    with EvalClient(server.address, token_file=path) as client:
        client.get_server_info()
        server.service.token = "evr_new"
        with pytest.raises(UnauthenticatedError):
            client.get_server_info()
        path.write_text("evr_new")
        client.get_server_info()


# Channels of the caller's own


def test_a_channel_of_ones_own_is_used_and_left_open(server: FakeServer) -> None:
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        with EvalClient(channel=channel) as client:
            assert client.get_server_info().version == "9.9.9"
        with EvalClient(channel=channel) as another:
            assert another.get_server_info().version == "9.9.9"


def test_an_asyncio_channel_of_ones_own_is_used_and_left_open(server: FakeServer) -> None:
    async def use_twice() -> list[str]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            versions = []
            for _ in range(2):
                async with AsyncEvalClient(channel=channel) as client:
                    versions.append((await client.get_server_info()).version)
            return versions

    assert asyncio.run(use_twice()) == ["9.9.9", "9.9.9"]


def test_a_channel_beside_an_address_or_of_the_other_kind_is_refused() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(ValueError, match="either an address or a channel"):
            EvalClient("127.0.0.1:1", channel=channel)
        with pytest.raises(ValueError, match="a channel has credentials of its own"):
            EvalClient(channel=channel, token="evr_1_secret")
        with pytest.raises(TypeError, match=r"takes a channel of grpc\.aio, not of grpc$"):
            AsyncEvalClient(channel=channel)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v1", "127.0.0.1:port", "ftp://127.0.0.1"])
def test_nonsense_is_refused_before_any_connection(address: str) -> None:
    with pytest.raises(ValueError, match=r"^the address"):
        EvalClient(address)
    with pytest.raises(ValueError, match=r"^the address"):
        AsyncEvalClient(address)
