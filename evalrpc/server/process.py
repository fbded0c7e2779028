"""The process of a server: runs until it is asked to stop, and heeds signals."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from evalrpc.clock import SystemClock
from evalrpc.config import Settings
from evalrpc.errors import UnavailableError
from evalrpc.files.private import PRIVATE_UMASK
from evalrpc.secrets.registry import Secrets
from evalrpc.server.announcement import announce
from evalrpc.server.app import Server, first_of, running_server
from evalrpc.server.collector import tune_collector
from evalrpc.server.listening import require_descriptors
from evalrpc.server.logging import set_up_logging
from evalrpc.server.memory import limit_arenas
from evalrpc.server.threads import require_threads
from evalrpc.server.transports.grpc import ignore_departures
from evalrpc.server.transports.grpc_listener import GrpcListener

if TYPE_CHECKING:
    from evalrpc.server.transports.http.listener import HttpListener

_FORCE_SECONDS: Final = 5.0
_START_DESCRIPTORS: Final = 64  # a server without clients and runs has 30 open
_START_THREADS: Final = 48  # a server without clients and runs has somewhat fewer

_log = logging.getLogger(__name__)


def serve(settings: Settings, config_file: Path | None = None, load: Callable[[], Settings] | None = None) -> None:
    """Run a server until SIGTERM or SIGINT. Prints `evalrpc listening on HOST:PORT`, a line per address, when it is ready.

    The file, if any, is where settings came from. `load` reads them again, which SIGHUP asks for. Raises ConfigurationError if
    it can't start, UnavailableError if it can't continue.
    """
    limit_arenas()
    require_descriptors(_START_DESCRIPTORS)
    require_threads(_START_THREADS)
    environment = dict(os.environ)
    secrets = Secrets(settings.secrets, environment)
    set_up_logging(settings.log_format, secrets.mask_text)
    ignore_departures()
    os.umask(PRIVATE_UMASK)  # files of jobs are private to this account
    # OpenBLAS, which comparisons load, ends the process if it can't start its threads. They need none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, config_file, load or (lambda: settings), environment, secrets))


async def _serve(
    settings: Settings, config_file: Path | None, load: Callable[[], Settings], environment: Mapping[str, str], secrets: Secrets
) -> None:
    stop = asyncio.Event()
    stopping = _start_watchdog(settings.stop_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _log.info, "SIGHUP comes too early: the server is starting")
    async with running_server(settings, environment=environment, secrets=secrets) as server:
        tune_collector()
        _reload_on_sighup(server, load)
        everywhere: Sequence[GrpcListener | HttpListener] = (*server.listeners, *server.http_listeners)
        for listener in everywhere:
            print(f"evalrpc listening on {listener.address}", flush=True)
        if server.metrics_address:
            _log.info("metrics: http://%s/metrics", server.metrics_address)
        listening = [(each.listener, each.certificate) for each in everywhere]
        now = SystemClock().now().ToDatetime(UTC)
        isolation, limits, harnesses = server.isolation, server.limits_of_runs, server.harnesses
        announced = (listening, now, config_file, settings.data_dir, isolation, limits, harnesses)
        threading.Thread(target=announce, args=announced, name="announcement", daemon=True).start()  # a stop won't wait for it
        await first_of(stop.wait(), server.wait_broken())
        if is_broken := not stop.is_set():
            _log.error("%s: stopping", server.what_is_broken)
        elif settings.drain:
            stop.clear()  # a second signal stops it at once
            await first_of(server.drain(), stop.wait())
        _log.info("stopping; runs go on and are picked up at the next start")
        stopping.set()
    if is_broken:
        raise UnavailableError(f"{server.what_is_broken}. Runs go on, and are picked up at the next start")


def _reload_on_sighup(server: Server, load: Callable[[], Settings]) -> None:
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def begin() -> None:
        reloads.add(task := loop.create_task(server.reload(load)))
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)


def _start_watchdog(stop_seconds: float) -> threading.Event:
    """Return an event that, once set, makes the server exit by force if stopping takes much longer than allowed: a thread that
    hangs on a disk can't be interrupted.

    Nothing is lost: what was acknowledged is on disk, and runs are taken over at the next start. The thread that watches is
    started now, since there may be no other one later.
    """
    stopping = threading.Event()
    watch = partial(_end_by_force, stopping, stop_seconds + _FORCE_SECONDS)
    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    return stopping


def _end_by_force(stopping: threading.Event, seconds: float) -> None:
    stopping.wait()
    time.sleep(seconds)
    _log.error("the stop takes too long: ending by force; runs go on and are picked up at the next start")
    os._exit(1)
