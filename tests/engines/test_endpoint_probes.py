"""What is said of an endpoint that can't be used."""

import socket

import pytest

from evalrpc.config import EndpointSettings
from evalrpc.engines.endpoints import EndpointUse, require_usable
from evalrpc.errors import RunFailedError


def test_one_that_nobody_can_connect_to_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    use = EndpointUse(EndpointSettings("vendor", url, ("m",)), "m")
    with pytest.raises(
        RunFailedError, match=rf"vendor gives no answer: no connection to 127\.0\.0\.1:{port}: Connection refused"
    ):
        require_usable(use, url)
