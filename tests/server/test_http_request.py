"""What a request over HTTP says of itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from evalrpc.errors import InvalidRequestError
from evalrpc.server.transports.http.connection import SCOPE_KEY
from evalrpc.server.transports.http.request import MAX_PARAMETERS, HttpRequest


async def nothing(*_: object) -> Any:
    return None


def request(query: bytes) -> HttpRequest:
    scope = {"method": "GET", "path": "/", "raw_path": b"/", "query_string": query, "headers": []}
    return HttpRequest({**scope, SCOPE_KEY: SimpleNamespace()}, nothing, nothing, 1000)


def test_parameters_are_as_many_as_the_limit_allows() -> None:
    most = b"&".join([b"a=%C3%A4"] * MAX_PARAMETERS)
    assert request(most).parameters == [("a", "ä")] * MAX_PARAMETERS
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_PARAMETERS} parameters"):
        _ = request(most + b"&a=b").parameters


@pytest.mark.parametrize("query", [b"a=\xff", b"a=%FF"])
def test_a_query_that_is_no_url_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="NAME=VALUE pairs"):
        _ = request(query).parameters
