"""Real servers at several addresses: TLS, mutual TLS, sockets, and certificates that are exchanged while clients call."""

import os
import re
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Issued
from serving import SECONDS, Launch, ServerHere, Site, submission
from waiting import eventually

from evalrpc.errors import ConfigurationError
from evalrpc.v1.catalog_pb2 import GetServerInfoRequest
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.jobs_pb2 import WatchJobsRequest

AUTHORITY = Authority()
Serve = Callable[..., ServerHere]


@contextmanager
def stub_at(address: str, ca: bytes | None = None, client: Issued | None = None) -> Iterator[EvaluationServiceStub]:
    """Connect anew, and not through a connection that another channel has."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if ca is None:
        channel = grpc.insecure_channel(address, options)
    else:
        key, cert = (client.key, client.cert) if client else (None, None)
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options)
    with channel:
        yield EvaluationServiceStub(channel)


def answers(address: str, ca: bytes | None = None, client: Issued | None = None) -> bool:
    """Return whether a call gets through; a refusal of the server counts."""
    with stub_at(address, ca, client) as stub:
        try:
            stub.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
    return True


@pytest.fixture
def tls(site: Site) -> dict[str, str]:
    """The settings of a server with TLS, whose files lie in the folder of the site."""
    cert, key = AUTHORITY.issue().write(site.folder)
    return {"tls_cert": str(cert), "tls_key": str(key)}


# TLS


def test_a_port_with_tls_speaks_only_tls(serve: Serve, tls: dict[str, str]) -> None:
    address = serve(**tls).address

    assert answers(address, AUTHORITY.pem)
    assert not answers(address)
    assert not answers(address, Authority("other").pem)


def test_mutual_tls_lets_only_certificates_of_the_clients_authority_connect(
    serve: Serve, tls: dict[str, str], tmp_path: Path
) -> None:
    clients = Authority("clients")
    address = serve(**tls, tls_client_ca=str(clients.write(tmp_path, "clients.pem"))).address

    assert answers(address, AUTHORITY.pem, clients.issue("alice"))
    assert not answers(address, AUTHORITY.pem, AUTHORITY.issue("eve"))
    assert not answers(address, AUTHORITY.pem)


def test_a_certificate_that_can_not_be_used_keeps_the_server_from_starting(
    site: Site, serve: Serve, tls: dict[str, str]
) -> None:
    Path(tls["tls_key"]).write_bytes(AUTHORITY.issue().key)

    with pytest.raises(ConfigurationError, match=r"setting tls_cert: .*KEY_VALUES_MISMATCH"):
        serve(**tls)
    assert not (site.folder / "data").exists()


def certificate_at(address: str) -> bytes:
    """Return the certificate that a new handshake gets."""
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=SECONDS))


def der(issued: Issued) -> bytes:
    return ssl.PEM_cert_to_DER_cert(issued.cert.decode())


class Callers:
    """Threads that call without a pause: one over a connection that stays, one that connects anew for every call."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.failures: list[BaseException] = []
        self.counts = [0, 0]
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in (self._steadily, self._anew)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def wait_for_more(self, calls: int = 5) -> None:
        """Wait until each thread has made so many more calls."""
        before = list(self.counts)
        eventually(
            lambda: self.failures or all(now - then >= calls for now, then in zip(self.counts, before, strict=True)),
            "for calls",
        )

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except grpc.RpcError as error:
            self.failures.append(error)

    def _steadily(self) -> None:
        with stub_at(self._address, AUTHORITY.pem) as stub:
            while not self._stop.is_set():
                stub.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
                self.counts[0] += 1

    def _anew(self) -> None:
        while not self._stop.is_set():
            with stub_at(self._address, AUTHORITY.pem) as stub:
                stub.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
            self.counts[1] += 1


def test_certificates_are_exchanged_under_load_without_a_failed_call_and_new_handshakes_get_the_new_one(
    serve: Serve, site: Site, tls: dict[str, str]
) -> None:
    address = serve(**tls).address
    with Callers(address) as callers:
        for _ in range(5):
            new = AUTHORITY.issue()
            Path(tls["tls_cert"]).write_bytes(new.cert)
            callers.wait_for_more()  # while only half of the pair is new
            Path(tls["tls_key"]).write_bytes(new.key)
            assert certificate_at(address) == der(new)
            callers.wait_for_more()

    assert callers.failures == []


def test_a_watch_that_is_open_outlives_the_certificate_that_it_began_with(
    serve: Serve, site: Site, tls: dict[str, str]
) -> None:
    address = serve(**tls).address
    with stub_at(address, AUTHORITY.pem) as stub:
        events = stub.WatchJobs(WatchJobsRequest(), timeout=SECONDS)
        next(events)
        new = AUTHORITY.issue()
        new.write(site.folder)
        assert certificate_at(address) == der(new)
        with stub_at(address, AUTHORITY.pem) as other:
            job = other.SubmitJob(submission(), timeout=SECONDS)
        assert next(events).job.job_id == job.job_id


