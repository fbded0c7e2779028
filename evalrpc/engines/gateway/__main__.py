"""`python -m evalrpc.engines.gateway --listen fd:N|HOST:PORT --folder DIR`."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Final

from evalrpc.engines.gateway.control import Control
from evalrpc.engines.gateway.gateway import Gateway, GatewayLimits
from evalrpc.engines.gateway.log import set_up_logging

_LOGGER: Final = logging.getLogger(__name__)
_BACKLOG: Final = 1024
_STOP_SECONDS: Final = 10.0
_NEW_OBJECTS: Final = 5000
"""The garbage collector runs after this many: requests in flight have more than its default of 700, and none is garbage."""


def main() -> None:
    """Serve until SIGTERM or SIGINT, then let requests end, and exit with 0."""
    options = _options()
    set_up_logging()
    os.umask(0o077)
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    limits = GatewayLimits(options.max_connections, options.max_body_bytes, options.max_bytes_in_flight)
    gateway = Gateway(_listener(options.listen), limits)
    control = Control(gateway, options.folder)
    await control.start()
    gateway.start()
    _LOGGER.info("the gateway listens", extra={"address": gateway.status().address, "instance": gateway.instance})
    await stop.wait()
    _LOGGER.info("the gateway stops")
    await gateway.stop(options.stop_seconds)
    await control.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evalrpc.engines.gateway", description="Pass requests of harnesses to engines."
    )
    where = "a socket that listens and was passed on, as fd:N; or HOST:PORT"
    parser.add_argument("--listen", required=True, help=where)
    parser.add_argument("--folder", required=True, type=Path, help="a private folder, for the control socket")
    parser.add_argument("--stop-seconds", type=float, default=_STOP_SECONDS, help="for requests to end; default: %(default)g")
    limits = GatewayLimits()
    parser.add_argument("--max-connections", type=int, default=limits.max_connections, help="default: %(default)d")
    parser.add_argument("--max-body-bytes", type=int, default=limits.max_body_bytes, help="default: %(default)d")
    parser.add_argument("--max-bytes-in-flight", type=int, default=limits.max_bytes_in_flight, help="default: %(default)d")
    return parser.parse_args()


def _listener(where: str) -> socket.socket:
    """Return the socket that is passed on, or one that listens at an address."""
    kind, _, number = where.partition(":")
    if kind == "fd":
        listener = socket.socket(fileno=int(number))
        listener.set_inheritable(False)
        return listener
    host, _, port = where.rpartition(":")
    return socket.create_server((host.strip("[]"), int(port)), backlog=_BACKLOG)


if __name__ == "__main__":
    main()
