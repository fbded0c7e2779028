"""`evalrpc serve`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from evalrpc.cli.exit_codes import WRONG_CALL, fail, reported
from evalrpc.config import load_settings
from evalrpc.errors import UnavailableError

GRPC_EXPERIMENTS: Final = "-event_engine_listener"
"""gRPC's newer listener passes every call through one more thread, which makes it take half as long again. A gRPC without the
older listener logs this, and continues."""

_VARIABLE: Final = "GRPC_EXPERIMENTS"


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one. Default: 127.0.0.1:50051.")
@click.option("--data-dir", metavar="DIR", type=click.Path(path_type=Path), help="Database, logs and results.")
@click.option("--gpus", metavar="auto|N|0,2,3", help="The GPUs to hand out. Default: auto.")
@click.option("--max-running", type=int, metavar="N", help="Jobs that run at the same time.")
@click.option("--max-queued", type=int, metavar="N", help="Jobs that wait at the most.")
@click.option("--output-root", metavar="DIR", type=click.Path(path_type=Path), help="Where a request may put its results.")
@click.option("--drain", is_flag=True, default=None, help="When stopping, wait for the runs instead of leaving them alone.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="The log on stderr. Default: text.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings as TOML; flags override them.")
def serve_command(config: Path | None, **flags: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    with reported():
        settings = load_settings(flags, os.environ, config)
        try:
            with _grpc_experiments():
                from evalrpc.server.app import serve
        except ModuleNotFoundError as error:
            fail(WRONG_CALL, f"{error.name} is missing; install the server: pip install 'evalrpc[server]'")
        try:
            serve(settings)
        except UnavailableError as error:
            fail(WRONG_CALL, f"the server can't go on: {error}")


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
