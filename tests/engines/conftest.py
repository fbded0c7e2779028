"""Gateways with an engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_stub import EngineStub, engine_stub
from gateway_process import GatewayProcess, engine_of, gateway_process, route_to


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return tmp_path / "recording"


@pytest.fixture
def stub() -> Iterator[EngineStub]:
    with engine_stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared_gateway: GatewayProcess) -> Iterator[GatewayProcess]:
    """A gateway without engines and routes. Tests must let it live, since others go on with it."""
    yield shared_gateway
    shared_gateway.client.declare([], [])


@pytest.fixture
def served(gateway: GatewayProcess, stub: EngineStub, recording: Path) -> GatewayProcess:
    """The same gateway with a route to the engine, and a recording."""
    gateway.client.declare([engine_of(stub)], [route_to(recording)])
    return gateway


@pytest.fixture
def mortal(tmp_path: Path, stub: EngineStub, recording: Path) -> Iterator[GatewayProcess]:
    """Another gateway with such a route, which a test may end."""
    with gateway_process(tmp_path) as gateway:
        gateway.client.declare([engine_of(stub)], [route_to(recording)])
        yield gateway
