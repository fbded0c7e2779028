"""Whether a server can listen, and why not."""

import errno
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from evalrpc.config.addresses import parse_listen_address
from evalrpc.errors import ConfigurationError
from evalrpc.server.listening import find_refusal, require_descriptors, require_free


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


@contextmanager
def no_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "0.0.0.0:0", "[::]:0"])
def test_a_free_address_is_not_refused(listen: str) -> None:
    assert find_refusal(parse_listen_address(listen)) is None


def test_a_port_can_be_taken_again_as_soon_as_it_is_free() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listen = f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()) as client:
            connection, _ = listener.accept()
            connection.close()  # the side that closes first keeps the port for a while
            client.recv(1)
    assert find_refusal(parse_listen_address(listen)) is None


def test_an_address_of_another_program_is_refused(taken: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting listen: {taken} is not free"):
        require_free(parse_listen_address(taken))


@pytest.mark.parametrize("listen", ["192.0.2.1:50051", "no.such.host.invalid:50051", f"{'a' * 70}:50051"])
def test_an_address_that_is_not_this_machines_is_refused_for_another_reason(listen: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting listen: can't listen on {listen}: ") as caught:
        require_free(parse_listen_address(listen))
    assert "not free" not in caught.value.message


def test_a_lack_of_descriptors_is_not_taken_for_a_port_in_use() -> None:
    with no_descriptors():
        refusal = find_refusal(parse_listen_address("127.0.0.1:0"))
    assert refusal is not None
    assert refusal.errno == errno.EMFILE


def test_a_lack_of_descriptors_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="Too many open files"), no_descriptors():
        require_descriptors(1)


def test_descriptors_that_were_counted_are_free_again() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in range(limit):
        require_descriptors(1)