# Several addresses


def test_each_address_has_rules_of_its_own_and_all_serve_the_same_jobs(serve: Serve, site: Site, tls: dict[str, str]) -> None:
    site.release()
    path = site.folder / "run" / "socket"
    clients = Authority("clients")
    mutual_tls = {**tls, "tls_client_ca": str(clients.write(site.folder, "clients.pem"))}
    server = serve(listen=["127.0.0.1:0", f"unix:{path}", {"address": "127.0.0.1:0", **mutual_tls}])
    plain, local, mutual = (listener.address for listener in server.server.listeners)

    assert (server.address, local) == (plain, f"unix:{path}")
    with stub_at(local) as stub:
        job_id = stub.SubmitJob(submission(), timeout=SECONDS).job_id
    assert server.api.get(job_id).job_id == job_id
    assert answers(mutual, AUTHORITY.pem, clients.issue())
    assert not answers(mutual, AUTHORITY.pem)
    assert not answers(plain, AUTHORITY.pem)


def test_a_server_process_prints_a_line_for_each_address_and_warns_of_anonymous_callers(site: Site, launch: Launch) -> None:
    path = site.folder / "run" / "socket"
    server = launch("--listen", "127.0.0.1:0", "--listen", f"unix:{path}")

    assert server.process.stdout is not None
    assert server.process.stdout.readline() == f"evalrpc listening on unix:{path}\n"
    assert answers(f"unix:{path}")
    eventually(lambda: "harness toy" in server.log_path.read_text(), "for the announcement")
    for address in (server.api.address, f"unix:{path}"):
        assert (
            f"INFO    {address} asks nobody to sign in: any local user and any proxy on this host"
            in server.log_path.read_text()
        )


def test_no_server_starts_where_other_machines_would_get_in_without_signing_in(site: Site, serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match=r"setting tls_cert: .* callers must sign in"):
        serve(listen="0.0.0.0:0")
    with pytest.raises(ConfigurationError, match="setting auth: "):
        serve(listen="0.0.0.0:0", auth="off")
    assert not (site.folder / "data").exists()


def test_where_sign_in_is_required_nobody_is_anonymous_but_health_is_open(serve: Serve) -> None:
    server = serve(auth="required")

    with pytest.raises(grpc.RpcError) as caught:
        server.api.GetServerInfo()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    check = server.api.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=SECONDS) == b"\x08\x01"


# Sockets


@pytest.fixture
def path(site: Site) -> Path:
    return site.folder / "run" / "socket"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_socket_and_its_folder_are_private_and_the_socket_goes_with_the_server(serve: Serve, path: Path) -> None:
    before = os.umask(0)
    try:
        server = serve(listen=f"unix:{path}")
    finally:
        os.umask(before)

    assert server.address == f"unix:{path}"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    server.stop()
    assert not path.exists()


def test_a_folder_that_others_may_enter_is_refused(serve: Serve, path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o750)

    with pytest.raises(
        ConfigurationError, match=rf"can't listen on unix:{path}: the folder {path.parent} must be this account's"
    ):
        serve(listen=f"unix:{path}")
    assert list(path.parent.iterdir()) == []


def test_a_second_server_on_a_socket_is_refused_and_the_first_goes_on(serve: Serve, site: Site, path: Path) -> None:
    first = serve(listen=f"unix:{path}")

    with pytest.raises(ConfigurationError, match=rf"unix:{path} is not free: another program listens there$"):
        serve(listen=f"unix:{path}", data_dir=str(site.folder / "other"))
    assert first.api.head() == 0
    assert answers(f"unix:{path}")


def test_a_server_with_more_clients_than_it_accepts_still_has_its_socket(serve: Serve, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigurationError, match="is not free"):
            serve(listen=f"unix:{path}")


def test_the_socket_of_a_dead_server_is_replaced(serve: Serve, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()

    server = serve(listen=f"unix:{path}")

    assert server.api.head() == 0
    assert mode(path) == 0o600


def test_a_file_that_is_no_socket_stays(serve: Serve, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")

    with pytest.raises(ConfigurationError, match="there is a file that is no socket"):
        serve(listen=f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_folder_that_can_not_be_made_is_named(serve: Serve, path: Path) -> None:
    path.parent.write_text("a file")

    with pytest.raises(ConfigurationError, match=re.escape(f"can't listen on unix:{path}: can't make its folder: ")):
        serve(listen=f"unix:{path}")
