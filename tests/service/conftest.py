"""Servers for the service tests. Whatever a test starts is stopped when it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_site import Models, add_engine, end_engines
from serving import Api, Launch, MovableClock, ServerHere, ServerThere, Site
from several_servers import two_hosts
from slurm_cluster import slurm_cluster
from waiting import eventually

from evalrpc.jobs import transitions

__all__ = ["slurm_cluster"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.kill_runs()


@pytest.fixture
def clock() -> MovableClock:
    """The clock of the servers in this process."""
    return MovableClock()


@pytest.fixture
def long_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make jobs of servers in this process wait for their next attempt until the test is over."""
    monkeypatch.setattr(transitions, "backoff_seconds", lambda _: 3600.0)


@pytest.fixture
def serve(site: Site, clock: MovableClock) -> Iterator[Callable[..., ServerHere]]:
    """Start a server in this process, with settings by name."""
    servers: list[ServerHere] = []

    def start(**flags: Any) -> ServerHere:
        servers.append(ServerHere(site.settings(**flags), clock))
        return servers[-1]

    yield start
    for server in servers:
        server.start_no_more()
        end_runs(site, server)
        server.stop()


def end_runs(site: Site, server: ServerHere) -> None:
    def ended() -> bool:
        site.kill_runs()
        return server.idle

    eventually(ended, "for the runs to end")


@pytest.fixture
def server(serve: Callable[..., ServerHere]) -> ServerHere:
    return serve()


@pytest.fixture
def api(server: ServerHere) -> Api:
    return server.api


@pytest.fixture
def launch(site: Site, request: pytest.FixtureRequest) -> Iterator[Launch]:
    """Start a server in a separate process, with command line flags."""
    servers: list[ServerThere] = []

    def start(*flags: str) -> ServerThere:
        servers.append(ServerThere(site, *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
    site.kill_runs()
    log = (site.folder / "server.log").read_text() if servers else ""
    if request.node.get_closest_marker("xfail") is None:
        assert "Traceback" not in log, log


@pytest.fixture
def engines(site: Site) -> Iterator[None]:
    """Configure an engine and a harness that asks it; end what is left of both."""
    add_engine(site)
    yield
    end_engines(site.folder / "data")


@pytest.fixture
def models(site: Site) -> Models:
    return Models(site)


@pytest.fixture
def hosts(site: Site, launch: Launch) -> Iterator[dict[str, ServerThere]]:
    """Servers of two machines, alpha and beta, which both have joined. The first is the scheduler."""
    yield two_hosts(site, launch)
    site.release()
