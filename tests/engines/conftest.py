"""A gateway with an engine."""

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


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that knows no engine yet."""
    with gateway_process(tmp_path) as gateway:
        yield gateway


@pytest.fixture
def served(gateway: GatewayProcess, stub: EngineStub, recording: Path) -> GatewayProcess:
    """A gateway with a route to the engine, and a recording."""
    gateway.client.declare([engine_of(stub)], [route_to(recording)])
    return gateway
