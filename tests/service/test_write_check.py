"""A server that can't write says NOT_SERVING to whoever asks for its health, until it can."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from serving import COMPLETED, QUEUED, ServerHere, Site
from small_disk import small_disk
from waiting import DEADLINE_SECONDS, eventually

from evalrpc.scheduling import supervisor
from evalrpc.server import write_check

MIB = 1024 * 1024
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_check, "INTERVAL_SECONDS", 0.02)


def watch(server: ServerHere) -> Iterator[int]:
    """Yield the health of a server, and every change."""
    stream = HealthStub(server.api.channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
    return (answer.status for answer in stream)


def check(server: ServerHere) -> int:
    return HealthStub(server.api.channel).Check(health_pb2.HealthCheckRequest()).status


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Fill a disk with a file, while no probe takes up room that it would give back."""
    probing, write_probe = threading.Lock(), write_check._write_probe

    def probe(path: Path) -> None:
        with probing:
            write_probe(path)

    def fill(path: Path) -> None:
        with probing, path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    monkeypatch.setattr(write_check, "_write_probe", probe)
    return fill


def test_while_the_disk_is_full_and_no_longer(
    serve: Callable[..., ServerHere], site: Site, fill: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(site.folder / "data", "16m") as disk:
        server = serve()
        changes = watch(server)
        assert next(changes) == SERVING
        done = server.api.run("good")
        for _ in range(2):
            fill(disk / "filling")
            assert next(changes) == NOT_SERVING
            assert server.api.get(done.job_id).status == COMPLETED, "what can be answered is"
            (disk / "filling").unlink()
            assert next(changes) == SERVING
        assert server.api.run("good").status == COMPLETED
        eventually(lambda: not (disk / "write-check").exists())
        said = [record.getMessage() for record in caplog.records if record.name == write_check.__name__]
        assert [text.partition(":")[0] for text in said] == ["not serving, since the server can't write"] * 2
        server.stop()


def test_while_the_disk_that_runs_have_for_themselves_is_full(
    serve: Callable[..., ServerHere], site: Site, fill: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", 0.02)
    (site.folder / "data").mkdir(mode=0o700)
    with small_disk(site.folder / "data" / "jobs", "4m") as disk:
        (disk / "lost+found").mkdir(mode=0)
        server = serve()
        changes = watch(server)
        assert next(changes) == SERVING
        fill(disk / "filling")
        assert next(changes) == NOT_SERVING
        job_id = server.api.submit("good").job_id
        assert server.api.get(job_id).status == QUEUED
        (disk / "filling").unlink()
        assert next(changes) == SERVING
        assert server.api.wait_for(job_id, COMPLETED)
        server.api.DeleteJob(job_id=job_id)
        eventually(lambda: [path.name for path in disk.iterdir()] == ["lost+found"])
        server.stop()


def test_while_the_store_can_not_commit(server: ServerHere) -> None:
    changes = watch(server)
    assert next(changes) == SERVING
    for _ in range(2):
        server.server._store._connection.execute("PRAGMA query_only = ON")
        assert next(changes) == NOT_SERVING
        server.server._store._connection.execute("PRAGMA query_only = OFF")
        assert next(changes) == SERVING
    assert server.api.run("good").status == COMPLETED


def test_while_a_write_hangs(
    serve: Callable[..., ServerHere], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write_check, "TIMEOUT_SECONDS", 0.2)  # before the first write begins, which waits no longer either
    server, goes_on = serve(), threading.Event()
    eventually(lambda: check(server) == SERVING)
    server.server._store._write(lambda _: goes_on.wait(DEADLINE_SECONDS))
    eventually(lambda: check(server) == NOT_SERVING)
    assert "not serving, since the server can't write: a write takes longer than 0.2 seconds" in caplog.text
    goes_on.set()
    eventually(lambda: check(server) == SERVING)


def test_it_changes_nothing_and_takes_no_revision(server: ServerHere) -> None:
    before = server.api.head(), server.api.GetServerInfo().oldest_revision
    written: list[int] = []
    check_writable = server.server._store.check_writable
    server.server._store.check_writable = lambda: written.append(1) or check_writable()  # type: ignore[method-assign]
    eventually(lambda: len(written) > 3)
    assert (server.api.head(), server.api.GetServerInfo().oldest_revision) == before
