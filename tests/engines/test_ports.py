"""The ports that are held for engines until these listen at them."""

import os
import socket

import pytest

from evalrpc.engines import ports
from evalrpc.engines.ports import hold_port


@pytest.fixture(autouse=True)
def few_ports(monkeypatch: pytest.MonkeyPatch) -> range:
    """Let there be three ports, which are free, and none that another process of these tests looks for."""
    mine = 30_000 + 30 * (os.getpid() % 80)
    for first in range(mine, mine + 30, 3):
        few = range(first, first + 3)
        held = [each for port in few if (each := ports._hold(port))]
        for each in held:
            each.close()
        if len(held) == len(few):
            monkeypatch.setattr(ports, "_PORTS", few)
            return few
    pytest.skip("no ports are free")


def test_no_port_is_held_twice_nor_one_that_is_taken(few_ports: range) -> None:
    held = [hold_port({few_ports[0]}) for _ in few_ports[1:]]
    assert sorted(each.getsockname()[1] for each in held) == [*few_ports[1:]]
    with pytest.raises(OSError, match="no port is free for an engine"):
        hold_port({few_ports[0]})
    for each in held:
        each.close()
    hold_port(()).close()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_that_is_held_can_be_listened_at(option: int) -> None:
    with hold_port(()) as held, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(held.getsockname())
        listener.listen()
        with socket.create_connection(held.getsockname()), listener.accept()[0]:
            pass


def test_what_listens_at_a_port_keeps_it_from_being_held(few_ports: range) -> None:
    with socket.create_server(("127.0.0.1", few_ports[1])), hold_port({few_ports[0]}) as held:
        assert held.getsockname()[1] == few_ports[2]
