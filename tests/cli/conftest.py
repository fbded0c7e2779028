"""The command line, run in this process against a fake server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_server import FakeServer, FakeService

from evalrpc.cli import main

Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def service(server: FakeServer) -> FakeService:
    return server.service


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Run a command against the server, in this process, with separate stdout and stderr."""

    def run(*args: str, **options: Any) -> Result:
        environment = {"EVALRPC_ADDRESS": server.address, "COLUMNS": "80"}
        result = CliRunner().invoke(main, args, env=environment, **options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run
