"""Whose connections are closed."""

import socket

import pytest

from evalrpc.server.transports.connections import close_connections


def test_the_connection_of_a_peer_is_closed_and_no_other() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as one,
        socket.create_connection(listener.getsockname()) as other,
    ):
        accepted = [listener.accept()[0] for _ in range(2)]
        close_connections({f"ipv4:127.0.0.1:{one.getsockname()[1]}"})
        assert one.recv(1) == b""
        for each in accepted:
            if each.getpeername() == other.getsockname():
                each.sendall(b"x")
        assert other.recv(1) == b"x"
        for each in accepted:
            each.close()


@pytest.mark.parametrize("peers", [{""}, {"unix:"}, {"unknown"}])
def test_a_call_without_a_peer_ends_nothing_such_as_what_wakes_the_event_loop(peers: set[str]) -> None:
    here, there = socket.socketpair()
    with here, there:
        close_connections(peers)
        here.sendall(b"x")
        assert there.recv(1) == b"x"
