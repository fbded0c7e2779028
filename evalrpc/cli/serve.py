"""`evalrpc serve`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from evalrpc import extras
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.config import load_settings
from evalrpc.errors import UnavailableError

GRPC_EXPERIMENTS: Final = "-event_engine_listener"
"""gRPC's newer listener passes every call through one more thread, which makes it take half as long again. A gRPC without the
older listener logs this, and continues."""

_VARIABLES: Final = {
    # A server only ever starts fresh programs. Where even that fails, Python tries `fork`, for which gRPC would stop its
    # threads; and where it can't start them again, it ends the server.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_EXPERIMENTS": GRPC_EXPERIMENTS,
    "GRPC_VERBOSITY": "ERROR",  # else it logs each handshake that fails, in a form of its own
}


@click.command(short_help="Run the server.")
@setting_flags()
def serve_command(config: Path | None, **flags: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C. It needs Linux."""
    require_linux()
    with reported():
        settings = load_settings(flags, os.environ, config)
        try:
            with _grpc_variables():
                from evalrpc.server.process import serve
        except ModuleNotFoundError as error:
            fail(ExitCode.WRONG_CALL, extras.missing(error, "server"))
        try:
            serve(settings, config, partial(load_settings, flags, dict(os.environ), config))
        except UnavailableError as error:
            fail(ExitCode.WRONG_CALL, f"the server can't go on: {error}")


@contextmanager
def _grpc_variables() -> Iterator[None]:
    """Set the variables that gRPC reads on import, unless the operator has set them. Runs must not inherit them."""
    ours = {name: value for name, value in _VARIABLES.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
