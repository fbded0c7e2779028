"""`evalrpc serve`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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

_VARIABLE: Final = "GRPC_EXPERIMENTS"


@click.command(short_help="Run the server.")
@setting_flags()
def serve_command(config: Path | None, **flags: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C. It needs Linux."""
    require_linux()
    with reported():
        settings = load_settings(flags, os.environ, config)
        try:
            with _grpc_experiments():
                from evalrpc.server.app import serve
        except ModuleNotFoundError as error:
            fail(ExitCode.WRONG_CALL, extras.missing(error, "server"))
        try:
            serve(settings, config)
        except UnavailableError as error:
            fail(ExitCode.WRONG_CALL, f"the server can't go on: {error}")


@contextmanager
def _grpc_experiments() -> Iterator[None]:
    """Set the variable that gRPC reads on import, unless the operator has set it. Runs must not inherit it."""
    if _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = GRPC_EXPERIMENTS
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
