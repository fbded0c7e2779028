"""A real server in this process, for tests that run an evaluation from end to end. Linux only, as every server.

settings = Settings(data_dir=tmp_path / "data", harnesses={"acme": HarnessSettings("acme", "acme-eval")})
with running_server(settings) as client:
    job = client.evaluate("acme/tiny", ["arithmetic"])
    print(client.wait_for_job(job.job_id).results)
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from evalrpc.client import EvalClient
from evalrpc.clock import Clock
from evalrpc.config import ListenSettings, Settings
from evalrpc.errors import JobFinishedError
from evalrpc.server import app
from evalrpc.v1.jobs_pb2 import JOB_STATUS_QUEUED, JOB_STATUS_RUNNING, JobFilter

__all__ = ["ServerThread", "Settings", "running_server"]

_SECONDS: Final = 120.0  # far above normal: a busy machine must not fail a test


@contextmanager
def running_server(settings: Settings, clock: Clock | None = None) -> Iterator[EvalClient]:
    """Start a server on a free port of the loopback interface, whatever `settings` say of addresses, TLS and sign-in, and
    yield a client of it.

    At the end, all jobs that still wait or run are cancelled, and no process of them is left. Raises ConfigurationError for
    settings with which a server does not start.
    """
    here = (ListenSettings("127.0.0.1:0"),)
    server = ServerThread(replace(settings, listen=here, tls_cert=None, tls_key=None, tls_client_ca=None, auth="off"), clock)
    try:
        with EvalClient(server.address) as client:
            yield client
    finally:
        try:
            _cancel_all(server.address)
        finally:
            server.stop()


def _cancel_all(address: str) -> None:
    """Cancel all jobs and wait for their ends, with a client of our own: the test may have closed its client."""
    live = JobFilter(statuses=[JOB_STATUS_QUEUED, JOB_STATUS_RUNNING])
    with EvalClient(address, timeout_seconds=_SECONDS) as client:
        while jobs := list(client.list_jobs(live)):
            for job in jobs:
                with suppress(JobFinishedError):
                    client.cancel_job(job.job_id, "its test is over")
            for job in jobs:
                client.wait_for_job(job.job_id, _SECONDS, raise_on_failure=False)


class ServerThread:
    """A server on an event loop in a thread of its own, for tests that need more than a client of it.

    Stopping it leaves its runs to the next server with the same `data_dir`, as every stop does. Raises ConfigurationError for
    settings with which a server does not start.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._started: Future[app.Server] = Future()
        self._ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(settings, clock), name="server", daemon=True).start()
        self.server = self._started.result(_SECONDS)

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT or unix:PATH; if at several addresses, the first."""
        return self.server.address

    @property
    def is_alive(self) -> bool:
        """Whether it has not stopped yet."""
        return not self._ended.done()

    def begin_stop(self) -> None:
        """Ask it to stop, as SIGTERM does. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Stop it gracefully, and wait for that. May be called again. Raises what it has failed with, and TimeoutError."""
        if self.is_alive:
            self.begin_stop()
        self._ended.result(_SECONDS)

    def _run(self, settings: Settings, clock: Clock | None) -> None:
        try:
            asyncio.run(self._serve(settings, clock))
        except Exception as error:  # noqa: BLE001 - it is raised where the server is started or stopped
            if not self._started.done():
                self._started.set_exception(error)
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _serve(self, settings: Settings, clock: Clock | None) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with app.running_server(settings, clock) as server:
            self._started.set_result(server)
            await self._stop.wait()
